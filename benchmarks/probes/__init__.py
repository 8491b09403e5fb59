"""What probes cost."""
