"""The processes of a trial: training alone or in a worker group, checkpoints, liveness, and causes of crashes."""
