"""Data sets in memory: generated classes and decoded folders."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress

import numpy as np
from numpy.typing import NDArray

from resnet_core.config import DataConfig
from resnet_core.data.decoding import decode_square, is_gray, opened
from resnet_core.data.indexing import read_files
from resnet_core.data.splits import SPLIT_SEED, Files, Split
from resnet_core.fields import ConfigError, reject
from resnet_core.heartbeat import Heartbeat, no_heartbeat

MEMORY_LIMIT_GIB = 16
"""Maximum size of the images in memory, in GiB."""
SYNTHETIC_CLASSES = 10
SYNTHETIC_EXAMPLES = 512
"""Default number of generated training images."""
SYNTHETIC_BYTES = 3 * 8
"""Memory per value while images are generated, in bytes: three float64 arrays exist at a time."""


def make_synthetic(config: DataConfig) -> tuple[tuple[str, ...], Split, Split]:
    """Return generated images of ten classes: a fixed random pattern per class, with noise; equal on every machine."""
    size = config.image_size or 32
    examples = {"train_examples": config.train_examples or SYNTHETIC_EXAMPLES, "test_examples": config.test_examples or 128}
    _check_synthetic(size, examples)
    random = np.random.RandomState(SPLIT_SEED)
    patterns = random.randint(64, 192, (SYNTHETIC_CLASSES, 3, size, size))

    def make(count: int) -> Split:
        labels = np.arange(count) % SYNTHETIC_CLASSES
        noise = random.normal(0, 48, (count, 3, size, size))
        return Split(np.clip(patterns[labels] + noise, 0, 255).astype(np.uint8), labels.astype(np.int64))

    return tuple(map(str, range(SYNTHETIC_CLASSES))), make(examples["train_examples"]), make(examples["test_examples"])


def _check_synthetic(size: int, examples: dict[str, int]) -> None:
    def too_many(count: int) -> bool:
        return SYNTHETIC_BYTES * 3 * size**2 * (SYNTHETIC_CLASSES + count) > MEMORY_LIMIT_GIB * 2**30

    most = max(examples, key=examples.__getitem__)
    if too_many(examples[most]):
        name, value = ("data.image_size", size) if too_many(SYNTHETIC_EXAMPLES) else (f"data.{most}", examples[most])
        raise reject(name, value, f"more than {MEMORY_LIMIT_GIB} GiB of memory to generate: set it lower")


def decode_files(
    config: DataConfig, train: Files, test: Files, *, found: Sequence[Files] = (), heartbeat: Heartbeat = no_heartbeat
) -> tuple[Split, Split, Counter[str]]:
    """Return the decoded training and evaluation images of a folder, and the number of images by kind of change.

    Args:
        config: data set; `image_size` is the size of the decoded images.
        train: training images.
        test: evaluation images.
        found: all images of the folder. If one of them is in color, all get three channels, so that the number of channels, and
            with it the network, does not depend on which images are used.
        heartbeat: called for each file.

    Raises:
        ConfigError: files cannot be decoded, differ in size, are not square or exceed the memory limit.
    """
    paths = list(_paths(train, test))
    _check_memory(paths, config.image_size)
    decoded = read_files(lambda path: decode_square(path, config.image_size), paths, root=config.root, heartbeat=heartbeat)
    arrays = [image for image, _ in decoded]
    colors = any(image.shape[2] == 3 for image in arrays) or _have_colors(_paths(*found), set(paths), heartbeat)
    images = _stacked(paths, arrays, 3 if colors else 1)
    border = len(train.labels)
    counts = Counter(change for _, changed in decoded for change in changed)
    return Split(images[:border], train.labels), Split(images[border:], test.labels), counts


def _paths(*parts: Files) -> Iterator[str]:
    return (part.path(i) for part in parts for i in range(len(part.labels)))


def _have_colors(paths: Iterable[str], known: set[str], heartbeat: Heartbeat) -> bool:
    """Return True if an image outside `known` is in color, by its header. Unreadable files are ignored, as they are not used."""

    def has_colors(path: str) -> bool:
        with suppress(ConfigError), opened(path) as file:
            return not is_gray(file)
        return False

    return any(read_files(has_colors, (path for path in paths if path not in known), heartbeat=heartbeat))


def _check_memory(paths: list[str], size: int | None) -> None:
    """Raise ConfigError if the images exceed the memory limit, as estimated from the first decodable one."""
    for path in paths:
        with suppress(ConfigError):  # undecodable files are reported together later
            # Decode at size 1 if images are resized: one image may be too large already.
            height, width, channels = decode_square(path, size and 1)[0].shape
            break
    else:
        return
    needed_gib = len(paths) * (size * size if size else height * width) * channels / 2**30
    if needed_gib > MEMORY_LIMIT_GIB:
        accepted = f"{needed_gib:.0f} GiB to hold in memory, at most {MEMORY_LIMIT_GIB}: set it lower, or data.stream=true"
        raise reject("data.image_size", size, accepted)


def _stacked(paths: list[str], images: list[NDArray[np.uint8]], channels: int) -> NDArray[np.uint8]:
    images = [np.broadcast_to(image, (*image.shape[:2], channels)) for image in images]
    for path, image in zip(paths, images, strict=True):
        if image.shape[:2] != images[0].shape[:2]:
            (h, w), (h0, w0) = image.shape[:2], images[0].shape[:2]
            raise reject("data.image_size", None, f"{paths[0]} has {w0}×{h0} pixels, {path} has {w}×{h}: set one size")
    if images[0].shape[0] != images[0].shape[1]:
        raise reject("data.image_size", None, f"{paths[0]} is not square: set a size")
    return np.ascontiguousarray(np.stack(images).transpose(0, 3, 1, 2))
