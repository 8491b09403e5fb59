"""Plain-text output to a terminal or to the log of a Ray job."""

import contextlib
import os
import sys
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from resnet_core.fields import printable

LOG_WIDTH_CHARACTERS = 120


def make_console() -> Console:
    """Return a console as wide as the terminal, or `LOG_WIDTH_CHARACTERS` wide if stdout is a file, a job's log or a notebook.

    In a notebook, lines are text as in a log: rich's own output there is a separate display for each line, and a live table would
    leave its control sequences and every one of its frames in the file.
    """
    if Console().is_jupyter:  # whose streams say that they are terminals
        return Console(width=LOG_WIDTH_CHARACTERS, force_jupyter=False, force_terminal=False)
    return Console() if sys.stdout.isatty() else Console(width=LOG_WIDTH_CHARACTERS)


@dataclass(frozen=True)
class Paragraph:
    """Text that is wrapped at the width of the console, without blanks at the ends of lines. Control characters are escaped."""

    text: str
    style: str = ""

    def __rich_console__(self, _: Console, options: ConsoleOptions) -> RenderResult:
        lines = textwrap.wrap(printable(self.text), options.max_width, break_long_words=False, break_on_hyphens=False)
        yield from (Text(line, self.style) for line in lines)


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


def format_money(usd: float) -> str:
    """Return an amount: `$3.60`, `$1,234`."""
    return f"${usd:,.0f}" if usd >= 1000 else f"${usd:,.2f}"


@contextlib.contextmanager
def document_on_stdout() -> Iterator[Callable[[str], None]]:
    """Yield a function that writes to standard output; inside the block, all other output of this process goes to standard error.

    That includes output of libraries and of child processes, which write to the file descriptor. A closed pipe is not an error.
    """
    stream = sys.stdout
    with contextlib.ExitStack() as stack:
        saved = None
        if _is_file(stream):
            stream.flush()
            saved = os.dup(1)
            stack.callback(os.close, saved)
            os.dup2(2, 1)
            stack.callback(os.dup2, saved, 1)
            stack.callback(stream.flush)  # before the descriptor is restored
        stack.enter_context(contextlib.redirect_stdout(sys.stderr))

        def write(text: str) -> None:
            data = text.encode()
            with contextlib.suppress(OSError):
                while saved is not None and data:
                    data = data[os.write(saved, data) :]
                if data:
                    stream.write(text)

        yield write


@contextlib.contextmanager
def silent_stderr() -> Iterator[None]:
    """Discard what this process writes to standard error inside the block, also from libraries in C++."""
    saved, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null, 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(null)


def _is_file(stream: object) -> bool:
    """Return whether a stream writes to a file descriptor. That of a notebook does not."""
    try:
        return stream.fileno() >= 0  # type: ignore[attr-defined, no-any-return]
    except (AttributeError, OSError, ValueError):
        return False
