"""Tasks: what a study trains, and the metric by which it compares runs."""
