"""Plain-text output to a terminal or to the log of a Ray job."""

import sys

from rich.console import Console
from rich.text import Text

from resnet_core.fields import printable

LOG_WIDTH_CHARACTERS = 120


def make_console() -> Console:
    """Return a console as wide as the terminal, or `LOG_WIDTH_CHARACTERS` wide if stdout is a file or a job's log."""
    return Console() if sys.stdout.isatty() else Console(width=LOG_WIDTH_CHARACTERS)


def print_line(console: Console, text: str) -> None:
    """Print one line without interpreting markup in it. Control characters, as in file names or library errors, are escaped."""
    console.print(Text(printable(text)), soft_wrap=True)


def format_duration(seconds: float) -> str:
    """Return a duration as text: `45 s`, `3 min 20 s`, `2 h 5 min`."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60} min"
