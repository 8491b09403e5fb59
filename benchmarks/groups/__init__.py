"""Cost of kills of the processes of worker groups."""
