"""Readers of tables of images: Hugging Face `datasets` and Parquet files, in local folders."""

import hashlib
import io
import math
import os
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from resnet_core.config import DataConfig
from resnet_core.data.folders import existing_folder, files_below, readable, state_of
from resnet_core.data.readers import Images, Reader
from resnet_core.fields import reject

COLUMNS = ("image", "label")
TEST_NAMES = ("test", "validation", "val", "valid")
"""Names of splits for testing, the first existing one of which is used."""
SAVED = ("dataset_dict.json", "state.json")
"""Files in a folder that `save_to_disk` wrote."""


class Table:
    """Map-style dataset of the rows of a table: images and class numbers."""

    def __init__(self, images: Any, labels: Sequence[int], keep: object = None) -> None:
        self.images, self.labels, self.keep = images, labels, keep

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return _image(self.images[index]), self.labels[index]


def read_huggingface(config: DataConfig) -> Images:
    """Return the images of a local folder that `datasets` reads: from `save_to_disk`, of Parquet files, or of image files.

    Raises:
        ConfigError: `datasets` is not installed or cannot read the folder, or the columns are others than `image` and `label`.
    """
    try:
        import datasets
    except ImportError as error:
        accepted = f'datasets cannot be imported ({error}); accepted: pip install "resnet-ablations[datasets]"'
        raise reject("data.name", config.name, accepted) from error
    root = existing_folder(config)
    folder = tempfile.TemporaryDirectory(prefix="datasets-")  # its Arrow files; removed with the last table
    try:
        saved = any((root / name).is_file() for name in SAVED)
        found = datasets.load_from_disk(str(root)) if saved else datasets.load_dataset(str(root), cache_dir=folder.name)
    except Exception as error:  # builders raise many types
        raise _unreadable(root, "datasets", error) from error
    parts: dict[str, Any] = dict(found) if isinstance(found, dict) else {"train": found}
    train, test = _train_and_test(root, list(parts))
    chosen = [part for part in (train, test) if part]
    for part in chosen:
        _check_columns(root, parts[part].column_names)
    names = getattr(parts[train].features["label"], "names", None)
    labels, classes = _numbered(root, [list(parts[part]["label"]) for part in chosen], names)
    tables = [Table(parts[part]["image"], each, folder) for part, each in zip(chosen, labels, strict=True)]
    return Images(train=tables[0], test=tables[1] if test else None, classes=classes)


def read_parquet(config: DataConfig) -> Images:
    """Return the images of a folder of Parquet files.

    Files whose names start with `train` and `test` (or `validation`) are splits; without such names, all files are one. The column
    `image` holds encoded images, or flat lists of the uint8 pixels of square images, (H, W) or (H, W, 3).

    Raises:
        ConfigError: files cannot be read, or the columns are others than `image` and `label`.
    """
    import pyarrow
    from pyarrow import parquet

    root = existing_folder(config)
    files = sorted(root.glob("*.parquet"))
    if not files:
        raise reject("data.root", str(root), "accepted: a folder of files *.parquet")
    by_split: dict[str, list[Path]] = {}
    for file in files:
        by_split.setdefault(re.split(r"[^a-z]", file.name.lower())[0], []).append(file)
    if "train" not in by_split:
        by_split = {"train": files}
    train, test = _train_and_test(root, list(by_split))
    chosen = [part for part in (train, test) if part]
    tables = []
    for part in chosen:
        try:
            for file in by_split[part]:
                _check_columns(root, parquet.read_schema(file).names)
            tables.append([parquet.read_table(file, columns=list(COLUMNS)) for file in by_split[part]])
        except (OSError, pyarrow.ArrowException) as error:
            raise _unreadable(root, "pyarrow", error) from error
    columns = [[label for table in each for label in table["label"].to_pylist()] for each in tables]
    labels, classes = _numbered(root, columns, None)
    images = [[image for table in each for image in table["image"]] for each in tables]  # decoded one by one
    parts = [Table(found, each) for found, each in zip(images, labels, strict=True)]
    return Images(train=parts[0], test=parts[1] if test else None, classes=classes)


READERS: dict[str, Reader] = {"huggingface": read_huggingface, "parquet": read_parquet}
"""Readers by `data.name`."""


def state(config: DataConfig) -> str:
    """Return a hash of the names, sizes and times of change of all files below `data.root`."""
    found = hashlib.sha256()
    with readable(config):
        for entry in files_below(existing_folder(config)):
            found.update(state_of(os.fsencode(entry.path), entry.stat()))
    return found.hexdigest()


def _train_and_test(root: Path, names: list[str]) -> tuple[str, str | None]:
    if "train" not in names:
        raise reject("data.root", str(root), f"has the splits {', '.join(names)}; accepted: train, and test or validation")
    return "train", next((name for name in TEST_NAMES if name in names), None)


def _check_columns(root: Path, names: Sequence[str]) -> None:
    if missing := [name for name in COLUMNS if name not in names]:
        accepted = f"has the columns {', '.join(names)}, without {' and '.join(missing)}; accepted: {' and '.join(COLUMNS)}"
        raise reject("data.root", str(root), accepted)


def _numbered(root: Path, columns: Sequence[Sequence[Any]], names: Sequence[str] | None) -> tuple[list[list[int]], tuple[str, ...]]:
    """Return labels as class numbers, and the names of the classes: the given ones, else the sorted labels."""
    for column in columns:
        if None in column:
            accepted = f"has no label in row {column.index(None)}; accepted: a label for each image"
            raise reject("data.root", str(root), accepted)
        for row, value in enumerate(column):
            if not isinstance(value, type(columns[0][0])) or not isinstance(value, (int, str)):
                raise reject("data.root", str(root), f"has the label {value!r} in row {row}; accepted: whole numbers, or names")
    if names:
        return [list(column) for column in columns], tuple(names)
    try:
        known = sorted({value for column in columns for value in column})
    except TypeError as error:  # lists, or text among numbers
        accepted = f"has labels that are no names of classes ({error}); accepted: whole numbers, or text"
        raise reject("data.root", str(root), accepted) from error
    number = {value: index for index, value in enumerate(known)}
    return [[number[value] for value in column] for column in columns], tuple(map(str, known))


def _image(value: Any) -> Any:
    """Return the PIL image or the array of a cell: an image, encoded bytes, or a flat list of pixels."""
    value = value.as_py() if hasattr(value, "as_py") else value
    if isinstance(value, dict):  # bytes and path, as Hugging Face stores images
        value = value.get("bytes")
    if isinstance(value, bytes):
        return Image.open(io.BytesIO(value))
    if isinstance(value, list) and value and isinstance(value[0], int):
        pixels = np.asarray(value)
        if pixels.min() < 0 or pixels.max() > 255:
            raise ValueError(f"pixels from {pixels.min()} to {pixels.max()}; accepted: 0 to 255")
        for channels in (1, 3):
            side = math.isqrt(len(value) // channels)
            if channels * side**2 == len(value):
                return pixels.astype(np.uint8).reshape(side, side, channels)
        raise ValueError(f"{len(value)} pixels; accepted: those of a square gray or RGB image")
    if isinstance(value, list):
        rows = np.asarray(value)
        whole = rows.dtype.kind in "iu" and rows.size and rows.min() >= 0 and rows.max() <= 255
        return rows.astype(np.uint8) if whole else rows  # fractions would be cut off
    return value


def _unreadable(root: Path, library: str, error: Exception) -> Exception:
    return reject("data.root", str(root), f"{library} cannot read it ({type(error).__name__}: {' '.join(str(error).split())})")
