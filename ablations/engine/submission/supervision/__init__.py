"""Supervision of a study that trains: stop requests, an early end, notifications, and the removal of checkpoints."""
