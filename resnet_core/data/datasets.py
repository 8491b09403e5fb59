"""Data sets: read once, split once, hashed once, then shared by every process of the machine.

Images are held in memory as uint8 arrays (N, C, H, W), or stay on disk and are decoded in every epoch. With a cache folder
arrays are memory-mapped, so that many trials on one machine hold one copy and pay for reading once.
"""

import hashlib
import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resnet_core.config import DataConfig, RunSpec
from resnet_core.data import cache as cached
from resnet_core.data import cifar, folders, indexing
from resnet_core.data.decoding import CHANGES
from resnet_core.data.sources import decode_files, make_synthetic, read_digits
from resnet_core.data.splits import Files, Part, Split, hold_out, subset
from resnet_core.fields import counted, reject
from resnet_core.heartbeat import Heartbeat, acquire_lock, no_heartbeat

__all__ = ["Dataset", "Files", "Split", "load_dataset", "resolve"]

STATISTICS_SIDE = 256
"""Pixels of a side, at most, of the streamed images that channel statistics are measured on: 2,048 of them are in memory."""


@dataclass(frozen=True)
class Dataset:
    """Images to train on and to score runs on, with what a network and a fingerprint need to know of them."""

    name: str
    classes: tuple[str, ...]
    train: Split | Files
    """Training images: in memory, or on disk if streamed."""
    test: Split | Files
    """The images that runs are scored on: the test set, or the validation images if `data.validation` holds some out."""
    version: str
    """Hash of the content: pixels (streamed: files), labels, class names and which image is in which split."""
    mean: tuple[float, ...]
    """Mean of each channel over the training images, in units of 0 to 255."""
    std: tuple[float, ...]
    """Standard deviation of each channel over the training images, in units of 0 to 255."""
    crop: int | None = None
    """Streamed images: side of the squares that are cut out of them, in pixels."""
    scored: str = ""
    """Where the scored images come from, in words."""
    changed: Mapping[str, int] = field(default_factory=dict)
    """How many files are changed before they are trained on, by what is done: `decoding.CHANGES`."""
    skipped: str = ""
    """Files in the folder that are passed over, in words."""

    @property
    def in_channels(self) -> int:
        return 3 if isinstance(self.train, Files) else int(self.train.images.shape[1])

    @property
    def image_size(self) -> int:
        """Side in pixels of the images that a network gets."""
        return self._crop if isinstance(self.train, Files) else int(self.train.images.shape[2])

    @property
    def summary(self) -> str:
        """Images, classes, split, and what was changed and skipped, in words."""
        return self.described([len(self.train.labels)])

    def described(self, trained_on: Collection[int]) -> str:
        """Return `summary` with these numbers of training images."""
        side, classes = self.image_size, len(self.classes)
        *others, most = sorted(set(trained_on))
        counts = " or ".join([*([", ".join(f"{count:,}" for count in others)] if others else []), counted(most, "image")])
        text = f"{counts} to train, {images(self.test)} to score"
        text += f" ({self.scored})" if self.scored else ""
        text += f", {classes:,} classes, {side}×{side} pixels, {'gray' if self.in_channels == 1 else 'RGB'}"
        text += f"; {self.changes}" if self.changes else ""
        return text + (f"; not used: {self.skipped}" if self.skipped else "")

    @property
    def changes(self) -> str:
        """How many files are changed in which way before they are trained on, in words."""
        return ", ".join(f"{self.changed[name]:,} {words}" for name, words in CHANGES.items() if name in self.changed)

    def examples(self, count: int) -> NDArray[np.uint8]:
        """The first scored images (count, C, H, W), as they are in testing but not normalized."""
        if isinstance(self.test, Files):
            return indexing.center_crops(self.test, count, self._crop)
        return self.test.images[:count]

    def subtracted(self, normalize: str) -> NDArray[np.float32]:
        """What normalization subtracts: of `channel` each channel's mean (C, 1, 1), of `pixel` the mean image (C, H, W)."""
        if normalize == "channel":
            return np.array(self.mean, np.float32).reshape(-1, 1, 1)
        assert isinstance(self.train, Split), "DataConfig refuses mean images of streamed data"
        total: NDArray[np.int64] = self.train.images.sum(0, dtype=np.int64)  # exact, and no float copy of the images
        return np.asarray(total / len(self.train.images), np.float32)

    @property
    def _crop(self) -> int:
        assert self.crop is not None, "streamed data have a crop"
        return self.crop


def resolve(spec: RunSpec, dataset: Dataset) -> RunSpec:
    """The spec with everything that the data set decides filled in; raises ConfigError where they contradict each other."""
    model = spec.model.resolved(num_classes=len(dataset.classes), in_channels=dataset.in_channels)
    if spec.optim.global_batch_size > len(dataset.train.labels):
        raise reject(
            "optim.global_batch_size",
            spec.optim.global_batch_size,
            f"the training set of {dataset.name} has {len(dataset.train.labels)} images",
        )
    spec.probed_epochs(spec.optim.total_epochs(len(dataset.train.labels)))
    if spec.model.match_flops or spec.model.match_parameters:
        from resnet_core.model.cost import matched  # imports torch, which most plans need not wait for

        model = matched(model, dataset.image_size).resolved()
    return replace(spec, model=model)


@dataclass(frozen=True)
class Source:
    """A data set that is asked for, and what there is of it."""

    config: DataConfig
    listing: folders.Listing | None
    """Of data sets that are folders of class folders."""
    state: str
    """Hash of the files' names, sizes and times of change; empty for data without files."""
    heartbeat: Heartbeat

    @property
    def scored(self) -> str:
        """Where the scored images come from, in words."""
        if self.config.validation:
            return f"{100 * self.config.validation:g} % of each class's training images, held out"
        if self.listing:
            return self.listing.scored
        return {"digits": "a fifth of each class, held out", "synthetic": "generated"}.get(self.config.name, "its test set")

    @property
    def skipped(self) -> str:
        """Files that are passed over, in words."""
        return self.listing.skipped if self.listing else ""


MAX_KEPT = 2
"""Data sets that a process keeps."""
_kept: dict[tuple[Path | None, str, str], Dataset] = {}


def load_dataset(
    config: DataConfig, cache: Path | None = None, *, download: bool = False, heartbeat: Heartbeat = no_heartbeat
) -> Dataset:
    """Reads, checks and splits a data set; of the last two, the same config gives the same object while its files stay as they are.

    Files are listed each time: a folder is what it is now, whatever this process or the cache has seen before.

    Args:
        config: which data set. Augmentation fields do not matter here.
        cache: folder for decoded copies and file indices, shared by processes. None: read in this process only.
        download: whether CIFAR data that are missing are downloaded into `data.root`.
        heartbeat: called for each file that is listed, hashed or decoded, and while another process holds the cache.

    Raises:
        ConfigError: the data are missing, corrupt or not usable, naming the files and what is accepted.
    """
    _check_root(config)
    if download:
        cifar.download(config, heartbeat=heartbeat)
    source = _find(config, heartbeat)
    key = cached.cache_key(config, source.state)
    known = (cache, key, source.skipped)
    dataset = _kept.pop(known, None)
    if dataset is None:
        dataset = _build(source) if cache is None else _cached(source, cache, key)
        dataset = replace(dataset, scored=source.scored, skipped=source.skipped)
    _kept[known] = dataset  # last, as the newest
    while len(_kept) > MAX_KEPT:
        del _kept[next(iter(_kept))]
    return dataset


def _check_root(config: DataConfig) -> None:
    """Raises ConfigError for what no file system has as a name; the empty one would be the current folder."""
    if config.root == "" or "\0" in (config.root or ""):
        raise reject("data.root", config.root, "accepted: the name of a folder")


def _find(config: DataConfig, heartbeat: Heartbeat) -> Source:
    """What there is now, without looking into a file."""
    if config.name in cifar.FOLDERS:
        return Source(config, None, cifar.state(config), heartbeat)
    if config.name not in ("imagefolder", "imagenet"):
        return Source(config, None, "", heartbeat)
    reader = folders.imagenet if config.name == "imagenet" else folders.image_folder
    with folders.readable(config):
        listing = reader(config, heartbeat=heartbeat)
    return Source(config, listing, listing.state, heartbeat)


def _cached(source: Source, cache: Path, key: str) -> Dataset:
    folder = cache / key
    with cached.writable(cache):
        cache.mkdir(parents=True, exist_ok=True)
        lock = acquire_lock(cache / f"{key}.lock", source.heartbeat)
    with lock:  # one process reads, the others wait for it
        try:
            return _read(folder)
        except (OSError, EOFError, ValueError, KeyError):  # absent, or left half-written by a dying machine
            dataset = _build(source)
            meta = {key: getattr(dataset, key) for key in ("name", "classes", "version", "mean", "std", "crop", "changed")}
            with cached.writable(cache):
                cached.write(folder, meta, dataset.train, dataset.test)
            return _read(folder)


def _read(folder: Path) -> Dataset:
    meta, train, test = cached.read(folder)
    classes, mean, std = (tuple(meta[key]) for key in ("classes", "mean", "std"))
    return Dataset(meta["name"], classes, train, test, meta["version"], mean, std, meta["crop"], changed=meta["changed"])


def _build(source: Source) -> Dataset:
    config, listing = source.config, source.listing
    if listing:
        files = _chosen(config, listing.train, listing.test)
        if config.streamed:
            return _streamed(source, listing.classes, *files)
        found = [part for part in (listing.train, listing.test) if part]
        train, test, changed = decode_files(config, *files, found=found, heartbeat=source.heartbeat)
        return replace(_in_memory(config, listing.classes, train, test), changed=changed)
    readers: dict[str, Callable[[DataConfig], tuple[tuple[str, ...], Split, Split | None]]] = {
        "digits": read_digits,
        "cifar10": cifar.read_cifar,
        "cifar100": cifar.read_cifar,
        "synthetic": make_synthetic,
    }
    classes, whole, scored = readers[config.name](config)
    return _in_memory(config, classes, *_chosen(config, whole, scored))


def _chosen(config: DataConfig, train: Part, test: Part | None) -> tuple[Part, Part]:
    """The images to train on and to score on, as the config wants them."""
    if config.validation or test is None:  # the test set is left alone
        whole, (train, test) = len(train.labels), hold_out(train, config.validation)
        if len(test.labels) == 0:
            accepted = f"holds out none of {whole} training images, of which the last of each class stays; accepted: a larger share"
            raise reject("data.validation", config.validation, accepted)
    train, test = subset(train, config.train_examples), subset(test, config.test_examples)
    if len(train.labels) == 0 or len(test.labels) == 0:
        raise reject(
            "data.root", config.root or config.name, f"accepted: at least one training and one {config.evaluation_split} image"
        )
    return train, test


def _in_memory(config: DataConfig, classes: tuple[str, ...], train: Split, test: Split) -> Dataset:
    version = _content_hash(classes, *train, *test)
    return Dataset(config.name, classes, train, test, version, *_channel_statistics(train.images))


def _streamed(source: Source, classes: tuple[str, ...], train: Files, test: Files) -> Dataset:
    config, heartbeat = source.config, source.heartbeat
    digests, changed = indexing.file_digests((train, test), root=config.root, heartbeat=heartbeat)
    version = _content_hash(classes, digests[0], train.labels, digests[1], test.labels)
    known = (indexing.IMAGENET_MEAN, indexing.IMAGENET_STD)
    side = min(config.crop, STATISTICS_SIDE)
    sample = None if config.name == "imagenet" else indexing.sampled_images(train, side, heartbeat=heartbeat)
    mean, std = known if sample is None else _channel_statistics(sample)
    return Dataset(config.name, classes, train, test, version, mean, std, config.crop, changed=changed)


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


def _content_hash(classes: tuple[str, ...], *arrays: NDArray[Any]) -> str:
    digest = hashlib.sha256(json.dumps(classes).encode())
    for array in arrays:
        digest.update(f"{array.dtype}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()[:20]


def images(part: Split | Files) -> str:
    """Return `1 image`, `1,437 images`."""
    return counted(len(part.labels), "image")
