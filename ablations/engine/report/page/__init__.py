"""Parts of the report's page: its figures, its rows, and the files that it offers."""
