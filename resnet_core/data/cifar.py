"""CIFAR-10 and CIFAR-100 as torchvision keeps them, and their download."""

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
"""Where torchvision keeps them below `data.root`."""
GROWTH_POLL_SECONDS = 0.5
CORRUPT = (RuntimeError, OSError, EOFError, KeyError)
"""What torchvision raises for files that are missing or damaged."""


def read_cifar(config: DataConfig) -> tuple[tuple[str, ...], Split, Split | None]:
    """Class names, training and test images; the latter None where scored images are held out of the training images.

    Raises:
        ConfigError: incomplete or corrupt, with the command that gets the data.
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
    """Return a hash of the files' names, sizes and times of change; of no files where there are none."""
    found = hashlib.sha256()
    folder = cifar_root(config) / FOLDERS[config.name]
    with readable(config):
        for entry in files_below(folder) if folder.is_dir() else ():
            found.update(state_of(os.fsencode(entry.path), entry.stat()))
    return found.hexdigest()


def download(config: DataConfig, *, heartbeat: Heartbeat = no_heartbeat) -> None:
    """Downloads what is not there yet. Of several processes, also on a shared folder, one does and the others wait for it.

    Args:
        config: which data set.
        heartbeat: called while this process waits for another one, and while files arrive.

    Raises:
        ConfigError: not a data set that can be downloaded, or the download failed; nothing is left behind.
    """
    if config.name not in FOLDERS:
        instead = {"digits": "comes with scikit-learn", "synthetic": "is generated"}.get(config.name, "put it into data.root")
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
    # Elsewhere first, then renamed: whatever breaks off, the folder is complete or absent, and the archive does not stay.
    with tempfile.TemporaryDirectory(dir=root, prefix=f".{name}-", ignore_cleanup_errors=True) as partial:
        with _growth_watched(Path(partial), heartbeat):
            _torchvision(config, Path(partial), train=True, download=True)
        if (root / name).exists():  # incomplete or corrupt
            (root / name).rename(Path(partial) / "before")
        (Path(partial) / name).rename(root / name)


@contextmanager
def _growth_watched(folder: Path, heartbeat: Heartbeat) -> Iterator[None]:
    """Give a sign of life whenever the files below a folder have grown: torchvision downloads and unpacks without one."""
    over = threading.Event()

    def watch() -> None:
        seen = 0
        while not over.wait(GROWTH_POLL_SECONDS):
            with suppress(OSError):  # a file that was renamed meanwhile
                size = sum(path.stat().st_size for path in folder.rglob("*"))
                if size > seen:
                    heartbeat()
                seen = size

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@functools.lru_cache(maxsize=len(FOLDERS))  # takes the checksums of all files
def _is_complete(config: DataConfig, _: str) -> bool:
    """Whether all files are there and whole, in a state of the folder."""
    try:
        _torchvision(config, cifar_root(config), train=False)  # compares the checksums of all files
    except CORRUPT:
        return False
    return True


def cifar_root(config: DataConfig) -> Path:
    """Where the data are, or would be."""
    return Path(os.path.expanduser(config.root or "")).absolute()


def _torchvision(config: DataConfig, root: Path, *, train: bool, download: bool = False):  # type: ignore[no-untyped-def]
    from torchvision.datasets import CIFAR10, CIFAR100

    return {"cifar10": CIFAR10, "cifar100": CIFAR100}[config.name](root, train=train, download=download)


def _split(part) -> Split:  # type: ignore[no-untyped-def]
    return Split(np.ascontiguousarray(part.data.transpose(0, 3, 1, 2)), np.asarray(part.targets, np.int64))
