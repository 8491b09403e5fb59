"""Findings as page, tables, figures and terminal output."""
