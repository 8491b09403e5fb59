"""Results of a search: choices, gains and cost, the importance of its fields, and the ranking of variants before and after."""
