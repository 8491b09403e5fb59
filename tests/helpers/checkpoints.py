"""Checkpoint states, and a small disk for tests of full disks."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from ablations.engine.trial.checkpoints import CheckpointFolder


def state(epoch: int, numbers: int = 3) -> dict[str, object]:
    return {"weights": torch.full((numbers,), float(epoch)), "history": [{"epoch_seconds": 1.0}] * epoch}


def epoch_of(folder: CheckpointFolder) -> int | None:
    latest = folder.latest()
    return None if latest is None else len(latest["history"])


@contextmanager
def small_disk(path: Path, size: str) -> Iterator[None]:
    path.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", path], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"needs the right to mount a small disk: {mounted.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", path], check=True)
