"""Parts of a data set and how they are split: always class by class, and the same for everybody."""

import math
import os
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

SPLIT_SEED = 0
"""Fixed: which images are held out does not depend on a run's seed."""


class Split(NamedTuple):
    """Images in memory (N, C, H, W), uint8, and labels (N,), int64."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]


class Files(NamedTuple):
    """Images on disk: names below a folder (N,) and labels (N,), int64."""

    root: str
    names: NDArray[np.bytes_]
    """As the file system spells them. One array, not a list: a million names shared with forked processes stay shared."""
    labels: NDArray[np.int64]

    def path(self, index: int) -> str:
        return os.path.join(self.root, os.fsdecode(bytes(self.names[index])))


Part = TypeVar("Part", bound=Split | Files)


def take(part: Part, index: NDArray[Any]) -> Part:
    """The images with these places, in the order of the whole."""
    index = np.sort(index)
    if isinstance(part, Files):
        return part._replace(names=part.names[index], labels=part.labels[index])
    return part._replace(images=part.images[index], labels=part.labels[index])


def subset(part: Part, count: int | None) -> Part:
    """At most `count` images, of all classes as evenly as possible."""
    if count is None or count >= len(part.labels):
        return part
    rank, _ = _class_ranks(part.labels)
    return take(part, np.lexsort((part.labels, rank))[:count])


def hold_out(part: Part, share: float) -> tuple[Part, Part]:
    """What is left and what is held out: this share of every class, but never the last image of one."""
    rank, size = _class_ranks(part.labels)
    last = rank == size - 1
    order = np.lexsort((part.labels, (rank + 0.5) / size, last))
    wanted = math.ceil(len(order) * share - 1e-9)  # a share such as 0.1 is no exact number
    held = min(wanted, int(np.sum(~last)))
    return take(part, order[held:]), take(part, order[:held])


def _class_ranks(labels: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Each image's place in a fixed random order of its class, and how many images the class has."""
    order = np.random.RandomState(SPLIT_SEED).permutation(len(labels))
    by_class = order[np.argsort(labels[order], kind="stable")]
    sizes = np.bincount(labels)
    firsts = np.cumsum(sizes) - sizes
    rank = np.empty(len(labels), np.int64)
    rank[by_class] = np.arange(len(labels)) - firsts[labels[by_class]]
    return rank, sizes[labels]
