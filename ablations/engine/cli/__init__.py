"""Options, commands and exit codes."""
