"""Standard output and error that accept everything: whether anybody can read a program's words never decides about its work."""

import codecs
import io
import os
import select
import sys
from contextlib import suppress
from typing import Any

ERRORS = "plain"
"""Name of the handler, registered here, for characters that an encoding lacks."""
PLAIN = {
    "×": "x",
    "÷": "/",
    "·": "|",
    "±": "+/-",
    "−": "-",
    "–": "-",
    "…": "...",
    "≤": "<=",
    "≥": ">=",
    "√": "sqrt ",
    "→": "->",
    "²": "2",
    "η": "eta",
    "“": '"',
    "”": '"',
    "’": "'",
    "━": "=",
    "─": "-",
    "│": "|",
    "⎡": "[",
    "⎢": "[",
    "⎣": "[",
    "⎤": "]",
    "⎥": "]",
    "⎦": "]",
}
"""Characters of this program's own messages, in ASCII; others are escaped."""


def accept_everything() -> None:
    """Replace this process's standard output and error by streams whose writes never fail.

    Characters that the encoding lacks are replaced. Text that nobody takes is lost: a closed pipe, a full disk. Streams that
    something else has put in place of the interpreter's own stay.
    """
    codecs.register_error(ERRORS, _plain)
    if sys.stdout is sys.__stdout__:
        sys.stdout = _opened(1, sys.stdout)
    if sys.stderr is sys.__stderr__:
        sys.stderr = _opened(2, sys.stderr)


class _Accepting(io.FileIO):
    """A file descriptor of which no write fails."""

    def write(self, data: Any) -> int:
        try:
            while (written := super().write(data)) is None:  # a pipe that is full and does not block
                select.select([], [self], [])
        except OSError:
            return len(data)
        return written


def _opened(number: int, before: Any) -> io.TextIOWrapper:
    if before is None:  # it was closed when Python started
        _occupy(number)
        raw, encoding = _Accepting(os.devnull, "w"), "utf-8"  # the number itself may be that of a file by now
    else:
        with suppress(OSError):
            before.flush()
        raw, encoding = _Accepting(number, "w", closefd=False), before.encoding
    return io.TextIOWrapper(io.BufferedWriter(raw), encoding=encoding, errors=ERRORS, line_buffering=True)


def _occupy(number: int) -> None:
    """Open /dev/null as this file descriptor if it is closed, so that no file opened later receives text meant for the terminal."""
    try:
        os.fstat(number)
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, number)
        os.set_inheritable(number, True)
        if nowhere != number:
            os.close(nowhere)


def _plain(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    characters = error.object[error.start : error.end]
    text = "".join(PLAIN.get(c) or c.encode("unicode_escape").decode("ascii") for c in characters)
    return text, error.end
