"""Findings over several data sets: effects by data set, their mean and their spread, ranks, and normalized scores."""
