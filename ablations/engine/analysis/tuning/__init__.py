"""What a search chose and gained: its cost, the importance of its fields, and the ranking of variants before and after tuning."""
