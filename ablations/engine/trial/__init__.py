"""The processes of a trial: single process or worker group, checkpoints, liveness, and causes of crashes."""
