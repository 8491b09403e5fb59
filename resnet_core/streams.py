"""Standard output and error whose writes never fail, so that a closed pipe or an ASCII terminal cannot end a training."""

import codecs
import io
import os
import select
import sys
from contextlib import suppress
from typing import Any

ERRORS = "plain"
"""Name of the codec error handler for characters that an encoding lacks."""
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
"""ASCII replacements for the non-ASCII characters of this program's messages; other characters are escaped."""


def accept_everything() -> None:
    """Replace this process's standard output and error by streams whose writes never fail.

    Characters that the encoding lacks are replaced. Text for a closed pipe or a full disk is dropped. A stream that has already
    been redirected within Python stays as it is.
    """
    codecs.register_error(ERRORS, _plain)
    if sys.stdout is sys.__stdout__:
        sys.stdout = _opened(1, sys.stdout)
    if sys.stderr is sys.__stderr__:
        sys.stderr = _opened(2, sys.stderr)


class _Accepting(io.FileIO):
    """File descriptor whose writes never fail."""

    def write(self, data: Any) -> int:
        try:
            while (written := super().write(data)) is None:  # a full pipe in non-blocking mode
                select.select([], [self], [])
        except OSError:
            return len(data)
        return written


def _opened(number: int, before: Any) -> io.TextIOWrapper:
    if before is None:  # closed when Python started
        _occupy(number)
        raw, encoding = _Accepting(os.devnull, "w"), "utf-8"  # the descriptor may belong to a file by now
    else:
        with suppress(OSError):
            before.flush()
        raw, encoding = _Accepting(number, "w", closefd=False), before.encoding
    return io.TextIOWrapper(io.BufferedWriter(raw), encoding=encoding, errors=ERRORS, line_buffering=True)


def _occupy(number: int) -> None:
    """Open /dev/null as file descriptor `number` if it is closed, so that no file opened later receives text for the terminal."""
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
