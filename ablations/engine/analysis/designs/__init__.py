"""Findings of designs other than factorial: screenings and ladders."""
