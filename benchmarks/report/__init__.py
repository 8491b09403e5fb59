"""How long the report of a large study takes, from MLflow to the page."""
