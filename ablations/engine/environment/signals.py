"""Handling of SIGINT (Ctrl-C) and SIGTERM (`kill`, `ray job stop`): both ask a program to stop."""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, NoReturn

SIGNALS = (signal.SIGINT, signal.SIGTERM)
INTERRUPTED_EXIT_CODE = 1
"""Exit code of a program that was asked to stop before its work was done."""
SIGNAL_RETRY_SECONDS = 0.05
"""Delay before a KeyboardInterrupt that Python discarded is sent again, in seconds."""

_report_unraisable = sys.unraisablehook
_current: list[Any] = []
"""Handlers of `interruptible`, the enclosing one first."""
_exiting: dict[signal.Signals, Callable[..., object]] = {}
"""Handlers of `exit_on_signals`."""


def is_imported_by_program() -> bool:
    """Return whether the calling module is imported by the file that Python executes, rather than by a library or interactively."""
    frame: FrameType | None = sys._getframe(2)
    # A package's `__getattr__` imports what the program's `from package import name` asks for.
    while frame and ("importlib" in frame.f_code.co_filename or frame.f_code.co_name == "__getattr__"):
        frame = frame.f_back
    return frame is not None and frame.f_globals["__name__"] == "__main__" and "__file__" in frame.f_globals


def exit_on_signals(message: str) -> None:
    """Make SIGINT and SIGTERM print `message` and exit at once, for phases such as imports that need no cleanup."""

    def end(*_: object) -> None:
        with suppress(OSError):
            os.write(2, f"{message}\n".encode())  # `print` is not reentrant, and the signal may have interrupted one
        os._exit(INTERRUPTED_EXIT_CODE)

    for number in SIGNALS:
        signal.signal(number, end)
        _exiting[number] = end


def stop_exiting_on_signals() -> None:
    """Undo `exit_on_signals`: SIGINT raises KeyboardInterrupt again, for a program of which a study is only a part."""
    defaults: dict[signal.Signals, Any] = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    for number, handler in _exiting.items():
        if signal.getsignal(number) is handler:
            signal.signal(number, defaults[number])


class InterruptHandler:
    """Handler that raises KeyboardInterrupt for SIGINT and SIGTERM, and remembers that one arrived."""

    def __init__(self, *, install: bool = True) -> None:
        self.received = False
        if not install:
            return
        sys.unraisablehook = _retry_interrupt
        for number in SIGNALS:
            signal.signal(number, self._interrupt)

    def _interrupt(self, *_: object) -> None:
        self.received = True
        raise KeyboardInterrupt


@contextmanager
def interruptible() -> Iterator[InterruptHandler]:
    """Yield an `InterruptHandler` for the block, and restore the handlers of the program afterwards.

    In another thread than the main one, signals are left to the program, since Python delivers them to the main thread only.
    """
    if threading.current_thread() is not threading.main_thread():
        yield InterruptHandler(install=False)
        return
    previous, hook = {number: signal.getsignal(number) for number in SIGNALS}, sys.unraisablehook
    handler = InterruptHandler()
    _current.append(handler)
    try:
        yield handler
    finally:
        _current.remove(handler)
        sys.unraisablehook = hook
        for number, before in previous.items():
            signal.signal(number, before)


@contextmanager
def noted_interrupts() -> Iterator[InterruptHandler]:
    """Yield an `InterruptHandler` that leaves signals alone, and remembers interrupts that a library has handled."""
    handler = InterruptHandler(install=False)
    _current.append(handler)
    try:
        yield handler
    finally:
        _current.remove(handler)


def note_interrupt() -> None:
    """Tell the enclosing `interruptible` and `noted_interrupts` of an interrupt that a library has handled.

    Ray Tune handles interrupts while runs train.
    """
    for handler in _current:
        handler.received = True


def _retry_interrupt(unraisable: Any) -> None:
    """Send SIGINT again if KeyboardInterrupt was raised where Python discards exceptions, such as in `__del__`."""
    if unraisable.exc_type is not KeyboardInterrupt:
        _report_unraisable(unraisable)
        return
    main = threading.main_thread().ident
    assert main is not None
    timer = threading.Timer(SIGNAL_RETRY_SECONDS, signal.pthread_kill, (main, signal.SIGINT))
    timer.daemon = True
    timer.start()


def exit_ignoring_first_signal(code: int) -> NoReturn:
    """Exit the program. The first signal is ignored while Ray stops its processes; a second one exits at once.

    Call this after all results have been reported: a signal then does not change the exit code.
    """

    def exit_now(*_: object) -> None:
        os._exit(code)

    def ignore_once(*_: object) -> None:
        for number in SIGNALS:
            signal.signal(number, exit_now)

    for number in SIGNALS:
        signal.signal(number, ignore_once)
    sys.exit(code)


def interrupt_main_thread() -> None:
    """Stop this program as Ctrl-C does, from any of its threads."""
    main = threading.main_thread().ident
    assert main is not None
    signal.pthread_kill(main, signal.SIGINT)


@contextmanager
def first_signal_noted() -> Iterator[Callable[[], bool]]:
    """Yield a function that returns whether SIGINT or SIGTERM has arrived in the block; a second one acts as SIGINT did."""
    if threading.current_thread() is not threading.main_thread():  # Python runs signal handlers in the main thread only
        yield lambda: False
        return
    previous = {number: signal.getsignal(number) for number in SIGNALS}
    noted = False

    def note(*_: object) -> None:
        nonlocal noted
        if noted:
            signal.raise_signal(signal.SIGINT)
        noted = True
        signal.signal(signal.SIGINT, previous[signal.SIGINT])

    for number in SIGNALS:
        signal.signal(number, note)
    try:
        yield lambda: noted
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextmanager
def deferred_signals() -> Iterator[None]:
    """Defer SIGINT and SIGTERM until the end of the block, where the first one is raised again.

    A library that is interrupted while it starts may turn the interrupt into an error of its own. One that replaces the handler of
    SIGTERM, as `ray.init` does, ends the block by SystemExit.
    """
    if threading.current_thread() is not threading.main_thread():  # Python runs signal handlers in the main thread only
        yield
        return
    pending: list[int] = []
    previous = {number: signal.signal(number, lambda number, _: pending.append(number)) for number in SIGNALS}
    try:
        yield
    except SystemExit:
        pending.append(signal.SIGTERM)
        raise
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        if pending:
            signal.raise_signal(pending[0])
