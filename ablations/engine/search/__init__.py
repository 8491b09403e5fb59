"""Search over configurations: space, samplers, early stopping, population-based training, and the plan of a search."""
