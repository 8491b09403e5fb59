"""Verdicts on what was expected of a study and on changes, with the tests that support them."""
