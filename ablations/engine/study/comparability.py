"""The data of a study's cells: which images each is trained on, and whether all are scored on the same ones."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from ablations.engine.study.factors import Level, format_level
from resnet_core import ConfigError, RunSpec, fingerprint
from resnet_core.config import DataConfig
from resnet_core.data.datasets import Dataset, load_dataset
from resnet_core.data.indexing import file_digests
from resnet_core.data.splits import Files, Split
from resnet_core.overrides import field_name

TRANSFORM_FIELDS = ("scale", "colour", "normalise", "extra_tests", "decode_workers", "pad", "flip")
"""Fields of `DataConfig` that say what becomes of images, not which images there are."""
_DEFAULTS: dict[str, Any] = {f.name: f.default for f in fields(DataConfig) if f.name in TRANSFORM_FIELDS}


def image_selection(config: DataConfig) -> DataConfig:
    """Return what of a configuration decides which images there are, with the other fields at their defaults."""
    return replace(config, **_DEFAULTS)


def selects_images(field: str) -> bool:
    """Return whether a field, by its dotted name, decides which images there are."""
    section, _, leaf = field.rpartition(".")
    return section == "data" and leaf not in TRANSFORM_FIELDS


def load_datasets(specs: Iterable[RunSpec], cache: Path, *, download: bool) -> dict[DataConfig, Dataset]:
    """Return the data sets of these runs, each loaded once, by `images_of`; raises ConfigError for one that cannot be used."""
    wanted = dict.fromkeys(image_selection(spec.data) for spec in specs)
    return {config: load_dataset(config, cache, download=download) for config in wanted}


def same_test_images(one: Dataset, other: Dataset) -> bool:
    """Return whether runs on two data sets are scored on the same images, cut to the same size.

    Normalisation may differ: each run normalises images by its own training images.
    """
    if one.version == other.version and one.crop == other.crop:
        return True
    if (one.classes, one.crop) != (other.classes, other.crop) or not np.array_equal(one.test.labels, other.test.labels):
        return False
    if isinstance(one.test, Split) and isinstance(other.test, Split):
        return np.array_equal(one.test.images, other.test.images)
    if isinstance(one.test, Files) and isinstance(other.test, Files):
        if one.test.root == other.test.root:
            return np.array_equal(one.test.names, other.test.names)
        (digests, others), _ = file_digests([one.test, other.test])
        return np.array_equal(digests, others)
    return False


def check_comparable(factors: Mapping[str, Sequence[Level]], data: Sequence[Dataset], scored_on: str) -> None:
    """Raise ConfigError if the cells that these factors make would be scored on different images.

    Args:
        factors: levels by field.
        data: of all cells.
        scored_on: name of the images that count, `test` or `validation`.
    """
    if all(same_test_images(data[0], other) for other in data[1:]):
        return
    guilty = [
        f"{name}={','.join(map(format_level, levels))}" for name, levels in factors.items() if selects_images(field_name(name))
    ]
    reason = f"cannot be a factor: cells would be scored on different images of {data[0].name}"
    raise ConfigError(f"{' '.join(guilty)}: {reason}; accepted: what leaves the {scored_on} images as they are")


def test_images_digest(dataset: Dataset) -> str:
    """Return a hash of what runs are scored on: classes, labels, and images.

    Of streamed images it holds the names only: a data set does not keep the hashes of their content.
    """
    digest = hashlib.sha256(json.dumps([dataset.classes, dataset.crop]).encode())
    images = dataset.test.images if isinstance(dataset.test, Split) else dataset.test.names
    for array in (dataset.test.labels, images):
        digest.update(f"{array.dtype}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()[:20]


def training_key(spec: RunSpec, dataset: Dataset) -> str:
    """Return a key that is equal for cells whose runs differ in the seed only.

    A `train_examples` above the size of the training set counts as all images.
    """
    return fingerprint(replace(spec, seed=0), data_version=dataset.version)
