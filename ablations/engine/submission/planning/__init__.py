"""Preview of a study before anything starts: its runs, its cost, and the differences that it could detect."""
