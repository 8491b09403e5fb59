"""Ends a process that no longer gets on with its work."""

import faulthandler
import os
import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType

STDERR = 2
GRACE_SECONDS = 5.0
"""By how much the timer is later than the thread, which has so long to say what happened."""


class Watchdog:
    """While entered, ends this process hard once `alive` has not been called for `seconds`; stacks of all threads go to stderr.

    Two look after each other. A thread sees that nothing moves, also where the main thread waits in C code, as in a collective
    whose peer is stuck. Where somebody keeps the interpreter's lock, no thread of Python runs any more: then faulthandler's
    timer, which is C and is wound up again by the thread each time it looks, ends the process a little later.
    """

    def __init__(self, seconds: float, last_words: Callable[[], object]) -> None:
        """
        Args:
            seconds: how long is too long.
            last_words: called before the process ends, by the thread.
        """
        self.seconds, self.last_words = seconds, last_words
        self.paused = False
        """Whether this process waits for another that is watched itself; no step is expected then."""
        self._left = threading.Event()

    def alive(self) -> None:
        """A sign of life. Costs as much as reading a clock."""
        self._seen = time.monotonic()

    def __enter__(self) -> "Watchdog":
        self.alive()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._left.set()
        self._thread.join()
        faulthandler.cancel_dump_traceback_later()

    def _watch(self) -> None:
        every = min(1.0, self.seconds / 10)
        while not self._left.wait(every):
            if self.paused:
                self.alive()
            remaining = self._seen + self.seconds - time.monotonic()
            if remaining <= 0:
                self._end()
            faulthandler.dump_traceback_later(remaining + GRACE_SECONDS, exit=True, file=STDERR)

    def _end(self) -> None:
        # What is to be said goes over a network that may be what hangs.
        faulthandler.dump_traceback_later(GRACE_SECONDS, exit=True, file=STDERR)
        print(
            f"No step for {self.seconds:g} s: this process ends itself. What its threads are at:", file=sys.__stderr__, flush=True
        )
        faulthandler.dump_traceback(file=STDERR, all_threads=True)
        self.last_words()
        os._exit(1)
