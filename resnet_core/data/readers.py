"""Data sets that users bring: the images that a reader returns, checked and held in memory."""

from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from resnet_core.config import DataConfig
from resnet_core.data.decoding import square_pixels
from resnet_core.data.folders import TEST_FRACTION
from resnet_core.data.sources import MEMORY_LIMIT_GIB
from resnet_core.data.splits import Split, hold_out
from resnet_core.fields import ConfigError
from resnet_core.heartbeat import Heartbeat

CHANNELS = (1, 3)
"""Accepted numbers of color channels: gray and RGB."""
ACCEPTED_PART = "accepted: a pair of arrays (images, labels), or a map-style dataset of pairs (image, label)"


@dataclass(frozen=True, kw_only=True)
class Images:
    """Data set that a reader returns.

    A part is a pair of arrays (images, labels), or a map-style dataset that yields pairs (image, label). Arrays of images are uint8
    (N, C, H, W) or (N, H, W, C); labels are class numbers (N,). An image of a dataset is a PIL image or a uint8 array. Datasets are
    read into memory once, images of PIL resized to `data.image_size`.
    """

    train: Any
    """Training images and their labels."""
    test: Any = None
    """Test images and their labels. None: a fifth of each class of the training images is held out."""
    classes: Sequence[str]
    """Names of the classes, in order of their labels."""
    version: str | None = None
    """Text that is part of a run's identity beside a hash of the content: a new one trains anew. Images of map-style datasets that
    have one are decoded once for all processes of a machine."""


Reader = Callable[[DataConfig], Images]
"""Function from the configuration of the data, such as `data.root`, to the images."""


@dataclass(frozen=True)
class ReadImages:
    """Images of a reader, checked and in memory."""

    classes: tuple[str, ...]
    train: Split
    test: Split | None
    """None: not read, since a validation split is held out of the training images."""
    scored: str
    """Origin of the evaluation images, in words; empty for a validation split."""


def call_reader(reader: Reader, config: DataConfig) -> Images:
    """Return the images of a reader, unread; raise ConfigError if it fails or returns something else."""
    name = reader_name(reader)
    try:
        found = reader(config)
    except ConfigError:
        raise
    except Exception as error:  # code of users may raise anything
        raise ConfigError(f"{name}: {type(error).__name__}: {' '.join(str(error).split())}") from error
    if not isinstance(found, Images):
        raise ConfigError(f"{name}: returns {type(found).__name__}; accepted: resnet_core.Images")
    listed = isinstance(found.classes, Iterable) and not isinstance(found.classes, str)
    classes = list(found.classes) if listed else []
    if len(classes) < 2 or not all(isinstance(each, str) for each in classes) or len({*classes}) < len(classes):
        raise ConfigError(f"{name}: classes={found.classes!r:.80}: accepted: at least two different names")
    if not (found.version is None or isinstance(found.version, str)):
        raise ConfigError(f"{name}: version={found.version!r}: accepted: text, or None")
    return found


def is_lazy(images: Images) -> bool:
    """Return whether all images are in map-style datasets, so that none is read yet."""
    return not any(isinstance(part, tuple) for part in (images.train, images.test))


def reader_name(reader: Reader) -> str:
    """Return the name of a reader for messages."""
    return getattr(reader, "__name__", type(reader).__name__)


def in_memory(name: str, found: Images, config: DataConfig, heartbeat: Heartbeat) -> ReadImages:
    """Return the images of a reader in memory.

    Args:
        name: name of the reader, for messages.
        found: images that it returned.
        config: data set. With a validation split, the test images are not read.
        heartbeat: called for each image of a dataset.

    Raises:
        ConfigError: images or labels have another form, differ in size, or exceed the memory limit.
    """
    classes = tuple(found.classes)
    wanted = {"train": found.train} | ({"test": found.test} if found.test is not None and not config.validation else {})
    parts = {part: _split(f"{name}: {part}", each, config, len(classes), heartbeat) for part, each in wanted.items()}
    channels = max(each.images.shape[1] for each in parts.values())
    for part, each in parts.items():
        parts[part] = each = each._replace(images=np.repeat(each.images, channels // each.images.shape[1], 1))
        if each.images.shape[1:] != parts["train"].images.shape[1:]:
            raise ConfigError(f"{name}: images of train and {part} differ in size; accepted: one size, or data.image_size")
    train, test = parts["train"], parts.get("test")
    if config.validation:
        return ReadImages(classes, train, None, "")
    if test is None:
        return ReadImages(classes, *hold_out(train, TEST_FRACTION), "a fifth of each class, held out")
    return ReadImages(classes, train, test, "its test set")


def _split(name: str, part: Any, config: DataConfig, classes: int, heartbeat: Heartbeat) -> Split:
    if isinstance(part, tuple):
        if len(part) != 2:
            raise ConfigError(f"{name} is a tuple of {len(part)}; {ACCEPTED_PART}")
        images, labels = _array(name, part[0]), _as_array(f"labels of {name}", part[1])
    elif isinstance(part, Sized) and hasattr(part, "__getitem__"):
        images, labels = _decoded(name, part, config, heartbeat)
    else:
        raise ConfigError(f"{name} is a {type(part).__name__}; {ACCEPTED_PART}")
    if config.image_size not in (None, images.shape[2]):
        accepted = f"the images of {name} have {images.shape[2]} pixels; accepted: {images.shape[2]}, or images of PIL"
        raise ConfigError(f"data.image_size={config.image_size}: {accepted}")
    if labels.shape != images.shape[:1] or labels.dtype.kind not in "iu" or len(labels) == 0:
        given = f"labels {labels.shape} of {labels.dtype} for {len(images)} images"
        raise ConfigError(f"{name} has {given}; accepted: a whole number for each of at least one image")
    if labels.min() < 0 or labels.max() >= classes:
        raise ConfigError(f"{name} has labels from {labels.min()} to {labels.max()}; accepted: 0 to {classes - 1}, a class each")
    return Split(images, labels.astype(np.int64))


def _array(name: str, images: Any) -> NDArray[np.uint8]:
    """Return images (N, C, H, W) of an array in this or another order of its dimensions."""
    found = _as_array(f"images of {name}", images)
    shape = found.shape
    if found.dtype == np.uint8 and found.ndim == 4:
        if shape[1] in CHANNELS and shape[2] == shape[3]:
            return np.ascontiguousarray(found)
        if shape[3] in CHANNELS and shape[1] == shape[2]:
            return np.ascontiguousarray(found.transpose(0, 3, 1, 2))
    accepted = "accepted: square images of uint8, (N, C, H, W) or (N, H, W, C), with 1 or 3 channels"
    raise ConfigError(f"{name} has images {shape} of {found.dtype}; {accepted}")


def _as_array(name: str, values: Any) -> NDArray[Any]:
    """Return values as an array; raise ConfigError if their lengths differ."""
    try:
        return np.asarray(values)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{name}: {' '.join(str(error).split())}; accepted: values of equal shape") from error


def _decoded(name: str, dataset: Any, config: DataConfig, heartbeat: Heartbeat) -> tuple[NDArray[np.uint8], NDArray[Any]]:
    """Return the images (N, C, H, W) and labels (N,) of a map-style dataset."""
    if len(dataset) == 0:
        raise ConfigError(f"{name} is empty; accepted: at least one image")
    size = config.image_size
    # Decode the first image at size 1 if images are resized: one image may be too large already.
    first, _ = next(_pairs(name, dataset, size and 1, heartbeat))
    needed_gib = len(dataset) * (first.shape[2] * size**2 if size else first.size) / 2**30
    if needed_gib > MEMORY_LIMIT_GIB:
        accepted = f"at most {MEMORY_LIMIT_GIB}: a smaller data.image_size, or files with data.name=imagefolder data.stream=true"
        raise ConfigError(f"{name} takes {needed_gib:.0f} GiB of memory; accepted: {accepted}")
    images: list[NDArray[np.uint8]] = []
    labels = []
    for number, (image, label) in enumerate(_pairs(name, dataset, size, heartbeat)):
        if images and image.shape[:2] != images[0].shape[:2]:
            sizes = " and ".join(f"{each.shape[1]}×{each.shape[0]}" for each in (images[0], image))
            if size:
                raise ConfigError(
                    f"{name}: images 0 and {number} are arrays of {sizes} pixels; accepted: one size, or PIL's images"
                )
            raise ConfigError(f"data.image_size=None: images 0 and {number} of {name} have {sizes} pixels: set one size")
        images.append(image)
        labels.append(label)
    if images[0].shape[0] != images[0].shape[1]:
        raise ConfigError(f"data.image_size=None: the images of {name} are not square: set a size")
    channels = max(image.shape[2] for image in images)
    same = [np.broadcast_to(image, (*image.shape[:2], channels)) for image in images]
    return np.ascontiguousarray(np.stack(same).transpose(0, 3, 1, 2)), _as_array(f"labels of {name}", labels)


def _pairs(name: str, dataset: Any, size: int | None, heartbeat: Heartbeat) -> Iterator[tuple[NDArray[np.uint8], Any]]:
    """Yield the pixels (H, W, C) and the label of each image of a map-style dataset."""
    for number in range(len(dataset)):
        try:
            image, label = dataset[number]
            pixels = square_pixels(image, size) if isinstance(image, Image.Image) else _pixels(np.asarray(image))
        except ConfigError:
            raise
        except Exception as error:  # decoders and code of users raise many types
            raise ConfigError(f"{name}: image {number}: {type(error).__name__}: {' '.join(str(error).split())}") from error
        yield pixels, label
        heartbeat()


def _pixels(image: NDArray[Any]) -> NDArray[np.uint8]:
    """Return the pixels (H, W, C) of an array (H, W), (H, W, C) or (C, H, W)."""
    if image.dtype == np.uint8 and image.ndim == 2:
        return image[:, :, None]
    if image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] in CHANNELS:
        return image
    if image.dtype == np.uint8 and image.ndim == 3 and image.shape[0] in CHANNELS:
        return image.transpose(1, 2, 0)
    raise ValueError(f"an array {image.shape} of {image.dtype}; accepted: a PIL image, or uint8 with 1 or 3 channels")
