"""Benchmarks: one command each, JSON and a table out. `python -m benchmarks.overhead`, `.step`, `.scaling`."""
