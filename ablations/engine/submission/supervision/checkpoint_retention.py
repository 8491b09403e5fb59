"""Removal of the checkpoints that a run with a result no longer needs, by a thread that training never waits for."""

import logging
import queue
import threading
import time

from pyarrow import ArrowException, fs

from ablations.engine.environment.storage import open_storage

logger = logging.getLogger(__name__)

KEEP_LAST, KEEP_NONE = "last", "none"
"""Values of `--keep-checkpoints`: keep the last checkpoint of a run with a result, or none."""
CLOSE_TIMEOUT_SECONDS = 10.0
"""Time for which the end of a study waits for removals, in seconds. `ablations clean` removes what is left."""


class CheckpointRetention:
    """Removes checkpoints of runs once MLflow has their results, so that a killed study repeats none.

    Args:
        storage: folder or address that holds the checkpoints of all runs.
        keep: `KEEP_LAST` or `KEEP_NONE`.
    """

    def __init__(self, storage: str, keep: str) -> None:
        self.storage, self.keep = storage, keep
        self._folders: queue.Queue[str] = queue.Queue()
        self._thread: threading.Thread | None = None

    def finished(self, folder: str) -> None:
        """Remove what a run no longer needs, given the name of its folder. Returns at once."""
        self._folders.put(folder)
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="checkpoint-retention", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """Wait until all removals are done, at most `CLOSE_TIMEOUT_SECONDS`."""
        deadline = time.monotonic() + CLOSE_TIMEOUT_SECONDS
        while self._folders.unfinished_tasks and time.monotonic() < deadline:
            time.sleep(0.02)

    def _run(self) -> None:
        while True:
            folder = self._folders.get()
            try:
                self._remove(folder)
            except (ArrowException, OSError):  # no result depends on it, and `ablations clean` tries again
                logger.debug("checkpoints in %s cannot be removed", folder, exc_info=True)
            finally:
                self._folders.task_done()

    def _remove(self, folder: str) -> None:
        files, root, _ = open_storage(self.storage)
        path = f"{root}/{folder}"
        if self.keep == KEEP_NONE:
            files.delete_dir(path)
            return
        names = sorted(info.base_name for info in files.get_file_info(fs.FileSelector(path, allow_not_found=True)))
        for name in [name for name in names if name.startswith("epoch-")][:-1]:
            files.delete_file(f"{path}/{name}")
