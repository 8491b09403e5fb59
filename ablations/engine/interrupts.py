"""Ctrl-C, and `ray job stop` as the same."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupts:
    """Signals that ask this program to stop, each a KeyboardInterrupt, wherever it is."""

    def __init__(self) -> None:
        self.heard = False
        for number in SIGNALS:
            signal.signal(number, self._interrupt)

    def _interrupt(self, *_: object) -> None:
        self.heard = True
        raise KeyboardInterrupt

    def ignore(self) -> None:
        """From now on: the program is at its end."""
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)


def interrupt() -> None:
    """Stop this program as Ctrl-C does, from any of its threads."""
    main = threading.main_thread().ident
    assert main is not None
    signal.pthread_kill(main, signal.SIGINT)


@contextmanager
def held() -> Iterator[None]:
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
