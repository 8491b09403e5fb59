"""Cost of very many trials on very many nodes for the one process that leads them."""
