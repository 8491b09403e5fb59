"""The summary of a study over its data sets: on the terminal, as a page with figures, and as JSON."""
