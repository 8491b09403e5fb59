"""MLflow: what is written while a study runs, and what is read back from it."""
