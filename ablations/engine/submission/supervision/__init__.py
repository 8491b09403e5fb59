"""What happens beside the training of a study: stop requests, an early end, notifications, and the removal of checkpoints."""
