"""Entry point and argument parser of the commands; errors are one line."""

import argparse
import signal
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from resnet_core.fields import ConfigError
from resnet_core.streams import accept_everything


def run(main: Callable[[], int]) -> NoReturn:
    """Run a command and exit with its exit code. Ctrl-C and SIGTERM print one line and exit with code 1."""
    accept_everything()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        code = main()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = 1
    sys.exit(code)


class Parser(argparse.ArgumentParser):
    """Argument parser that raises ConfigError instead of printing the usage and exiting, and accepts no abbreviated options."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # An abbreviation that works today becomes ambiguous when an option is added.
        super().__init__(*args, **{"allow_abbrev": False} | kwargs)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        # Until Python 3.12, argparse parses `--option=--` as an empty list, whatever the type of the option.
        for word in sys.argv[1:] if args is None else args:
            if word.startswith("--") and word.partition("=")[2] == "--":
                self.error(f"{word}: accepted: a value")
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{' '.join(message.split())} (see --help)")  # an argument may hold line breaks
