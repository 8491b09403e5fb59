"""Command lines whose complaints are one line, as those about every other value are."""

import argparse
import signal
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from resnet_core.fields import ConfigError
from resnet_core.streams import accept_everything


def run(main: Callable[[], int]) -> NoReturn:
    """Run a command and exit with the code that it returns; after Ctrl-C or SIGTERM with a line and 1."""
    accept_everything()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        code = main()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = 1
    sys.exit(code)


class Parser(argparse.ArgumentParser):
    """Raises ConfigError where argparse prints the usage and exits; options are not abbreviated."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # An abbreviation that works today is ambiguous once there is another option.
        super().__init__(*args, **{"allow_abbrev": False} | kwargs)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        # argparse, until Python 3.12, makes an empty list of such a value, whatever its type.
        for word in sys.argv[1:] if args is None else args:
            if word.startswith("--") and word.partition("=")[2] == "--":
                self.error(f"{word}: accepted: a value")
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{' '.join(message.split())} (see --help)")  # an argument may hold line breaks
