"""Checks of a cluster: each measures something on every node and says what is wrong and what to do."""
