"""The console command `ablations`, also `python -m ablations`."""

import sys


def main() -> None:
    """Run the command and exit with its exit code."""
    from ablations.engine.environment import signals

    signals.exit_on_signals("interrupted")  # before the other imports, which take long
    from ablations.engine.cli import commands

    sys.exit(commands.main())


if __name__ == "__main__":
    main()
