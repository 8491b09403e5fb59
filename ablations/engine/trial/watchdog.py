"""A watchdog that exits this process when it hangs."""

import faulthandler
import os
import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType

STDERR = 2
"""File descriptor of stderr. faulthandler writes to it without Python's own streams."""
GRACE_SECONDS = 5.0
"""Time between the thread's timeout and the timer's, in seconds. The thread has this long to report the hang."""


class Watchdog:
    """Exits this process once `alive` has not been called for a number of seconds, and prints the stacks of all threads to stderr.

    Two mechanisms back each other up. A thread notices a hang even if the main thread waits in C code, as in a collective operation
    whose peer is stuck. If some code holds the interpreter's lock (GIL), no Python thread runs: then faulthandler's timer, which is
    written in C and which the thread restarts at every check, exits the process a little later.
    """

    def __init__(self, seconds: float, before_exit: Callable[[], object]) -> None:
        """
        Args:
            seconds: time without a call of `alive` after which the process exits, in seconds.
            before_exit: called by the thread before it exits the process.
        """
        self.seconds, self.before_exit = seconds, before_exit
        self.paused = False
        """True if the timeout is suspended, because this process waits for another process that is itself monitored."""
        self._left = threading.Event()

    def alive(self) -> None:
        """Report a sign of life. Costs as much as reading a clock."""
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
        interval = min(1.0, self.seconds / 10)
        while not self._left.wait(interval):
            if self.paused:
                self.alive()
            remaining = self._seen + self.seconds - time.monotonic()
            if remaining <= 0:
                self._exit()
            faulthandler.dump_traceback_later(remaining + GRACE_SECONDS, exit=True, file=STDERR)

    def _exit(self) -> None:
        # `before_exit` may use a network, which may be what hangs.
        faulthandler.dump_traceback_later(GRACE_SECONDS, exit=True, file=STDERR)
        print(f"No step for {self.seconds:g} s: this process exits. Stacks of its threads:", file=sys.__stderr__, flush=True)
        faulthandler.dump_traceback(file=STDERR, all_threads=True)
        self.before_exit()
        os._exit(1)
