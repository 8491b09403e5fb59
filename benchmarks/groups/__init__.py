"""What kills of the processes of worker groups cost."""
