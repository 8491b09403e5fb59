"""Time of the report of a large study, from MLflow to the page."""
