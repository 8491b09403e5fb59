"""Batches for training and evaluation, made from whole tensors on the training device without worker processes.

Which image comes when, and how it is augmented, follows from the seed and the epoch alone and is drawn for the global
batch, of which each worker takes its share: any number of workers sees the same images, and a resumed run goes on exactly.
"""

import hashlib
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from resnet_core.config import RunSpec
from resnet_core.data.datasets import Dataset
from resnet_core.data.splits import Split
from resnet_core.data.views import ten_crops
from resnet_core.fields import reject

EVALUATION_BATCH = 512
GPU_PIXELS = 2**21
"""Pixels of the images that are made at once on a GPU: 2,048 images of CIFAR. Where a kernel takes a few microseconds, more images
to a kernel cost nothing."""


class Batches:
    """A data set on a device, handed out in batches to one worker of `world_size`.

    Batches are pairs of images (N, C, H, W), float32, normalized, and labels (N,), int64.
    """

    wait_seconds = 0.0
    """How long training waited for images since the epoch began: they are there."""

    def __init__(self, dataset: Dataset, spec: RunSpec, *, device: torch.device, rank: int = 0) -> None:
        def to_device(split: object) -> tuple[Tensor, ...]:
            assert isinstance(split, Split), "make_batches tells what is in memory from what is streamed"
            return tuple(torch.as_tensor(array).to(device) for array in split)

        self.train_images, self.train_labels = to_device(dataset.train)
        self.test_images, self.test_labels = to_device(dataset.test)
        self.mean = torch.as_tensor(dataset.subtracted(spec.data.normalize), device=device)
        self.std = torch.tensor(dataset.std, device=device).view(-1, 1, 1)
        self.spec, self.device, self.rank = spec, device, rank
        self.memory_format = torch.channels_last if spec.channels_last else torch.contiguous_format

    @property
    def steps_per_epoch(self) -> int:
        """Full global batches only: a rest is left out of this epoch's random order, so that every step weighs the same."""
        return len(self.train_labels) // self.spec.optim.global_batch_size

    def train_epoch(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """This worker's share of every global batch of an epoch, shuffled and augmented."""
        size = self.train_images.shape[-1]
        batch = self.spec.optim.global_batch_size
        count = self.steps_per_epoch * batch
        generator = epoch_generator(self.spec.seed, epoch)
        order = torch.randperm(len(self.train_labels), generator=generator)[:count]
        pad = self.spec.data.pad
        offsets = torch.randint(2 * pad + 1, (2, count), generator=generator)
        flips = torch.rand(count, generator=generator) < 0.5 * self.spec.data.flip
        order, offsets, flips = (self._share(drawn).to(self.device) for drawn in (order, offsets, flips))
        share = batch // self.spec.world_size
        at_once = share
        if self.device.type == "cuda":
            at_once *= max(1, GPU_PIXELS // (share * size**2))
        for start in range(0, len(order), at_once):
            mine = slice(start, start + at_once)
            index = order[mine]
            images = self._normalized(self.train_images[index])
            if pad or self.spec.data.flip:
                images = crop_and_flip(F.pad(images, (pad,) * 4), offsets[:, mine], flips[mine], size)
            images = images.contiguous(memory_format=self.memory_format)
            yield from zip(torch.split(images, share), torch.split(self.train_labels[index], share), strict=True)

    def _share(self, drawn: Tensor) -> Tensor:
        """This worker's part of what was drawn for each image of an epoch (…, images), one global batch after the other."""
        workers = self.spec.world_size
        by_worker = drawn.view(*drawn.shape[:-1], -1, workers, self.spec.optim.global_batch_size // workers)
        return by_worker[..., self.rank, :].flatten(-2)

    def test(self) -> Iterator[tuple[Tensor, Tensor]]:
        """This worker's share of the scored images: over all workers every image once, none padded, none dropped."""
        images, labels = (t[self.rank :: self.spec.world_size] for t in (self.test_images, self.test_labels))
        for start in range(0, len(labels), EVALUATION_BATCH):  # none at all where there are more workers than images
            mine = slice(start, start + EVALUATION_BATCH)
            yield self._normalized(images[mine]).contiguous(memory_format=self.memory_format), labels[mine]

    def views(self, kind: str) -> Iterator[tuple[Iterator[Tensor], Tensor]]:
        """The batches of `test`, each as several views of the same images, one after the other, with their labels.

        Args:
            kind: `ten_crop`, of the images padded as in training.
        """
        if kind != "ten_crop":
            raise reject("data.extra_tests", kind, "accepted for images in memory: ten_crop")
        for images, labels in self.test():
            crops = ten_crops(F.pad(images, (self.spec.data.pad,) * 4), images.shape[-1])
            yield (crop.contiguous(memory_format=self.memory_format) for crop in crops), labels

    def _normalized(self, images: Tensor) -> Tensor:
        return (images - self.mean).div_(self.std)


def epoch_generator(seed: int, epoch: int) -> torch.Generator:
    """A CPU generator for one epoch of one seed."""
    return torch.Generator().manual_seed(derived_seed(seed, epoch))


def derived_seed(seed: int, use: int | str) -> int:
    """A seed of its own for each use. Hashed, because torch takes only the lowest 32 bits of a seed and fails above 64."""
    digest = hashlib.sha256(f"{seed}/{use}".encode()).digest()
    return int.from_bytes(digest[:4], "little")


def crop_and_flip(padded: Tensor, offsets: Tensor, flips: Tensor, size: int) -> Tensor:
    """Cuts a square out of each image at its own offset and mirrors some: the augmentation of section 4.2, batched.

    Args:
        padded: images (N, C, H, W).
        offsets: rows and columns of the upper left corners (2, N).
        flips: which images are mirrored (N,), bool.
        size: side of the squares.

    Returns:
        Images (N, C, size, size).
    """
    n, channels = padded.shape[:2]
    line = torch.arange(size, device=padded.device)
    rows = offsets[0].view(n, 1, 1, 1) + line.view(1, 1, size, 1)
    columns = offsets[1].view(n, 1, 1, 1) + torch.where(flips.view(n, 1, 1, 1), line.flip(0), line).view(n, 1, 1, size)
    image = torch.arange(n, device=padded.device).view(n, 1, 1, 1)
    channel = torch.arange(channels, device=padded.device).view(1, channels, 1, 1)
    return padded[image, channel, rows, columns]
