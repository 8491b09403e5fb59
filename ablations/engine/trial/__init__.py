"""What runs in the processes of a trial: training, its worker group, checkpoints, and how processes fail."""
