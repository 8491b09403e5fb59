"""MLflow: records written while a study runs, and queries that read them back."""
