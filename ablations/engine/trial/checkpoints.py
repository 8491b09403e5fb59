"""Checkpoints of a run, in one folder on any storage that pyarrow reaches (local, NFS, S3, GCS).

A file is the state as `torch.save` writes it, with its tensors on the CPU: `torch.load(file, weights_only=True)` opens it anywhere.
A file's name contains a checksum of its content: a truncated or altered file is detected, and the one before it is used. No
checkpoint is removed before its replacement has been written and read back.
"""

import errno
import hashlib
import io
import logging
import os
import pickle
import re
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from pyarrow import Buffer, fs, py_buffer

from ablations.engine.environment.storage import apply_group_permissions, make_folder, open_storage

logger = logging.getLogger(__name__)

MAX_CHECKPOINTS = 2
"""Maximum number of checkpoints of a run to keep, the latest ones."""
_NAME = re.compile(r"epoch-(\d{6})-([0-9a-f]{16})\.pt")
_PARTIAL = ".partial"


class CheckpointFolder:
    """The latest two checkpoints of a run: `<storage>/<name>/epoch-000003-<checksum>.pt`.

    One process saves here at a time. A predecessor that was killed but has not ended yet does no harm: files may vanish at any
    moment, and no process removes an intact checkpoint of a later epoch than its own.

    If the storage fails or is gone, methods raise an OSError of one line with this folder and the reason. The folder is created
    once, at the run's first checkpoint. The storage that contains it is never created: the mount point of an unmounted share is
    a folder on another, empty disk.

    Args:
        storage: folder or address that holds the checkpoints of all runs.
        name: name of this run's folder.
        warn: called with one line for each damaged file.
    """

    def __init__(self, storage: str, name: str, warn: Callable[[str], object] = logger.warning) -> None:
        self.files, root, shown = open_storage(storage)
        self.folder = f"{root}/{name}"
        self.where = f"{shown}/{name}"
        self.warn = warn
        self._made = False
        self._unneeded: set[str] = set()

    def save(self, state: dict[str, Any], epoch: int) -> None:
        """Write a checkpoint, read it back, then remove those that are no longer needed.

        Raises:
            OSError: the file cannot be written or reads back differently. Earlier checkpoints are untouched.
        """
        file = io.BytesIO()
        torch.save(_on_cpu(state), file)
        content = py_buffer(file.getbuffer())
        name = f"epoch-{epoch:06d}-{_checksum(content)}.pt"
        with _prefix_os_errors(f"checkpoint of epoch {epoch} not saved in {self.where}"):
            self._write(name, content)
            self._unneeded.discard(name)
            written, names = self._read(name), self._names()
            if written is None and names and names[0] > name:
                return  # a predecessor saved a later epoch and removed this file
            if written is None or not written.equals(content):
                with suppress(OSError):
                    self._remove(name)
                raise OSError("the file read back differs from the file written")
            older = [other for other in names if other < f"epoch-{epoch:06d}"]
            for unneeded in (*older[MAX_CHECKPOINTS - 1 :], *self._unneeded):
                self._remove(unneeded)
            self._unneeded.clear()

    def check_writable(self) -> None:
        """Raise OSError if `save` cannot write. Call it before training, so that no epoch is lost.

        If another user began the run, its folder may be read-only for this user.
        """
        with _prefix_os_errors(f"no checkpoint can be saved in {self.where}"):
            if isinstance(self.files, fs.LocalFileSystem):
                folder = Path(self.folder)
                with tempfile.TemporaryFile(dir=folder if folder.exists() else folder.parent):
                    return
            name = f"writable.{uuid.uuid4().hex[:8]}{_PARTIAL}"
            with self.files.open_output_stream(f"{self.folder}/{name}"):
                pass
            self._remove(name)

    def latest(self, epoch: int | None = None) -> dict[str, Any] | None:
        """Return the latest intact checkpoint, with its tensors on the CPU; None if there is none.

        Args:
            epoch: consider checkpoints of this epoch only.

        Raises:
            OSError: the storage cannot be read.
            UnpicklingError: loading the checkpoint would run code. It was not written by this program.
        """
        with _prefix_os_errors(f"checkpoints in {self.where} cannot be read"):
            # By the next save, the processes that wrote these partial files have finished or crashed.
            self._unneeded.update(name for name in self._list() if name.endswith(_PARTIAL))
            while names := self._names(epoch):
                self._made = True
                content = self._read(names[0])
                if content is not None and _checksum(content) in names[0]:
                    return self._load(names[0], content)
                if content is not None:
                    self.warn(f"{self.where}/{names[0]} is damaged and is ignored")
                self._unneeded.add(names[0])
        return None

    def latest_epoch(self) -> int:
        """Return the epoch of the latest checkpoint, from its name alone; 0 if there is none.

        Raises:
            OSError: the storage cannot be read.
        """
        with _prefix_os_errors(f"checkpoints in {self.where} cannot be read"):
            names = self._names()
            return int(names[0].split("-")[1]) if names else 0

    def _load(self, name: str, content: Buffer) -> dict[str, Any]:
        try:
            state: dict[str, Any] = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            message = f"{self.where}/{name} holds more than tensors and plain values, and is not loaded"
            raise pickle.UnpicklingError(message) from error
        return state

    def _list(self) -> list[str]:
        return [found.base_name for found in self.files.get_file_info(fs.FileSelector(self.folder, allow_not_found=True))]

    def _names(self, epoch: int | None = None) -> list[str]:
        """Return the file names of checkpoints that are not known to be damaged, of all epochs or one, latest first."""
        prefix = "epoch-" if epoch is None else f"epoch-{epoch:06d}-"
        whole = (name for name in self._list() if _NAME.fullmatch(name) and name not in self._unneeded)
        return sorted((name for name in whole if name.startswith(prefix)), reverse=True)

    def _write(self, name: str, content: Buffer) -> None:
        if isinstance(self.files, fs.LocalFileSystem):
            if not self._made:
                make_folder(Path(self.folder))
            _write_durably(Path(self.folder) / name, content)
        else:
            # A failed upload leaves no object. An interrupted one may leave a truncated object, since leaving the block, like the
            # stream's destructor, completes the upload.
            with self.files.open_output_stream(f"{self.folder}/{name}") as stream:
                stream.write(content)
        self._made = True

    def _read(self, name: str) -> Buffer | None:
        """Return the content of a file; None if the file does not exist."""
        try:
            with self.files.open_input_file(f"{self.folder}/{name}") as file:
                return file.read_buffer()  # reuses memory: ten times as fast as new bytes
        except FileNotFoundError:
            return None

    def _remove(self, name: str) -> None:
        with suppress(FileNotFoundError):
            self.files.delete_file(f"{self.folder}/{name}")


def _on_cpu(value: Any) -> Any:
    """Copy the tensors of a state to the CPU, so that a machine without a GPU can load it."""
    if isinstance(value, torch.Tensor):
        return value.detach().cpu()
    if isinstance(value, Mapping):
        return {key: _on_cpu(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_on_cpu(each) for each in value)
    return value


def _checksum(content: Buffer) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


@contextmanager
def _prefix_os_errors(failure: str) -> Iterator[None]:
    """Prefix the message of an OSError with what failed."""
    try:
        yield
    except OSError as error:
        raise OSError(f"{failure}: {error}") from error


def _write_durably(path: Path, content: Buffer) -> None:
    """Write a file atomically: it appears under its final name complete or not at all, even after a power failure."""
    partial = path.with_suffix(f".{uuid.uuid4().hex[:8]}{_PARTIAL}")
    try:
        with partial.open("wb") as file:
            apply_group_permissions(partial)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        with suppress(OSError):  # the partial file exists only after a failure
            partial.unlink()
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some file systems do not sync folders
            raise
    finally:
        os.close(folder)
