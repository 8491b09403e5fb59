"""Batches of images in memory, made from whole tensors on the training device without worker processes.

Order and augmentation depend on the seed and the epoch only. They are drawn for the global batch, of which each worker takes its
share. Any number of workers therefore sees the same images, and a resumed run continues exactly.
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
"""Images per batch of an evaluation."""
GPU_PIXELS = 2**21
"""Pixels of the images that a GPU augments at once: 2,048 CIFAR images. Kernels take a few microseconds, so that more images in one
kernel are free."""


class Batches:
    """Batches of a data set that is held on a device, for one of `world_size` workers.

    A batch is a pair of normalized images (N, C, H, W), float32, and labels (N,), int64.

    Args:
        dataset: data set in memory.
        spec: resolved run.
        device: device of the batches.
        rank: number of this worker, from 0.
    """

    wait_seconds = 0.0
    """Time that training has waited for images since the start of the epoch: none, as they are in memory."""

    def __init__(self, dataset: Dataset, spec: RunSpec, *, device: torch.device, rank: int = 0) -> None:
        def to_device(split: object) -> tuple[Tensor, ...]:
            assert isinstance(split, Split), "streamed data need StreamedBatches"
            return tuple(torch.as_tensor(array).to(device) for array in split)

        self.train_images, self.train_labels = to_device(dataset.train)
        self.test_images, self.test_labels = to_device(dataset.test)
        self.mean = torch.as_tensor(dataset.subtracted(spec.data.normalize), device=device)
        self.std = torch.tensor(dataset.std, device=device).view(-1, 1, 1)
        self.spec, self.device, self.rank = spec, device, rank
        self.num_classes = len(dataset.classes)
        self.memory_format = torch.channels_last if spec.channels_last else torch.contiguous_format

    @property
    def steps_per_epoch(self) -> int:
        """Number of full global batches in an epoch. The remainder of the random order is left out, so that all steps weigh the
        same."""
        return len(self.train_labels) // self.spec.optim.global_batch_size

    def train_epoch(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield this worker's share of every global batch of an epoch (from 0), shuffled and augmented."""
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
        """Return this worker's share of values (…, images) that were drawn for each image of an epoch, in order of the global
        batches."""
        workers = self.spec.world_size
        by_worker = drawn.view(*drawn.shape[:-1], -1, workers, self.spec.optim.global_batch_size // workers)
        return by_worker[..., self.rank, :].flatten(-2)

    def test(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield this worker's share of the evaluation split. Over all workers every image occurs once; none is padded or
        dropped."""
        images, labels = (t[self.rank :: self.spec.world_size] for t in (self.test_images, self.test_labels))
        for start in range(0, len(labels), EVALUATION_BATCH):  # no batches if there are more workers than images
            mine = slice(start, start + EVALUATION_BATCH)
            yield self._normalized(images[mine]).contiguous(memory_format=self.memory_format), labels[mine]

    def views(self, kind: str) -> Iterator[tuple[Iterator[Tensor], Tensor]]:
        """Yield the batches of `test`, each as an iterator over several views of the same images, with their labels.

        Args:
            kind: `ten_crop`: ten crops of the images, padded as in training.

        Raises:
            ConfigError: unknown kind of view.
        """
        if kind != "ten_crop":
            raise reject("data.extra_tests", kind, "accepted for images in memory: ten_crop")
        for images, labels in self.test():
            crops = ten_crops(F.pad(images, (self.spec.data.pad,) * 4), images.shape[-1])
            yield (crop.contiguous(memory_format=self.memory_format) for crop in crops), labels

    def _normalized(self, images: Tensor) -> Tensor:
        return (images - self.mean).div_(self.std)


def epoch_generator(seed: int, epoch: int) -> torch.Generator:
    """Return a random generator on the CPU for one epoch of one seed."""
    return torch.Generator().manual_seed(derived_seed(seed, epoch))


def derived_seed(seed: int, use: int | str) -> int:
    """Return an independent 32-bit seed for each use of a run's seed.

    The seed is hashed because PyTorch uses only its lowest 32 bits and rejects more than 64.
    """
    digest = hashlib.sha256(f"{seed}/{use}".encode()).digest()
    return int.from_bytes(digest[:4], "little")


def crop_and_flip(padded: Tensor, offsets: Tensor, flips: Tensor, size: int) -> Tensor:
    """Crop each image of a batch at its own offset, and mirror some of them: the augmentation of section 4.2.

    Args:
        padded: padded images (N, C, H, W).
        offsets: rows and columns of the upper left corners (2, N), in pixels.
        flips: True for images to mirror (N,), bool.
        size: side of the crops, in pixels.

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
