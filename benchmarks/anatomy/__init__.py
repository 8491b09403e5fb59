"""Shares of the time of a training step."""
