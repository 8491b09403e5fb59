"""Signs of life: called again and again by work that takes long, so that whoever watches it knows that it goes on."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from filelock import FileLock, Timeout

Alive = Callable[[], object]
"""Called after every step: a sign of life to whoever watches over a training."""

LOCK_POLL_SECONDS = 0.5
"""Time between two signs of life of a process that waits for a lock, in seconds."""


def unwatched() -> None:
    """The `Alive` of a training that nobody watches."""


def acquire(path: Path, alive: Alive = unwatched) -> AbstractContextManager[object]:
    """Acquire a lock file; returns a context that releases it. A holder that crashes releases it, too.

    A process that waits for another one is alive, however long the other one needs: hashing ImageNet takes an hour on a slow disk.

    Args:
        path: the lock file, in a folder that exists.
        alive: called while this process waits.

    Raises:
        OSError: the file cannot be written.
    """
    lock = FileLock(path)
    while True:
        try:
            return lock.acquire(timeout=LOCK_POLL_SECONDS)
        except Timeout:
            alive()
