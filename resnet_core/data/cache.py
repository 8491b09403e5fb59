"""Cache of decoded data sets: arrays in a folder that all processes of a machine share by memory-mapping."""

import functools
import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from resnet_core.config import DataConfig
from resnet_core.data.splits import Files, Split
from resnet_core.fields import reject
from resnet_core.identity import normalized_source

READERS = ("cifar", "datasets", "decoding", "folders", "indexing", "readers", "sources", "splits", "tables")
"""Modules whose code determines the cached arrays."""


def cache_key(config: DataConfig, state: str) -> str:
    """Return the name of a data set's folder in the cache.

    It contains a hash of the configuration, of the state of the files and of the code that reads them.

    Args:
        config: data set.
        state: hash of the files' names, sizes and times of change.
    """
    source: list[Any] = [config.name, config.image_size, config.train_examples, config.test_examples]
    source += [config.validation, config.streamed, state]
    return f"{config.name}-{hashlib.sha256(json.dumps([source, _code()]).encode()).hexdigest()[:16]}"


@functools.cache
def _code() -> list[str]:
    """Return the normalized sources of `READERS`."""
    return [normalized_source((Path(__file__).parent / f"{name}.py").read_text(encoding="utf-8")) for name in READERS]


@contextmanager
def writable(cache: Path) -> Iterator[None]:
    """Turn an OSError into a ConfigError that names the cache folder."""
    try:
        yield
    except OSError as error:
        raise reject("cache", str(cache), f"the folder cannot be written ({error.strerror or error})") from error


def write(folder: Path, meta: dict[str, Any], train: Split | Files, test: Split | Files) -> None:
    """Write a data set atomically: after a crash, the folder is either complete or absent.

    Args:
        folder: folder of the data set; an existing one is replaced.
        meta: JSON values to store beside the arrays.
        train: training images.
        test: images that runs are evaluated on.
    """
    shutil.rmtree(folder, ignore_errors=True)
    partial = Path(tempfile.mkdtemp(dir=folder.parent))
    for name, part in (("train", train), ("test", test)):
        for column, array in part._asdict().items():
            if isinstance(array, np.ndarray):
                np.save(partial / f"{name}-{column}.npy", array)
    roots = [part.root for part in (train, test) if isinstance(part, Files)]
    (partial / "meta.json").write_text(json.dumps(meta | {"roots": roots}))
    partial.rename(folder)


def read(folder: Path) -> tuple[dict[str, Any], Split, Split] | tuple[dict[str, Any], Files, Files]:
    """Return the data set that `write` stored; raise OSError, EOFError, ValueError or KeyError if it is incomplete."""
    meta = json.loads((folder / "meta.json").read_text())
    # Copy-on-write mapping: processes share pages, and torch wraps a writable array without a warning.
    if roots := meta.pop("roots"):
        train_root, test_root = roots
        return meta, _files(folder, "train", train_root), _files(folder, "test", test_root)
    return meta, _split(folder, "train"), _split(folder, "test")


def _split(folder: Path, name: str) -> Split:
    return Split(np.load(folder / f"{name}-images.npy", mmap_mode="c"), np.load(folder / f"{name}-labels.npy"))


def _files(folder: Path, name: str, root: str) -> Files:
    return Files(root, np.load(folder / f"{name}-names.npy", mmap_mode="c"), np.load(folder / f"{name}-labels.npy"))
