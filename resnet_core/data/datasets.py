"""Data sets: reading, splitting and hashing, once for all processes of a machine.

Images are held in memory as uint8 arrays (N, C, H, W), or stay on disk and are decoded in every epoch. With a cache folder,
arrays are memory-mapped: many trials on one machine share one copy and read the files once.
"""

import hashlib
import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from resnet_core.config import DataConfig, ModelConfig, RunSpec
from resnet_core.data import cache as cached
from resnet_core.data import cifar, folders, indexing, packaged, tables
from resnet_core.data.decoding import CHANGES
from resnet_core.data.readers import Images, Reader, ReadImages, call_reader, in_memory, is_lazy, reader_name
from resnet_core.data.sources import decode_files, make_synthetic
from resnet_core.data.splits import Files, Part, Split, hold_out, subset
from resnet_core.fields import counted, reject
from resnet_core.heartbeat import Heartbeat, acquire_lock, no_heartbeat

__all__ = ["Dataset", "Files", "Split", "load_dataset", "resolve"]

STATISTICS_SIDE = 256
"""Maximum side of the streamed images for channel statistics, in pixels. 2,048 of them are held in memory."""


class Sizes(TypedDict):
    """Sizes that a network is built for, as arguments of `build_network` and `measure_cost`."""

    image_size: int
    """Side of the square images, in pixels."""
    in_channels: int
    """Number of color channels."""
    num_classes: int


@dataclass(frozen=True)
class Dataset:
    """Training and evaluation images of a run, with the facts that networks and fingerprints need."""

    name: str
    """Name of the data set, as in `DataConfig.name`."""
    classes: tuple[str, ...]
    """Names of the classes, in order of their labels."""
    train: Split | Files
    """Training images, in memory or streamed from disk."""
    test: Split | Files
    """Images that runs are evaluated on: the test set, or the validation split if `data.validation` is above 0."""
    version: str
    """Hash of the content: pixels (streamed: files), labels, class names and splits; 20 hexadecimal digits."""
    mean: tuple[float, ...]
    """Mean of each channel over the training images, on the scale of 0 to 255."""
    std: tuple[float, ...]
    """Standard deviation of each channel over the training images, on the scale of 0 to 255."""
    crop: int | None = None
    """Side of the crops of streamed images, in pixels; None for images in memory."""
    scored: str = ""
    """Origin of the evaluation images, in words."""
    changed: Mapping[str, int] = field(default_factory=dict)
    """Number of files that decoding changes, by the kind of change, a key of `decoding.CHANGES`."""
    skipped: str = ""
    """Files in the folder that are ignored, in words."""
    available: tuple[int, int] | None = None
    """Numbers of training and of evaluation images before `train_examples` and `test_examples` limit them; None if unknown."""

    @property
    def in_channels(self) -> int:
        """Number of color channels."""
        return 3 if isinstance(self.train, Files) else int(self.train.images.shape[1])

    @property
    def image_size(self) -> int:
        """Side of the network's input images, in pixels."""
        return self._crop if isinstance(self.train, Files) else int(self.train.images.shape[2])

    @property
    def sizes(self) -> "Sizes":
        """Side of the images, color channels and classes, as arguments of `build_network` and `measure_cost`."""
        return {"image_size": self.image_size, "in_channels": self.in_channels, "num_classes": len(self.classes)}

    @property
    def summary(self) -> str:
        """Number of images and classes, split, changed and ignored files, in words."""
        return self.described([len(self.train.labels)])

    def described(self, trained_on: Collection[int]) -> str:
        """Return `summary` for runs that train on these numbers of images."""
        side, classes = self.image_size, len(self.classes)
        *others, most = sorted(set(trained_on))
        counts = " or ".join([*([", ".join(f"{count:,}" for count in others)] if others else []), counted(most, "image")])
        text = f"{counts} to train"
        text += f" (of {self.available[0]:,})" if self.available and most < self.available[0] else ""
        text += f", {images(self.test)} to score"
        text += f" ({self.origin})" if self.origin else ""
        text += f", {classes:,} classes, {side}×{side} pixels, {'gray' if self.in_channels == 1 else 'RGB'}"
        text += f"; {self.changes}" if self.changes else ""
        return text + (f"; not used: {self.skipped}" if self.skipped else "")

    @property
    def origin(self) -> str:
        """Origin of the evaluation images, and their number before `data.test_examples` limits it, in words."""
        limited = self.available and len(self.test.labels) < self.available[1]
        parts = [f"of {self.available[1]:,}"] if self.available and limited else []
        return ", ".join([*parts, *([self.scored] if self.scored else [])])

    @property
    def changes(self) -> str:
        """Number of files that decoding changes, by the kind of change, in words."""
        return ", ".join(f"{self.changed[name]:,} {words}" for name, words in CHANGES.items() if name in self.changed)

    def examples(self, count: int) -> NDArray[np.uint8]:
        """Return the first `count` evaluation images (count, C, H, W), uint8, cropped as in testing but not normalized."""
        if isinstance(self.test, Files):
            return indexing.center_crops(self.test, count, self._crop)
        return self.test.images[:count]

    def subtracted(self, normalize: str) -> NDArray[np.float32]:
        """Return the mean that normalization subtracts, on the scale of 0 to 255.

        Args:
            normalize: `channel` for the mean of each channel (C, 1, 1), `pixel` for the mean image (C, H, W).
        """
        if normalize == "channel":
            return np.array(self.mean, np.float32).reshape(-1, 1, 1)
        assert isinstance(self.train, Split), "DataConfig rejects mean images of streamed data"
        total: NDArray[np.int64] = self.train.images.sum(0, dtype=np.int64)  # exact, and no float copy of the images
        return np.asarray(total / len(self.train.images), np.float32)

    @property
    def _crop(self) -> int:
        assert self.crop is not None, "streamed data have a crop"
        return self.crop


def resolve(spec: RunSpec, dataset: Dataset) -> RunSpec:
    """Return the run with the fields filled in that depend on the data set, such as `model.num_classes`.

    Args:
        spec: run.
        dataset: its data set.

    Raises:
        ConfigError: the run and the data set contradict each other.
    """
    model = spec.model
    if isinstance(model, ModelConfig):
        model = model.resolved(num_classes=len(dataset.classes), in_channels=dataset.in_channels)
    if spec.optim.global_batch_size > len(dataset.train.labels):
        raise reject(
            "optim.global_batch_size",
            spec.optim.global_batch_size,
            f"accepted: at most {len(dataset.train.labels)}, the training images of {dataset.name}",
        )
    spec.probed_epochs(spec.optim.total_epochs(len(dataset.train.labels)))
    if not isinstance(model, ModelConfig) or model.name:
        from resnet_core.model.measurement import check_network  # imports torch, which most plans do not need

        check_network(replace(spec, model=model), **dataset.sizes)
    elif model.match_flops or model.match_parameters:
        from resnet_core.model.cost import matched

        model = matched(model, dataset.image_size).resolved()
    return replace(spec, model=model)


@dataclass(frozen=True)
class Source:
    """A requested data set and the current state of its files."""

    config: DataConfig
    """Requested data set."""
    listing: folders.Listing | None
    """Files of a folder of class folders; None for other data sets."""
    state: str
    """Hash of the files' names, sizes and times of change; empty for data without files."""
    heartbeat: Heartbeat
    """Called while files are read."""
    images: Images | None = None
    """Images that the reader of a user returned."""
    reader: str = ""
    """Name of the reader."""

    @property
    def scored(self) -> str:
        """Origin of the evaluation images, in words."""
        if self.config.validation:
            return f"{100 * self.config.validation:g} % of each class's training images, held out"
        if self.listing:
            return self.listing.scored
        return {**packaged.HELD_OUT, "synthetic": "generated"}.get(self.config.name, "its test set")

    @property
    def skipped(self) -> str:
        """Files that are ignored, in words."""
        return self.listing.skipped if self.listing else ""


MAX_KEPT = 2
"""Maximum number of data sets that a process keeps open."""
_kept: dict[tuple[Path | None, str, str], Dataset] = {}
"""Open data sets by cache folder, cache key and ignored files, least recently used first."""


def load_dataset(
    config: DataConfig,
    cache: Path | None = None,
    *,
    reader: Reader | None = None,
    reader_code: str = "",
    download: bool = False,
    heartbeat: Heartbeat = no_heartbeat,
) -> Dataset:
    """Read, check and split a data set.

    Files are listed in every call, so that changes in a folder are noticed. If nothing has changed, one of the last two data sets
    is returned as the same object.

    Args:
        config: data set and split; augmentation fields are ignored.
        cache: folder for decoded images and file indices, shared by processes. None: no cache.
        reader: function that returns the images instead, called with `config` in every call.
        reader_code: hash of the code of the reader. Under it and their version, images of map-style datasets are cached; without
            it, they are read in every call, since another reader may give the same version to other images.
        download: download missing CIFAR data into `data.root`.
        heartbeat: called for each file that is listed, hashed or decoded, and while another process holds the lock of the cache.

    Raises:
        ConfigError: the data are missing, corrupt or not usable. The message names the files and what is accepted.

    Example:
        >>> load_dataset(DataConfig(name="digits")).train.images.shape
        (1437, 1, 8, 8)
    """
    _check_root(config)
    if config.name == "own" and reader is None:
        raise reject("data.name", "own", "is what a reader returns, and there is none; accepted: Study(reader=…)")
    if config.name != "own" and reader is not None:
        raise reject("data.name", config.name, "the images are those of a reader; accepted: own, or a study without a reader")
    if download:
        cifar.download(config, heartbeat=heartbeat)
    source = _find(config, heartbeat) if reader is None else _found_by(reader, reader_code, config, heartbeat)
    if source.images and not (reader_code and source.images.version is not None and is_lazy(source.images)):
        return _keep((None, "", ""), _build(source))
    key = cached.cache_key(config, source.state)
    known = (cache, key, source.skipped)
    dataset = _kept.pop(known, None)
    if dataset is None:
        dataset = _build(source) if cache is None else _cached(source, cache, key)
        dataset = replace(dataset, scored=dataset.scored or source.scored, skipped=source.skipped)
    return _keep(known, dataset)


def _keep(known: tuple[Path | None, str, str], dataset: Dataset) -> Dataset:
    """Keep a data set as the most recently used one, and return it or an equal one that was kept before."""
    before = _kept.pop(known, None)
    if before and before.version == dataset.version:
        dataset = before
    _kept[known] = dataset
    while len(_kept) > MAX_KEPT:
        del _kept[next(iter(_kept))]
    return dataset


def _found_by(reader: Reader, code: str, config: DataConfig, heartbeat: Heartbeat) -> Source:
    images, name = call_reader(reader, config), reader_name(reader)
    state = json.dumps([name, code, config.root, images.version, list(images.classes)])
    return Source(config, None, state, heartbeat, images, name)


def _check_root(config: DataConfig) -> None:
    """Raise ConfigError if `data.root` is no valid path. An empty one would mean the current folder."""
    if config.root == "" or "\0" in (config.root or ""):
        raise reject("data.root", config.root, "accepted: the name of a folder")


def _find(config: DataConfig, heartbeat: Heartbeat) -> Source:
    """Return the current state of a data set's files without opening them."""
    if config.name in cifar.FOLDERS:
        return Source(config, None, cifar.state(config), heartbeat)
    if config.name in tables.READERS:
        return Source(config, None, tables.state(config), heartbeat)
    if config.name in packaged.READERS:
        return Source(config, None, packaged.state(config), heartbeat)
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
    with lock:  # one process reads, the others wait
        try:
            return _read(folder)
        except (OSError, EOFError, ValueError, KeyError):  # absent, or incomplete after a machine crashed
            dataset = _build(source)
            meta = {
                key: getattr(dataset, key)
                for key in ("name", "classes", "version", "mean", "std", "crop", "changed", "scored", "available")
            }
            with cached.writable(cache):
                cached.write(folder, meta, dataset.train, dataset.test)
            return _read(folder)


def _read(folder: Path) -> Dataset:
    meta, train, test = cached.read(folder)
    tuples = {key: tuple(meta[key]) for key in ("classes", "mean", "std")}
    available = tuple(meta["available"]) if meta["available"] else None
    return Dataset(**{**meta, **tuples, "available": available}, train=train, test=test)


def _build(source: Source) -> Dataset:
    config, listing = source.config, source.listing
    if listing:
        *files, available = _chosen(config, listing.train, listing.test)
        if config.streamed:
            return replace(_streamed(source, listing.classes, *files), available=available)
        found = [part for part in (listing.train, listing.test) if part]
        train, test, changed = decode_files(config, *files, found=found, heartbeat=source.heartbeat)
        return replace(_in_memory(config, listing.classes, train, test), changed=changed, available=available)
    if source.images:
        return _of_reader(config, in_memory(source.reader, source.images, config, source.heartbeat), source.images.version)
    if reader := tables.READERS.get(config.name):
        return _of_reader(config, in_memory(f"data.root={config.root}", reader(config), config, source.heartbeat))
    readers: dict[str, Callable[[DataConfig], tuple[tuple[str, ...], Split, Split | None]]] = {
        **packaged.READERS,
        "cifar10": cifar.read_cifar,
        "cifar100": cifar.read_cifar,
        "synthetic": make_synthetic,
    }
    classes, whole, scored = readers[config.name](config)
    train, test, available = _chosen(config, whole, scored)
    return replace(_in_memory(config, classes, train, test), available=available)


def _chosen(config: DataConfig, train: Part, test: Part | None) -> tuple[Part, Part, tuple[int, int]]:
    """Return the training and the evaluation images, split, then limited in number as `config` says, and their numbers before."""
    if config.validation or test is None:  # the test set is not read
        whole, (train, test) = len(train.labels), hold_out(train, config.validation)
        if len(test.labels) == 0:
            accepted = f"holds out none of {whole} training images, of which the last of each class stays; accepted: a larger share"
            raise reject("data.validation", config.validation, accepted)
    available = len(train.labels), len(test.labels)
    train, test = subset(train, config.train_examples), subset(test, config.test_examples)
    if len(train.labels) == 0 or len(test.labels) == 0:
        raise reject(
            "data.root", config.root or config.name, f"accepted: at least one training and one {config.evaluation_split} image"
        )
    return train, test, available


def _in_memory(config: DataConfig, classes: tuple[str, ...], train: Split, test: Split) -> Dataset:
    version = _content_hash(classes, *train, *test)
    return Dataset(config.name, classes, train, test, version, *_channel_statistics(train.images))


def _of_reader(config: DataConfig, read: ReadImages, version: str | None = None) -> Dataset:
    train, test, available = _chosen(config, read.train, read.test)
    dataset = replace(_in_memory(config, read.classes, train, test), scored=read.scored, available=available)
    if version is None:
        return dataset
    return replace(dataset, version=_content_hash((version, dataset.version)))  # two readers may give the same version


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
    """Return the exact mean and standard deviation of each channel, from histograms to avoid a float copy of the images."""
    values = np.arange(256.0)
    means, stds = [], []
    for channel in range(images.shape[1]):
        share = np.bincount(images[:, channel].reshape(-1), minlength=256) / images[:, channel].size
        mean = float(share @ values)
        means.append(mean)
        stds.append(float(np.sqrt(share @ (values - mean) ** 2)) or 1.0)  # normalization must not divide a constant channel by zero
    return tuple(means), tuple(stds)


def _content_hash(classes: tuple[str, ...], *arrays: NDArray[Any]) -> str:
    digest = hashlib.sha256(json.dumps(classes).encode())
    for array in arrays:
        digest.update(f"{array.dtype}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()[:20]


def images(part: Split | Files) -> str:
    """Return the number of images in words: `1 image`, `1,437 images`."""
    return counted(len(part.labels), "image")
