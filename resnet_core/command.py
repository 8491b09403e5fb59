"""Entry point and argument parser of the commands; errors are one line."""

import argparse
import difflib
import re
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
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
    """Argument parser that raises ConfigError instead of printing the usage and exiting, and accepts no abbreviated options.

    An unknown option is answered with similar ones.
    """

    elsewhere: Mapping[str, str] = {}
    """Options that exist, but not here, each with a sentence that says where."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # An abbreviation that works today becomes ambiguous when an option is added.
        super().__init__(*args, **{"allow_abbrev": False} | kwargs)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        # Until Python 3.12, argparse parses `--option=--` as an empty list, whatever the type of the option.
        for word in sys.argv[1:] if args is None else args:
            if word.startswith("--") and word.partition("=")[2] == "--":
                self.error(f"{word}: accepted: a value")
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:  # also those of a command: its own options are known here only
            self.error(self._describe_unknown(unknown))
        return found, unknown

    def _describe_unknown(self, words: Sequence[str]) -> str:
        """Return a message about arguments that no option takes, with the likely meaning of the first."""
        option = next((word.partition("=")[0] for word in words if word.startswith("-")), "")
        if option in self.elsewhere:
            return f"{option}: {self.elsewhere[option]}"
        known = [name for name, action in self._option_string_actions.items() if action.dest != "help"]
        near = difflib.get_close_matches(option, known, n=1, cutoff=0.6) if option else []
        if near:
            return f"{option}: no such option; did you mean {near[0]}?"
        return f"unrecognized arguments: {' '.join(words)}"

    def error(self, message: str) -> NoReturn:
        if wrong := re.fullmatch(r"argument (\w+): invalid choice: '(.*)' \(choose from (.*)\)", message, re.DOTALL):
            near = difflib.get_close_matches(wrong[2], re.findall(r"[\w-]+", wrong[3]), n=1)
            message = f"{wrong[2]}: no such {wrong[1].lower()}; did you mean {near[0]}?" if near else message
        raise ConfigError(f"{' '.join(message.split())} (see --help)")  # an argument may hold line breaks
