"""Liveness of a run's processes: each renews a record in Ray's key-value store, and others see whether it changes."""

import math
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress

from ray.exceptions import RpcError

from ablations.engine.scheduling.ray_internals.compatibility import is_available
from ablations.engine.scheduling.ray_internals.key_value_store import KEY_VALUE_STORE
from ablations.engine.trial import process_failures
from ablations.engine.trial.watchdog import Watchdog

MAX_INTERVAL_SECONDS = 10.0
"""Maximum time between two heartbeats, in seconds."""
START_TIMEOUT_SECONDS = 180.0
"""Minimum time after which a process that is starting counts as hung, in seconds, even if the hang timeout is shorter. Imports
take seconds, on a busy machine a minute."""


def heartbeat_interval(hang_timeout: float) -> float:
    """Return the time between two heartbeats, and between two checks of them, in seconds."""
    return min(MAX_INTERVAL_SECONDS, hang_timeout / 10)


class ProcessHeartbeat:
    """A record of this process that a thread renews. It contains the number of heartbeats and the number of steps."""

    def __init__(self, name: str, interval_seconds: float, **entries: object) -> None:
        """Start to renew the record `name`, which also gets `entries`."""
        self.record = process_failures.ProcessRecord(name, **entries)
        self.steps = 0
        self.paused = False
        self._interval_seconds = interval_seconds
        self._stopped = threading.Event()
        # A separate thread, because each heartbeat waits for Ray's head, which may hang.
        threading.Thread(target=self._beat, name="heartbeat", daemon=True).start()

    def step(self) -> None:
        """Count a step."""
        self.steps += 1

    def stop(self) -> None:
        """Stop the heartbeat and delete the record."""
        self._stopped.set()
        self.record.delete()

    def _beat(self) -> None:
        beats = 0
        while not self._stopped.wait(self._interval_seconds):
            if self.paused:
                continue
            beats += 1
            with suppress(RpcError):  # the head is busy and gets the next heartbeat
                self.record.write(beats=beats, steps=self.steps)


class ProcessMonitor:
    """Monitors this process from inside: passes signs of life to watchdog and heartbeat, and ends the process with a reason."""

    def __init__(self, heartbeat: ProcessHeartbeat, watchdog: Watchdog) -> None:
        self._heartbeat, self._watchdog = heartbeat, watchdog

    def alive(self) -> None:
        """Report that this process makes progress. Costs as much as reading a clock."""
        self._watchdog.alive()
        self._heartbeat.step()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Pause heartbeat and watchdog while this process waits for the driver, which may be suspended for long.

        The driver, by its own clock, then decides whether this process hangs.
        """
        self._heartbeat.paused = self._watchdog.paused = True
        try:
            yield
        finally:
            self._watchdog.alive()
            self._heartbeat.paused = self._watchdog.paused = False

    def end_process(self, **reason: object) -> None:
        """Exit this process at once, with an entry for its record that `process_failures.explain_failure` reads."""
        try:
            self._heartbeat.record.write(**reason)
        finally:
            os._exit(1)


@contextmanager
def watched(heartbeat: ProcessHeartbeat, hang_timeout: float) -> Iterator[ProcessMonitor]:
    """Exit this process after `hang_timeout` seconds without a sign of life. Its record then has the reason."""
    with Watchdog(hang_timeout, lambda: heartbeat.record.write(hung_seconds=hang_timeout)) as watchdog:
        yield ProcessMonitor(heartbeat, watchdog)


@contextmanager
def monitored(name: str, hang_timeout: float) -> Iterator[ProcessMonitor]:
    """Watch this process for the length of the block, under the record `name`.

    If it exits, `process_failures.explain_failure([name])` returns the reason.
    """
    heartbeat = ProcessHeartbeat(name, heartbeat_interval(hang_timeout))
    try:
        with watched(heartbeat, hang_timeout) as monitor:
            yield monitor
    finally:
        heartbeat.stop()


class PeerMonitor:
    """Watches the other workers of a group while this worker waits for them. They may have more to do, so waiting is no hang."""

    def __init__(self, names: Sequence[str], hang_timeout: float, alive: Callable[[], object]) -> None:
        """
        Args:
            names: names of the other workers' records.
            hang_timeout: this process's hang timeout, in seconds.
            alive: called when another worker has made progress.
        """
        self._names, self._interval, self._alive = names, heartbeat_interval(hang_timeout), alive
        self._checked = time.monotonic()
        self._steps: list[object] = []

    def check_progress(self) -> None:
        """Call `alive` if another worker has made a step since the last check. Cheap between two checks."""
        if time.monotonic() < self._checked + self._interval:
            return
        self._checked = time.monotonic()
        if not is_available(KEY_VALUE_STORE):
            self._alive()  # without heartbeats, assume progress
            return
        with suppress(RpcError):  # the head is busy and answers the next time
            steps: list[object] = [process_failures.read_record(name).get("steps") for name in self._names]
            if steps != self._steps:
                self._alive()
            self._steps = steps


class StallDetector:
    """Measures for how many seconds processes have shown no sign of life.

    Only time between regular polls counts. Otherwise, an observer that was itself suspended would conclude that all others hang.
    """

    def __init__(self) -> None:
        self._polled = time.monotonic()
        self._interval = math.inf
        self._signs: dict[str, object] = {}
        self._seconds: dict[str, float] = {}

    def should_poll(self, interval: float) -> bool:
        """Return whether `interval` seconds have passed since the last `update`."""
        self._interval = interval
        return time.monotonic() >= self._polled + interval

    def update(self, signs: Mapping[str, object]) -> dict[str, float]:
        """Compare signs of life with those of the last poll; return the seconds without a change by name, 0 for new names."""
        now = time.monotonic()
        passed = min(now - self._polled, 2 * self._interval)
        self._polled = now
        known, seconds = self._signs, self._seconds
        self._signs = dict(signs)
        self._seconds = {
            name: seconds[name] + passed if name in known and known[name] == sign else 0.0 for name, sign in signs.items()
        }
        return self._seconds
