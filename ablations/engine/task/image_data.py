"""Images of a study's cells: they may be trained on different images, but must be scored on the same ones."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

import numpy as np

from resnet_core.config import DataConfig
from resnet_core.data.datasets import Dataset
from resnet_core.data.indexing import file_digests
from resnet_core.data.splits import Files, Split
from resnet_core.fields import ConfigError

TRANSFORM_FIELDS = (
    "scale",
    "color_augmentation",
    "normalize",
    "extra_tests",
    "decode_workers",
    "pad",
    "flip",
    "mixup",
    "cutmix",
    "erasing",
)
"""Fields of `DataConfig` that transform images without affecting which images are selected."""
_DEFAULTS: dict[str, Any] = {f.name: f.default for f in fields(DataConfig) if f.name in TRANSFORM_FIELDS}


def image_selection(config: DataConfig) -> DataConfig:
    """Return a configuration with only the fields that select images; the other fields have their defaults."""
    return replace(config, **_DEFAULTS)


def selects_images(field: str) -> bool:
    """Return whether a field, given by its dotted name, affects which images are selected."""
    section, _, leaf = field.rpartition(".")
    return section == "data" and leaf not in TRANSFORM_FIELDS


def same_test_images(one: Dataset, other: Dataset) -> bool:
    """Return whether runs on two data sets are scored on the same images, cropped to the same size.

    Normalization may differ: each run normalizes images by the statistics of its own training images.
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


def check_comparable(factors: Mapping[str, str], data: Sequence[Dataset], evaluation_split: str) -> None:
    """Raise ConfigError if the cells of these factors would be scored on different images.

    Args:
        factors: each factor with its levels as text, `depth=20,56`, by dotted name of the field.
        data: data sets of all cells.
        evaluation_split: name of the images that runs are scored on, `test` or `validation`.
    """
    if all(same_test_images(data[0], other) for other in data[1:]):
        return
    selecting = [text for name, text in factors.items() if selects_images(name)]
    reason = f"cannot be a factor: cells would be scored on different images of {data[0].name}"
    raise ConfigError(f"{' '.join(selecting)}: {reason}; accepted: fields that do not change the {evaluation_split} images")


def test_images_digest(dataset: Dataset) -> str:
    """Return a hash of the images, labels and classes that runs are scored on.

    For streamed images it covers file names only, since a data set does not keep hashes of their content.
    """
    digest = hashlib.sha256(json.dumps([dataset.classes, dataset.crop]).encode())
    images = dataset.test.images if isinstance(dataset.test, Split) else dataset.test.names
    for array in (dataset.test.labels, images):
        digest.update(f"{array.dtype}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()[:20]
