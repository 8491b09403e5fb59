"""Liveness of the processes of a run: each renews a record in Ray's key-value store, and others look whether it changes."""

import math
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress

from ray.exceptions import RpcError

from ablations.engine.trial import process_failures
from ablations.engine.trial.watchdog import Watchdog

MAX_INTERVAL_SECONDS = 10.0
START_TIMEOUT_SECONDS = 180.0
"""Time for a process to start before it counts as hung, where the hang timeout is shorter: imports take seconds, and Ray Train
waits for a group's resources for a minute at a time."""


def heartbeat_interval(hang_timeout: float) -> float:
    """Return the time between two heartbeats, in seconds, and between two looks at them."""
    return min(MAX_INTERVAL_SECONDS, hang_timeout / 10)


class ProcessHeartbeat:
    """A record of this process that a thread renews: that the process runs at all, and how many steps it has made."""

    def __init__(self, name: str, seconds: float) -> None:
        """Start to beat under a name, every so many seconds."""
        self.record = process_failures.ProcessRecord(name)
        self.steps = 0
        self.paused = False
        self._seconds = seconds
        self._stopped = threading.Event()
        # A thread of its own: it waits for Ray's head, which may be what does not answer.
        threading.Thread(target=self._beat, name="heartbeat", daemon=True).start()

    def step(self) -> None:
        self.steps += 1

    def stop(self) -> None:
        """Stop beating and erase the record."""
        self._stopped.set()
        self.record.erase()

    def _beat(self) -> None:
        beats = 0
        while not self._stopped.wait(self._seconds):
            if self.paused:
                continue
            beats += 1
            try:
                self.record.write(beats=beats, steps=self.steps)
            except RpcError:  # a head that is busy gets the next one
                continue


class ProcessMonitor:
    """The watch over this process, as seen from inside: it gives signs of life, or ends the process with a reason."""

    def __init__(self, heartbeat: ProcessHeartbeat, watchdog: Watchdog) -> None:
        self._heartbeat, self._watchdog = heartbeat, watchdog

    def alive(self) -> None:
        """Give a sign of life. Costs as much as reading a clock."""
        self._watchdog.alive()
        self._heartbeat.step()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Wait for the driver, which may be stopped for long. It judges whether this process hangs then, by its own time: the
        process neither beats nor ends itself."""
        self._heartbeat.paused = self._watchdog.paused = True
        try:
            yield
        finally:
            self._watchdog.alive()
            self._heartbeat.paused = self._watchdog.paused = False

    def end_process(self, **reason: object) -> None:
        """End this process hard. `process_failures.explain_failure` reads the reason."""
        try:
            self._heartbeat.record.write(**reason)
        finally:
            os._exit(1)


@contextmanager
def monitored(name: str, hang_timeout: float) -> Iterator[ProcessMonitor]:
    """End this process after `hang_timeout` seconds without a heartbeat. `process_failures.explain_failure` then gives the reason.

    Other processes see by its heartbeat that it runs.
    """
    heartbeat = ProcessHeartbeat(name, heartbeat_interval(hang_timeout))
    try:
        with Watchdog(hang_timeout, lambda: heartbeat.record.write(hung_seconds=hang_timeout)) as watchdog:
            yield ProcessMonitor(heartbeat, watchdog)
    finally:
        heartbeat.stop()


class PeerMonitor:
    """The other processes of a group, for one that waits for them: they may have more to do than this one."""

    def __init__(self, names: Sequence[str], hang_timeout: float, alive: Callable[[], object]) -> None:
        self._names, self._interval, self._alive = names, heartbeat_interval(hang_timeout), alive
        self._looked = time.monotonic()
        self._steps: list[object] = []

    def check_progress(self) -> None:
        """Give a sign of life if one of them has made a step since the last look. Costs little between two looks."""
        if time.monotonic() < self._looked + self._interval:
            return
        self._looked = time.monotonic()
        with suppress(RpcError):  # a head that is busy answers the next time
            steps: list[object] = [process_failures.read_record(name).get("steps") for name in self._names]
            if steps != self._steps:
                self._alive()
            self._steps = steps


class StallDetector:
    """Seconds for which processes have shown no sign of life.

    Only time in which somebody looked counts. An observer that was itself suspended would otherwise take all others for hung.
    """

    def __init__(self) -> None:
        self._looked = time.monotonic()
        self._interval = math.inf
        self._signs: dict[str, object] = {}
        self._seconds: dict[str, float] = {}

    def should_poll(self, interval: float) -> bool:
        """Return whether it is time to look again, if that is done at this interval, in seconds."""
        self._interval = interval
        return time.monotonic() >= self._looked + interval

    def update(self, signs: Mapping[str, object]) -> dict[str, float]:
        """Compare signs of life with those of the last look; return the seconds of silence by name, 0 for new names."""
        now = time.monotonic()
        passed = min(now - self._looked, 2 * self._interval)
        self._looked = now
        known, seconds = self._signs, self._seconds
        self._signs = dict(signs)
        self._seconds = {
            name: seconds[name] + passed if name in known and known[name] == sign else 0.0 for name, sign in signs.items()
        }
        return self._seconds
