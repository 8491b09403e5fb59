"""Checkpoints of a run, in one folder on any storage that pyarrow reaches (local, NFS, S3, GCS).

A file is what `torch.save` makes of the state, with its tensors on the CPU: `torch.load(file, weights_only=True)` opens it
anywhere. A file's name carries a checksum of its content: a truncated or altered one is found out, and the one before it is used.
Nothing is removed before what replaces it was read back whole.
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

KEPT = 2
_NAME = re.compile(r"epoch-(\d{6})-([0-9a-f]{16})\.pt")
_PARTIAL = ".partial"


class CheckpointFolder:
    """`<storage>/<name>/epoch-000003-<checksum>.pt`, the newest two.

    One process saves here at a time. A predecessor that was killed and has not died yet does no harm: files may vanish
    at any moment, and nobody removes a whole checkpoint that is newer than its own.

    Storage that fails or is gone raises an OSError of one line with this folder and the reason. The folder is made once,
    at a run's first checkpoint, and never again, and the storage that it is in never: below an unmounted share lies another,
    empty disk.

    Args:
        warn: is told of each damaged file, in one line.
    """

    def __init__(self, storage: str, name: str, warn: Callable[[str], object] = logger.warning) -> None:
        self.files, root, shown = open_storage(storage)
        self.folder = f"{root}/{name}"
        self.where = f"{shown}/{name}"
        self.warn = warn
        self._made = False
        self._rubbish: set[str] = set()

    def save(self, state: dict[str, Any], epoch: int) -> None:
        """Writes a checkpoint, reads it back, then removes those that are no longer needed.

        Raises:
            OSError: it is not there as it was written; those before it are untouched.
        """
        file = io.BytesIO()
        torch.save(_on_cpu(state), file)
        content = py_buffer(file.getbuffer())
        name = f"epoch-{epoch:06d}-{_checksum(content)}.pt"
        with _named(f"checkpoint of epoch {epoch} not saved in {self.where}"):
            self._write(name, content)
            self._rubbish.discard(name)
            written, names = self._read(name), self._names()
            if written is None and names and names[0] > name:
                return  # a predecessor is ahead, and has tidied up
            if written is None or not written.equals(content):
                with suppress(OSError):
                    self._remove(name)
                raise OSError("what was read back is not what was written")
            older = [other for other in names if other < f"epoch-{epoch:06d}"]
            for unneeded in (*older[KEPT - 1 :], *self._rubbish):
                self._remove(unneeded)
            self._rubbish.clear()

    def check_writable(self) -> None:
        """Raise OSError where `save` could keep nothing, so that no epoch is trained in vain.

        The folder of a run that another user began may be one that this user may read only.
        """
        with _named(f"no checkpoint can be saved in {self.where}"):
            if isinstance(self.files, fs.LocalFileSystem):
                folder = Path(self.folder)
                with tempfile.TemporaryFile(dir=folder if folder.exists() else folder.parent):
                    return
            name = f"writable.{uuid.uuid4().hex[:8]}{_PARTIAL}"
            with self.files.open_output_stream(f"{self.folder}/{name}"):
                pass
            self._remove(name)

    def latest(self, epoch: int | None = None) -> dict[str, Any] | None:
        """The newest checkpoint that is whole, on the CPU, or None. With `epoch`: of that epoch only.

        Raises:
            OSError: the storage cannot be read.
            UnpicklingError: the checkpoint would run code when loaded. It was not written here.
        """
        with _named(f"checkpoints in {self.where} cannot be read"):
            # By the next save their writers have either finished or died.
            self._rubbish.update(name for name in self._list() if name.endswith(_PARTIAL))
            while names := self._names(epoch):
                self._made = True
                content = self._read(names[0])
                if content is not None and _checksum(content) in names[0]:
                    return self._load(names[0], content)
                if content is not None:
                    self.warn(f"{self.where}/{names[0]} is damaged and is passed over")
                self._rubbish.add(names[0])
        return None

    def latest_epoch(self) -> int:
        """The epoch of the newest checkpoint, by its name alone; 0 if there is none.

        Raises:
            OSError: the storage cannot be read.
        """
        with _named(f"checkpoints in {self.where} cannot be read"):
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
        """File names of checkpoints that are not known to be damaged, of all epochs or one, newest first."""
        prefix = "epoch-" if epoch is None else f"epoch-{epoch:06d}-"
        whole = (name for name in self._list() if _NAME.fullmatch(name) and name not in self._rubbish)
        return sorted((name for name in whole if name.startswith(prefix)), reverse=True)

    def _write(self, name: str, content: Buffer) -> None:
        if isinstance(self.files, fs.LocalFileSystem):
            if not self._made:
                make_folder(Path(self.folder))
            _write_durably(Path(self.folder) / name, content)
        else:
            # An upload that fails leaves no object. One that is interrupted may leave a truncated one: leaving the block
            # completes it, and so would the stream's destructor.
            with self.files.open_output_stream(f"{self.folder}/{name}") as stream:
                stream.write(content)
        self._made = True

    def _read(self, name: str) -> Buffer | None:
        """What is in a file; None if it is gone."""
        try:
            with self.files.open_input_file(f"{self.folder}/{name}") as file:
                return file.read_buffer()  # memory that is used again: ten times as fast as new bytes
        except FileNotFoundError:
            return None

    def _remove(self, name: str) -> None:
        with suppress(FileNotFoundError):
            self.files.delete_file(f"{self.folder}/{name}")


def _on_cpu(value: Any) -> Any:
    """Return a state with its tensors on the CPU, as a machine without a GPU opens it."""
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
def _named(failure: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OSError(f"{failure}: {error}") from error


def _write_durably(path: Path, content: Buffer) -> None:
    """A file appears under its final name whole or not at all, also when the machine loses its power."""
    partial = path.with_suffix(f".{uuid.uuid4().hex[:8]}{_PARTIAL}")
    try:
        with partial.open("wb") as file:
            apply_group_permissions(partial)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        with suppress(OSError):  # it is there only after a failure
            partial.unlink()
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some file systems sync no folders
            raise
    finally:
        os.close(folder)
