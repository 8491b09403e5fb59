"""Studies of residual networks: one file is one study."""
