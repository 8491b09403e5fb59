"""Overhead of a study beyond the training itself."""
