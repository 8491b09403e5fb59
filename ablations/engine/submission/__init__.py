"""One study from submission to report."""
