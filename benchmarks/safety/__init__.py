"""Cost of durability: checkpoints, watchdog and journal."""
