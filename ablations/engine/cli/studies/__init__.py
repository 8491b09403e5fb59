"""Commands about the studies that MLflow has: find, show, compare, stop, and clean up after them."""
