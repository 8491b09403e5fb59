"""Command lines whose complaints are one line, as those about every other value are."""

import argparse
from typing import Any, NoReturn

from resnet_core.fields import ConfigError


class Parser(argparse.ArgumentParser):
    """Raises ConfigError where argparse prints the usage and exits; options are not abbreviated."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # An abbreviation that works today is ambiguous once there is another option.
        super().__init__(*args, **{"allow_abbrev": False} | kwargs)

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{' '.join(message.split())} (see --help)")  # an argument may hold line breaks
