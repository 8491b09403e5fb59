"""Batches of images on disk, decoded in every epoch by other processes.

As in `resnet_core.data.batches`, everything random depends on the seed and the epoch only, and is drawn in this process for the
global batch. Decoders are pure functions, so that results depend neither on their number nor on the number of workers.
"""

import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from resnet_core.config import RunSpec
from resnet_core.data.batches import epoch_generator
from resnet_core.data.datasets import Dataset
from resnet_core.data.decoders import Decoders
from resnet_core.data.decoding import View, image_size
from resnet_core.data.indexing import shorter_side
from resnet_core.data.splits import Files
from resnet_core.data.views import multi_scale_sides, ten_crops
from resnet_core.fields import reject

EIGENVALUES = (0.2175, 0.0188, 0.0045)
EIGENVECTORS = ((-0.5675, 0.7192, 0.4009), (-0.5808, -0.0045, -0.8140), (-0.5836, -0.6948, 0.4203))
"""Principal components of ImageNet's colors on the scale of 0 to 1, one per column, and their eigenvalues (fb.resnet.torch)."""
COLOR_STD = 0.1
"""Standard deviation of the shift along each component, relative to its eigenvalue (Krizhevsky et al. 2012, section 4.1)."""
MAX_WHOLE_IMAGES = 16
"""Maximum number of whole images of one shape in a batch of the multi-scale test."""


class StreamedBatches:
    """Batches of a data set on disk, for one of `world_size` workers.

    A batch is a pair of normalized images (N, 3, crop, crop), float32, and labels (N,), int64, on the device. `close`, or the
    deletion of the object, stops the decoding processes. A new iterator invalidates earlier ones.

    Args:
        dataset: streamed data set.
        spec: resolved run.
        device: device of the batches.
        rank: number of this worker, from 0.
    """

    def __init__(self, dataset: Dataset, spec: RunSpec, *, device: torch.device, rank: int = 0) -> None:
        assert isinstance(dataset.train, Files), "images in memory need Batches"
        assert isinstance(dataset.test, Files)
        self._train, self._test = dataset.train, dataset.test
        self.spec, self.device, self.rank = spec, device, rank
        self.num_classes = len(dataset.classes)
        self.mean = torch.as_tensor(dataset.subtracted("channel"), device=device)
        self.std = torch.tensor(dataset.std, device=device).view(-1, 1, 1)
        self.wait_seconds = 0.0
        """Time that training has waited for images since the start of the epoch, in seconds."""
        self._share = spec.optim.global_batch_size // spec.world_size
        self._decoders = Decoders(spec.data.decode_workers or max(1, torch.get_num_threads() - 1), self._share, device)

    @property
    def steps_per_epoch(self) -> int:
        """Number of full global batches in an epoch. The remainder of the random order is left out, so that all steps weigh the
        same."""
        return len(self._train.labels) // self.spec.optim.global_batch_size

    def train_epoch(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield this worker's share of every global batch of an epoch (from 0), shuffled and augmented."""
        self.wait_seconds = 0.0
        data, batch = self.spec.data, self.spec.optim.global_batch_size
        count = self.steps_per_epoch * batch
        low, high = data.scale or (shorter_side(data.crop),) * 2
        # All random numbers are always drawn, so that disabling one augmentation leaves the others unchanged.
        generator = epoch_generator(self.spec.seed, epoch)
        order = torch.randperm(len(self._train.labels), generator=generator)[:count].numpy()
        sides = torch.randint(low, high + 1, (count,), generator=generator).tolist()
        rows, columns = torch.rand(2, count, dtype=torch.float64, generator=generator).numpy()
        flips = (torch.rand(count, generator=generator) < 0.5 * data.flip).tolist()
        alphas = COLOR_STD * torch.randn(count, 3, generator=generator)
        shares = [slice(start, start + self._share) for start in range(self.rank * self._share, count, batch)]

        def view(i: int) -> View:
            return View(self._train.path(order[i]), sides[i], data.crop, rows[i], columns[i], flips[i])

        decoded = self._decoders.decode([view(i) for i in range(mine.start, mine.stop)] for mine in shares)
        for mine in shares:
            asked = time.perf_counter()
            pixels = next(decoded)
            self.wait_seconds += time.perf_counter() - asked
            images = pixels.float()
            if data.color_augmentation:
                images += self._color_shift(alphas[mine])
            yield self._finished(images), self._labels(self._train, order[mine])

    def test(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield this worker's share of the evaluation split. Over all workers every image occurs once; none is padded or
        dropped."""
        return self._tested(self.spec.data.crop)

    def views(self, kind: str) -> Iterator[tuple[Iterator[Tensor], Tensor]]:
        """Yield this worker's share of the evaluation split, each batch as an iterator over several views, with its labels.

        Args:
            kind: `ten_crop`: ten crops of the central square that testing crops its single view from. `multi_scale`: whole images
                in five sizes, each also mirrored, in batches of the same shape.

        Raises:
            ConfigError: unknown kind of view.
        """
        if kind == "multi_scale":
            yield from self._multi_scale()
        elif kind == "ten_crop":
            for images, labels in self._tested(shorter_side(self.spec.data.crop)):
                crops = ten_crops(images, self.spec.data.crop)
                yield (crop.contiguous(memory_format=self._memory_format) for crop in crops), labels
        else:
            raise reject("data.extra_tests", kind, "accepted: ten_crop, multi_scale")

    def close(self) -> None:
        """Stop the decoding processes. Unfinished iterators raise RuntimeError afterwards."""
        self._decoders.close()

    def _tested(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        mine = range(self.rank, len(self._test.labels), self.spec.world_size)
        batches = [mine[start : start + self._share] for start in range(0, len(mine), self._share)]
        side = shorter_side(self.spec.data.crop)
        decoded = self._decoders.decode([View(self._test.path(i), side, size) for i in batch] for batch in batches)
        for batch, pixels in zip(batches, decoded, strict=True):
            yield self._finished(pixels.float()), self._labels(self._test, batch)

    def _multi_scale(self) -> Iterator[tuple[Iterator[Tensor], Tensor]]:
        mine = range(self.rank, len(self._test.labels), self.spec.world_size)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            shapes = dict(zip(mine, pool.map(image_size, map(self._test.path, mine)), strict=True))
        by_shape = [list(same) for _, same in groupby(sorted(mine, key=shapes.__getitem__), shapes.__getitem__)]
        groups = [same[start : start + MAX_WHOLE_IMAGES] for same in by_shape for start in range(0, len(same), MAX_WHOLE_IMAGES)]
        sides = multi_scale_sides(self.spec.data.crop)
        decoded = self._decoders.decode([View(self._test.path(i), side) for i in group] for group in groups for side in sides)

        def views() -> Iterator[Tensor]:
            for _ in sides:
                images = self._finished(next(decoded).float())
                yield images
                yield images.flip(3).contiguous(memory_format=self._memory_format)

        for group in groups:
            several = views()
            yield several, self._labels(self._test, group)
            for _ in several:  # consume views that the caller did not
                pass

    def _finished(self, images: Tensor) -> Tensor:
        return images.sub_(self.mean).div_(self.std).contiguous(memory_format=self._memory_format)

    @property
    def _memory_format(self) -> torch.memory_format:
        return torch.channels_last if self.spec.channels_last else torch.contiguous_format

    def _labels(self, files: Files, index: Sequence[int] | NDArray[np.int64]) -> Tensor:
        return torch.from_numpy(files.labels[index]).to(self.device)

    def _color_shift(self, alphas: Tensor) -> Tensor:
        """Return the color shifts (N, 3, 1, 1), on the scale of 0 to 255, for shifts (N, 3) along the principal components."""
        strengths = 255 * alphas * torch.tensor(EIGENVALUES)
        return (strengths @ torch.tensor(EIGENVECTORS).T).to(self.device)[:, :, None, None]
