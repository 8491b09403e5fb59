"""Plain-text output to a terminal or to the log of a Ray job."""

import contextlib
import os
import sys
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.text import Text

from resnet_core.fields import printable

LOG_WIDTH_CHARACTERS = 120


def make_console() -> Console:
    """Return a console as wide as the terminal, or `LOG_WIDTH_CHARACTERS` wide if stdout is a file, a job's log or a notebook.

    In a notebook, lines are text as in a log: rich's own output there is a separate display for each line.
    """
    return Console() if sys.stdout.isatty() else Console(width=LOG_WIDTH_CHARACTERS, force_jupyter=False)


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


@contextlib.contextmanager
def document_on_stdout() -> Iterator[Callable[[str], None]]:
    """Yield a function that writes to standard output; inside the block, all other output of this process goes to standard error.

    That includes output of libraries and of child processes, which write to the file descriptor. A closed pipe is not an error.
    """
    stream, number = sys.stdout, _descriptor(sys.stdout)
    with contextlib.ExitStack() as stack:
        if number is not None:
            stream.flush()
            saved = os.dup(number)
            stack.callback(os.close, saved)
            os.dup2(sys.stderr.fileno(), number)
            stack.callback(os.dup2, saved, number)
            stack.callback(stream.flush)  # before the descriptor is restored
        stack.enter_context(contextlib.redirect_stdout(sys.stderr))

        def write(text: str) -> None:
            with contextlib.suppress(OSError):
                if number is None:
                    stream.write(text)
                    stream.flush()
                else:
                    data = text.encode()
                    while data:
                        data = data[os.write(saved, data) :]

        yield write


def _descriptor(stream: object) -> int | None:
    """Return the file descriptor of a stream; None if it has none, as in a notebook."""
    try:
        return int(stream.fileno())  # type: ignore[attr-defined]
    except (AttributeError, OSError, ValueError):
        return None
