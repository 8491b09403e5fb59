"""Statistics over seeds: estimates, tests, and the family that adjusts them."""
