"""Augmentation of whole training batches: random erasing, mixup and CutMix.

Everything random depends on the seed, the epoch and the step only, so that a resumed run draws the same.
"""

import math
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from resnet_core.config import RunSpec
from resnet_core.data.batches import derived_seed

ERASED_AREA = (0.02, 0.33)
ERASED_RATIO = (0.3, 3.3)
"""Range of the area of an erased rectangle, as a fraction of the image, and of its ratio of height to width."""
ATTEMPTS = 10
"""Rectangles that are drawn for an image; the first that fits is erased."""


def mixes(spec: RunSpec) -> bool:
    """Return True if a run augments whole batches."""
    return bool(spec.data.erasing or spec.data.mixup or spec.data.cutmix)


def augmented(
    batches: Iterable[tuple[Tensor, Tensor]], spec: RunSpec, epoch: int, *, rank: int, num_classes: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the batches of an epoch with random erasing, mixup and CutMix, as far as the run asks for them.

    Args:
        batches: this worker's batches of an epoch: images (N, C, H, W), normalized, and labels (N,).
        spec: resolved run.
        epoch: number of the epoch, from 0.
        rank: number of this worker, from 0.
        num_classes: number of classes.

    Yields:
        Images, and labels (N,), which mixup and CutMix turn into probabilities (N, classes).
    """
    for step, (images, labels) in enumerate(batches):
        if spec.data.erasing:
            seed = derived_seed(spec.seed, f"erasing {epoch} {step}")
            images = erased(images, spec.data.erasing, torch.Generator().manual_seed(seed), rank=rank, workers=spec.world_size)
        if spec.data.mixup or spec.data.cutmix:
            images, labels = _mixed(images, labels, spec, f"mixing {epoch} {step} {rank}", num_classes)
        yield images, labels


def erased(images: Tensor, probability: float, generator: torch.Generator, *, rank: int = 0, workers: int = 1) -> Tensor:
    """Return images (N, C, H, W) of which some have a rectangle of zeros, the mean color of normalized images.

    Rectangles are drawn as by torchvision's `v2.RandomErasing`, but for each image of the global batch on its own.

    Args:
        images: this worker's share of a batch.
        probability: probability of a rectangle, for each image.
        generator: random generator on the CPU, in the same state in all workers.
        rank: number of this worker, from 0.
        workers: number of workers.
    """
    count, (height, width) = len(images) * workers, images.shape[-2:]
    chosen = torch.rand(count, generator=generator) < probability
    area = height * width * torch.empty(count, ATTEMPTS).uniform_(*ERASED_AREA, generator=generator)
    ratio = torch.empty(count, ATTEMPTS).uniform_(*map(math.log, ERASED_RATIO), generator=generator).exp()
    corner = torch.rand(2, count, generator=generator)
    rows, columns = (area * ratio).sqrt().round(), (area / ratio).sqrt().round()
    fits = (rows < height) & (columns < width)
    first = fits.int().argmax(1, keepdim=True)  # the first that fits
    rows, columns = rows.gather(1, first).squeeze(1), columns.gather(1, first).squeeze(1)
    top, left = (corner[0] * (height - rows + 1)).floor(), (corner[1] * (width - columns + 1)).floor()
    drawn = torch.stack([top, top + rows, left, left + columns, (chosen & fits.any(1)).float()])
    mine = drawn[:, rank * len(images) : (rank + 1) * len(images)].to(images.device)
    top, bottom, left, right, some = mine.view(5, -1, 1, 1, 1)
    row = torch.arange(height, device=images.device).view(1, 1, -1, 1)
    column = torch.arange(width, device=images.device).view(1, 1, 1, -1)
    inside = (row >= top) & (row < bottom) & (column >= left) & (column < right) & (some > 0)
    return images.masked_fill(inside, 0)


def _mixed(images: Tensor, labels: Tensor, spec: RunSpec, use: str, num_classes: int) -> tuple[Tensor, Tensor]:
    from torchvision.transforms import v2  # takes seconds to import

    kinds = {v2.MixUp: spec.data.mixup, v2.CutMix: spec.data.cutmix}
    transforms = [kind(alpha=alpha, num_classes=num_classes) for kind, alpha in kinds.items() if alpha]
    with torch.random.fork_rng(devices=[]):  # torchvision draws from the global generator of the CPU
        torch.manual_seed(derived_seed(spec.seed, use))
        mixed, shares = v2.RandomChoice(transforms)(images, labels)
    layout = torch.channels_last if spec.channels_last else torch.contiguous_format
    return mixed.contiguous(memory_format=layout), shares
