"""Data sets that fit in memory: read once, split once, hashed once, then shared by every process of the machine.

Images are uint8 arrays (N, C, H, W). With a cache folder they are memory-mapped, so that many trials on one machine hold
one copy and pay for decoding once.
"""

import functools
import hashlib
import json
import os
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray
from PIL import Image

from resnet_core.config import DataConfig, RunSpec
from resnet_core.fields import reject
from resnet_core.identity import normalised_source

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff", ".webp"})
SOURCES = {"cifar10": "cifar-10-batches-py", "imagefolder": "."}
"""What a data set reads of `data.root`; the others have no folder."""
MEMORY_LIMIT_GIB = 16
SPLIT_SEED = 0
"""Fixed: the test set of a data set that comes without one is the same for everybody."""


class Split(NamedTuple):
    """Images (N, C, H, W) uint8 and labels (N,) int64."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]


@dataclass(frozen=True)
class Dataset:
    """A training and a test set with what a network and a fingerprint need to know of them."""

    name: str
    classes: tuple[str, ...]
    train: Split
    test: Split
    version: str
    """Hash of the content: pixels, labels, class names and which image is in which split."""
    mean: tuple[float, ...]
    """Mean of each channel over the training set, in units of 0 to 255."""
    std: tuple[float, ...]
    """Standard deviation of each channel over the training set, in units of 0 to 255."""

    @property
    def in_channels(self) -> int:
        return int(self.train.images.shape[1])

    @property
    def image_size(self) -> int:
        return int(self.train.images.shape[2])


def resolve(spec: RunSpec, dataset: Dataset) -> RunSpec:
    """The spec with everything that the data set decides filled in; raises ConfigError where they contradict each other."""
    model = spec.model.resolved(num_classes=len(dataset.classes), in_channels=dataset.in_channels)
    if spec.optim.global_batch_size > len(dataset.train.labels):
        raise reject(
            "optim.global_batch_size",
            spec.optim.global_batch_size,
            f"the training set of {dataset.name} has {len(dataset.train.labels)} images",
        )
    return replace(spec, model=model)


@functools.lru_cache(maxsize=2)
def load_dataset(config: DataConfig, cache: Path | None = None) -> Dataset:
    """Reads, checks and splits a data set; the same config gives the same object.

    Args:
        config: which data set. Augmentation fields do not matter here.
        cache: folder for decoded copies, shared by processes. None: decode in this process only.

    Raises:
        ConfigError: the data are missing, corrupt or not usable, naming the file and what is accepted.
    """
    if cache is None:
        return _build(config)
    folder = cache / _cache_key(config)
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):  # one process decodes, the others wait for it
        try:
            return _read(folder)
        except (OSError, EOFError, ValueError, KeyError):  # absent, or left half-written by a dying machine
            dataset = _build(config)
            _write(folder, dataset)
            return _read(folder)


def _build(config: DataConfig) -> Dataset:
    readers = {"digits": _digits, "cifar10": _cifar10, "imagefolder": _image_folder, "synthetic": _synthetic}
    classes, train, test = readers[config.name](config)
    if config.name != "synthetic":
        train, test = _subset(train, config.train_examples), _subset(test, config.test_examples)
    if len(train.labels) == 0 or len(test.labels) == 0:
        raise reject("data.root", config.root or config.name, "accepted: at least one training and one test image")
    mean, std = _channel_statistics(train.images)
    return Dataset(config.name, classes, train, test, _content_hash(classes, train, test), mean, std)


def _digits(config: DataConfig) -> tuple[tuple[str, ...], Split, Split]:
    from sklearn.datasets import load_digits  # seconds to import, needed once per machine

    raw = load_digits()
    images = (raw.images * 15).astype(np.uint8)[:, None]  # 0…16 in the file
    train, test = _hold_out_fifth(Split(images, raw.target.astype(np.int64)))
    return tuple(map(str, raw.target_names)), train, test


def _cifar10(config: DataConfig) -> tuple[tuple[str, ...], Split, Split]:
    from torchvision.datasets import CIFAR10

    root = _folder(config)
    try:
        train, test = (CIFAR10(root, train=is_train, download=False) for is_train in (True, False))
    except (RuntimeError, OSError, EOFError, KeyError) as error:
        accepted = "accepted: a folder with torchvision's cifar-10-batches-py, complete and uncorrupted"
        raise reject("data.root", str(root), accepted) from error

    def split(part: CIFAR10) -> Split:
        return Split(np.ascontiguousarray(part.data.transpose(0, 3, 1, 2)), np.asarray(part.targets, np.int64))

    return tuple(train.classes), split(train), split(test)


def _synthetic(config: DataConfig) -> tuple[tuple[str, ...], Split, Split]:
    """Ten classes, each a fixed random pattern under noise: learnable, and the same on every machine."""
    size = config.image_size or 32
    random = np.random.RandomState(SPLIT_SEED)
    patterns = random.randint(64, 192, (10, 3, size, size))

    def make(count: int) -> Split:
        labels = np.arange(count) % 10
        noise = random.normal(0, 48, (count, 3, size, size))
        return Split(np.clip(patterns[labels] + noise, 0, 255).astype(np.uint8), labels.astype(np.int64))

    return tuple(map(str, range(10))), make(config.train_examples or 512), make(config.test_examples or 128)


def _folder(config: DataConfig) -> Path:
    root = Path(config.root or "").expanduser().absolute()
    if not root.is_dir():
        raise reject("data.root", str(root), f"accepted: an existing folder with {config.name} data")
    return root


def _image_folder(config: DataConfig) -> tuple[tuple[str, ...], Split, Split]:
    """`root/train/<class>/*` with `root/test` or `root/val`, or `root/<class>/*` of which a fifth is held out for testing."""
    root = _folder(config)
    tests = [root / name for name in ("test", "val") if (root / name).is_dir()]
    if not (root / "train").is_dir() or not tests:
        classes, whole = _class_folders(root, config)
        return classes, *_hold_out_fifth(whole)
    classes, train = _class_folders(root / "train", config)
    test_classes, test = _class_folders(tests[0], config)
    if classes != test_classes:
        odd = ", ".join(sorted(set(classes) ^ set(test_classes))[:5])
        raise reject("data.root", str(root), f"train and {tests[0].name} must have the same classes; only in one: {odd}")
    if train.images.shape[1:] != test.images.shape[1:]:
        shapes = f"{train.images.shape[1:]} and {test.images.shape[1:]}"
        raise reject("data.root", str(root), f"train and {tests[0].name} images have different shapes {shapes}")
    return classes, train, test


def _class_folders(root: Path, config: DataConfig) -> tuple[tuple[str, ...], Split]:
    classes = sorted(p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
    if len(classes) < 2:
        raise reject("data.root", str(root), f"accepted: at least two class folders, found {len(classes)}")
    paths, labels = [], []
    for label, name in enumerate(classes):
        found = sorted(p for p in (root / name).rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
        if not found:
            raise reject("data.root", str(root / name), f"no images in it; accepted: {', '.join(sorted(IMAGE_SUFFIXES))}")
        paths += found
        labels += [label] * len(found)
    return tuple(classes), Split(_decode(paths, config), np.asarray(labels, np.int64))


def _decode(paths: list[Path], config: DataConfig) -> NDArray[np.uint8]:
    first = _decode_one(paths[0], config.image_size)
    needed_gib = len(paths) * first.size / 2**30
    if needed_gib > MEMORY_LIMIT_GIB:
        raise reject(
            "data.image_size",
            config.image_size,
            f"{needed_gib:.0f} GiB to hold in memory, at most {MEMORY_LIMIT_GIB}: set it lower",
        )
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # decoders release the GIL
        images = list(pool.map(_decode_one, paths, [config.image_size] * len(paths), chunksize=256))
    if any(image.shape[2] == 3 for image in images):
        images = [np.broadcast_to(image, (*image.shape[:2], 3)) for image in images]
    for path, image in zip(paths, images, strict=True):
        if image.shape[:2] != images[0].shape[:2]:
            (h, w), (h0, w0) = image.shape[:2], images[0].shape[:2]
            raise reject("data.image_size", None, f"{paths[0]} has {w0}×{h0} pixels, {path} has {w}×{h}: set one size")
    if images[0].shape[0] != images[0].shape[1]:
        raise reject("data.image_size", None, f"{paths[0]} is not square: set a size")
    return np.ascontiguousarray(np.stack(images).transpose(0, 3, 1, 2))


def _decode_one(path: Path, size: int | None) -> NDArray[np.uint8]:
    """One image (H, W, 1 or 3), its shorter side scaled to `size` and the middle cut out."""
    try:
        with Image.open(path) as file:
            if file.mode.startswith(("I", "F")):  # Pillow would cut everything above 255 off
                raise ValueError(f"its pixels are {file.mode}, not 8 bits per channel")
            image = file.convert("L" if file.mode in ("L", "1") else "RGB")
    except Exception as error:  # Pillow's plugins raise many types
        raise reject("data.root", str(path), f"cannot be decoded as an image ({error})") from error
    if size is not None and image.size != (size, size):
        scale = size / min(image.size)
        image = image.resize((max(size, round(image.width * scale)), max(size, round(image.height * scale))))
        left, top = (image.width - size) // 2, (image.height - size) // 2
        image = image.crop((left, top, left + size, top + size))
    pixels: NDArray[np.uint8] = np.asarray(image, np.uint8)
    return pixels.reshape(image.height, image.width, -1)


def _class_ranks(labels: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Each image's place in a fixed random order of its class, and how many images the class has."""
    order = np.random.RandomState(SPLIT_SEED).permutation(len(labels))
    rank, size = np.empty((2, len(labels)), np.int64)
    for label in np.unique(labels):
        members = order[labels[order] == label]
        rank[members], size[members] = np.arange(len(members)), len(members)
    return rank, size


def _take(split: Split, index: NDArray[Any]) -> Split:
    index = np.sort(index)
    return Split(split.images[index], split.labels[index])


def _subset(split: Split, count: int | None) -> Split:
    """At most `count` images, of all classes as evenly as possible."""
    if count is None or count >= len(split.labels):
        return split
    rank, _ = _class_ranks(split.labels)
    return _take(split, np.lexsort((split.labels, rank))[:count])


def _hold_out_fifth(split: Split) -> tuple[Split, Split]:
    """Training and test images: a fifth of every class is held out, but never the last image of one."""
    rank, size = _class_ranks(split.labels)
    last = rank == size - 1
    order = np.lexsort((split.labels, (rank + 0.5) / size, last))
    held = min(-(-len(order) // 5), int(np.sum(~last)))
    return _take(split, order[held:]), _take(split, order[:held])


def _channel_statistics(images: NDArray[np.uint8]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Exact mean and standard deviation of each channel, from histograms: no float copy of the images."""
    values = np.arange(256.0)
    means, stds = [], []
    for channel in range(images.shape[1]):
        share = np.bincount(images[:, channel].reshape(-1), minlength=256) / images[:, channel].size
        mean = float(share @ values)
        means.append(mean)
        stds.append(float(np.sqrt(share @ (values - mean) ** 2)) or 1.0)  # a constant channel stays constant
    return tuple(means), tuple(stds)


def _content_hash(classes: tuple[str, ...], *splits: Split) -> str:
    digest = hashlib.sha256(json.dumps(classes).encode())
    for split in splits:
        for array in split:
            digest.update(f"{array.dtype}{array.shape}".encode())
            digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()[:20]


def _cache_key(config: DataConfig) -> str:
    """What decides the decoded arrays: where they come from, as it is now, and the code that reads them."""
    source: list[Any] = [config.name, config.image_size, config.train_examples, config.test_examples]
    if config.name in SOURCES:
        root = _folder(config) / SOURCES[config.name]
        files = sorted(p for p in root.rglob("*") if p.is_file())
        stats = ((str(p.relative_to(root)), p.stat()) for p in files)
        source.append([str(root), [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]])
    code = normalised_source(Path(__file__).read_text(encoding="utf-8"))
    return f"{config.name}-{hashlib.sha256(json.dumps([source, code]).encode()).hexdigest()[:16]}"


def _write(folder: Path, dataset: Dataset) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    partial = Path(tempfile.mkdtemp(dir=folder.parent))
    for name, split in (("train", dataset.train), ("test", dataset.test)):
        np.save(partial / f"{name}-images.npy", split.images)
        np.save(partial / f"{name}-labels.npy", split.labels)
    meta = {key: getattr(dataset, key) for key in ("name", "classes", "version", "mean", "std")}
    (partial / "meta.json").write_text(json.dumps(meta))
    partial.rename(folder)


def _read(folder: Path) -> Dataset:
    meta = json.loads((folder / "meta.json").read_text())
    train, test = (
        # Copy-on-write: pages are shared between processes, and torch may wrap the array without a warning.
        Split(np.load(folder / f"{name}-images.npy", mmap_mode="c"), np.load(folder / f"{name}-labels.npy"))
        for name in ("train", "test")
    )
    return Dataset(
        name=meta["name"],
        classes=tuple(meta["classes"]),
        train=train,
        test=test,
        version=meta["version"],
        mean=tuple(meta["mean"]),
        std=tuple(meta["std"]),
    )
