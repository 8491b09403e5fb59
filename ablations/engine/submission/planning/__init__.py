"""What a study would train, cost and be able to show, before anything starts."""
