"""Cost of probes."""
