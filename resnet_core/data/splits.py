"""Parts of a data set, and stratified splits that are the same for all runs."""

import math
import os
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

SPLIT_SEED = 0
"""Seed of all splits, fixed so that the held-out images do not depend on a run's seed."""


class Split(NamedTuple):
    """Images in memory and their labels."""

    images: NDArray[np.uint8]
    """Pixels (N, C, H, W), uint8."""
    labels: NDArray[np.int64]
    """Class numbers (N,), int64."""


class Files(NamedTuple):
    """Images on disk and their labels."""

    root: str
    """Folder of the files."""
    names: NDArray[np.bytes_]
    """Paths below the folder (N,), as bytes. An array, not a list, so that a million names stay shared with forked processes."""
    labels: NDArray[np.int64]
    """Class numbers (N,), int64."""

    def path(self, index: int) -> str:
        """Return the path of a file by its position."""
        return os.path.join(self.root, os.fsdecode(bytes(self.names[index])))


Part = TypeVar("Part", bound=Split | Files)


def take(part: Part, index: NDArray[Any]) -> Part:
    """Return the images at these positions, in their original order."""
    index = np.sort(index)
    if isinstance(part, Files):
        return part._replace(names=part.names[index], labels=part.labels[index])
    return part._replace(images=part.images[index], labels=part.labels[index])


def subset(part: Part, count: int | None) -> Part:
    """Return at most `count` images, balanced over the classes. None: all images."""
    if count is None or count >= len(part.labels):
        return part
    rank, _ = _class_ranks(part.labels)
    return take(part, np.lexsort((part.labels, rank))[:count])


def hold_out(part: Part, share: float) -> tuple[Part, Part]:
    """Return the remaining images and a held-out fraction of every class. At least one image of each class remains.

    Args:
        part: images to split.
        share: fraction to hold out, from 0 to below 1.
    """
    rank, size = _class_ranks(part.labels)
    last = rank == size - 1
    order = np.lexsort((part.labels, (rank + 0.5) / size, last))
    wanted = math.ceil(len(order) * share - 1e-9)  # rounding of a share such as 0.1 must not hold out one image more
    count = min(wanted, int(np.sum(~last)))
    return take(part, order[count:]), take(part, order[:count])


def _class_ranks(labels: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return each image's position in a fixed random order of its class, and the size of its class."""
    order = np.random.RandomState(SPLIT_SEED).permutation(len(labels))
    by_class = order[np.argsort(labels[order], kind="stable")]
    sizes = np.bincount(labels)
    firsts = np.cumsum(sizes) - sizes
    rank = np.empty(len(labels), np.int64)
    rank[by_class] = np.arange(len(labels)) - firsts[labels[by_class]]
    return rank, sizes[labels]
