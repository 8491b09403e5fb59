"""Ctrl-C, and `ray job stop` as the same."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, NoReturn

SIGNALS = (signal.SIGINT, signal.SIGTERM)
INTERRUPTED_EXIT_CODE = 1
"""Exit code of a program that was asked to stop: its work is not done."""
SIGNAL_RETRY_SECONDS = 0.05

_report_unraisable = sys.unraisablehook


def is_imported_by_program() -> bool:
    """Return whether the module that calls this is imported by the very file that Python runs: not by a library, nor by hand."""
    frame: FrameType | None = sys._getframe(2)
    # A package's `__getattr__` imports what the program's `from package import name` asks for.
    while frame and ("importlib" in frame.f_code.co_filename or frame.f_code.co_name == "__getattr__"):
        frame = frame.f_back
    return frame is not None and frame.f_globals["__name__"] == "__main__" and "__file__" in frame.f_globals


def exit_on_signals(words: str) -> None:
    """Let signals end this process at once, with a line: while it imports what it needs, there is nothing to leave in order."""

    def end(*_: object) -> None:
        with suppress(OSError):
            os.write(2, f"{words}\n".encode())  # a print here could be one inside of another
        os._exit(INTERRUPTED_EXIT_CODE)

    for number in SIGNALS:
        signal.signal(number, end)


class InterruptHandler:
    """Signals that ask this program to stop, each a KeyboardInterrupt, wherever it is."""

    def __init__(self) -> None:
        self.received = False
        sys.unraisablehook = _retry
        for number in SIGNALS:
            signal.signal(number, self._interrupt)

    def _interrupt(self, *_: object) -> None:
        self.received = True
        raise KeyboardInterrupt


def _retry(ignored: Any) -> None:
    """Repeat a signal that came where nothing can be raised, as in a callback of the garbage collector: it would be lost."""
    if ignored.exc_type is not KeyboardInterrupt:
        _report_unraisable(ignored)
        return
    main = threading.main_thread().ident
    assert main is not None
    timer = threading.Timer(SIGNAL_RETRY_SECONDS, signal.pthread_kill, (main, signal.SIGINT))
    timer.daemon = True
    timer.start()


def exit_ignoring_first_signal(code: int) -> NoReturn:
    """Exit the program with this code. All is said, and Ray ends its processes: a first signal is ignored, a second ends it."""

    def end(*_: object) -> None:
        os._exit(code)

    def wait(*_: object) -> None:
        for number in SIGNALS:
            signal.signal(number, end)

    for number in SIGNALS:
        signal.signal(number, wait)
    sys.exit(code)


def interrupt_main_thread() -> None:
    """Stop this program as Ctrl-C does, from any of its threads."""
    main = threading.main_thread().ident
    assert main is not None
    signal.pthread_kill(main, signal.SIGINT)


@contextmanager
def deferred_signals() -> Iterator[None]:
    """Signals wait for the end of this. A library whose start is interrupted may make an error of its own of it."""
    if threading.current_thread() is not threading.main_thread():  # where no signal arrives
        yield
        return
    waiting: list[int] = []
    before = {number: signal.signal(number, lambda number, _: waiting.append(number)) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if waiting:
            signal.raise_signal(waiting[0])
