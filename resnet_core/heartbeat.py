"""Heartbeats: calls by which long-running work tells its watchdog that it makes progress."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from filelock import FileLock, Timeout

Heartbeat = Callable[[], object]
"""Function without arguments that is called after every step of a long-running computation."""

LOCK_POLL_INTERVAL_SECONDS = 0.5
"""Time between two heartbeats of a process that waits for a lock, in seconds."""


def no_heartbeat() -> None:
    """Do nothing: the `Heartbeat` of work without a watchdog."""


def acquire_lock(path: Path, heartbeat: Heartbeat = no_heartbeat) -> AbstractContextManager[object]:
    """Acquire a file lock and return a context manager that releases it. The lock also ends when its holder crashes.

    A waiting process counts as alive, however long the holder needs: hashing ImageNet on a slow disk takes an hour.

    Args:
        path: lock file, in an existing folder.
        heartbeat: called repeatedly while another process holds the lock.

    Raises:
        OSError: the lock file cannot be written.
    """
    lock = FileLock(path)
    while True:
        try:
            return lock.acquire(timeout=LOCK_POLL_INTERVAL_SECONDS)
        except Timeout:
            heartbeat()
