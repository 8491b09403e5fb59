"""Speed of two workers against one."""
