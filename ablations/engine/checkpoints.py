"""Checkpoints of a run, in one folder on any storage that pyarrow reaches (local, NFS, S3, GCS).

A file appears under its final name whole or not at all, and its name carries a checksum of its content: a truncated or
altered one is found out, and the one before it is used.
"""

import hashlib
import io
import logging
import os
import re
from pathlib import Path
from typing import Any

import torch
from pyarrow import fs

logger = logging.getLogger(__name__)

KEPT = 2
_NAME = re.compile(r"epoch-(\d{6})-([0-9a-f]{16})\.pt")


class CheckpointFolder:
    """`<storage>/<name>/epoch-000003-<checksum>.pt`, the newest two."""

    def __init__(self, storage: str, name: str) -> None:
        self.files, root = fs.FileSystem.from_uri(storage) if "://" in storage else (fs.LocalFileSystem(), storage)
        self.folder = f"{root.rstrip('/')}/{name}"

    def save(self, state: dict[str, Any], epoch: int) -> None:
        """Writes a checkpoint, then removes those that are no longer needed."""
        buffer = io.BytesIO()
        torch.save(state, buffer)
        content = buffer.getbuffer()
        name = f"epoch-{epoch:06d}-{hashlib.sha256(content).hexdigest()[:16]}.pt"
        if isinstance(self.files, fs.LocalFileSystem):
            _write_durably(Path(self.folder) / name, content)
        else:
            with self.files.open_output_stream(f"{self.folder}/{name}") as stream:  # object stores: whole or not at all
                stream.write(content)
        for old in self._names()[KEPT:]:
            self.files.delete_file(f"{self.folder}/{old}")

    def latest(self) -> dict[str, Any] | None:
        """The newest checkpoint that is whole, on the CPU, or None."""
        for name in self._names():
            with self.files.open_input_stream(f"{self.folder}/{name}") as stream:
                content = stream.read()
            if hashlib.sha256(content).hexdigest()[:16] in name:
                state: dict[str, Any] = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
                return state
            logger.warning("%s/%s is damaged and is passed over", self.folder, name)
        return None

    def _names(self) -> list[str]:
        """File names of checkpoints, newest first."""
        found = self.files.get_file_info(fs.FileSelector(self.folder, allow_not_found=True))
        return sorted((f.base_name for f in found if _NAME.fullmatch(f.base_name)), reverse=True)


def _write_durably(path: Path, content: memoryview) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.partial")
    with partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
