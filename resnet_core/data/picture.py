"""Picture of training images before and after augmentation."""

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from resnet_core.config import RunSpec
from resnet_core.data import make_batches
from resnet_core.data.datasets import Dataset
from resnet_core.data.decoding import opened, to_8_bits
from resnet_core.data.splits import Files, Split, subset

CELL = 96
"""Minimum side of a shown image, in pixels."""
GAP = 4
"""Space between images, in pixels."""
TEXT = 14
"""Height of the text, in pixels."""
BACKGROUND, BORDER, INK = (255, 255, 255), (225, 225, 225), (40, 40, 40)
"""RGB colors from 0 to 255. `INK` is the color of text."""


def draw_batch(dataset: Dataset, spec: RunSpec, *, images: int = 8, epochs: int = 8) -> Image.Image:
    """Return a picture of a few training images: each row has the original, then its augmented form in each epoch.

    Args:
        dataset: data set of the images.
        spec: run with augmentation and seed.
        images: number of rows.
        epochs: number of columns beside the originals.
    """
    part = subset(dataset.train, images)
    trained = augmented(dataset, part, spec, epochs)
    cell = CELL if trained.shape[-1] > CELL else trained.shape[-1] * -(-CELL // trained.shape[-1])  # integer scale, to avoid blur
    order = np.argsort(part.labels, kind="stable")
    rows = [[original(part, i), *(Image.fromarray(_rgb(pixels)) for pixels in trained[:, i])] for i in order]
    headings = ["original", *(f"epoch {epoch + 1}" for epoch in range(epochs))]
    return _table(rows, [dataset.classes[label] for label in part.labels[order]], headings, cell if cell <= 2 * CELL else CELL)


def augmented(dataset: Dataset, part: Split | Files, spec: RunSpec, epochs: int) -> NDArray[np.uint8]:
    """Return the images of `part` as each epoch trains on them (epochs, N, C, H, W), uint8, without normalization."""
    count = len(part.labels)
    numbered = part._replace(labels=np.arange(count))  # batches are shuffled: labels identify the images
    few = replace(dataset, train=numbered)
    optim = replace(spec.optim, global_batch_size=count)
    batches = make_batches(few, replace(spec, optim=optim, world_size=1), device=torch.device("cpu"))
    batches.mean = torch.as_tensor(dataset.subtracted(spec.data.normalize))  # the mean of all training images
    found = np.empty((epochs, count, dataset.in_channels, dataset.image_size, dataset.image_size), np.uint8)
    for epoch in range(epochs):
        for images, places in batches.train_epoch(epoch):
            found[epoch, places] = (images * batches.std + batches.mean).round().clamp(0, 255).to(torch.uint8)
    return found


def original(part: Split | Files, index: int) -> Image.Image:
    """Return an image as it is in the data set."""
    if isinstance(part, Files):
        with opened(part.path(index)) as file:
            return to_8_bits(file).convert("RGB")
    return Image.fromarray(_rgb(part.images[index]))


def _rgb(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return pixels (C, H, W) of one or three channels as (H, W, 3)."""
    return np.ascontiguousarray(np.broadcast_to(pixels.transpose(1, 2, 0), (*pixels.shape[1:], 3)))


def _table(rows: list[list[Image.Image]], names: list[str], headings: list[str], cell: int) -> Image.Image:
    font = ImageFont.load_default(TEXT)
    left = GAP * 3 + int(max(font.getlength(name) for name in names))
    top = TEXT + GAP * 3
    step, apart = cell + GAP, GAP * 3  # a wider gap separates the originals from the epochs
    picture = Image.new("RGB", (left + step * len(headings) + apart + GAP, top + step * len(rows) + GAP), BACKGROUND)
    draw = ImageDraw.Draw(picture)
    for column, heading in enumerate(headings):
        draw.text((left + step * column + apart * (column > 0) + cell / 2, GAP + TEXT / 2), heading, INK, font, "mm")
    for row, (images, name) in enumerate(zip(rows, names, strict=True)):
        draw.text((left - GAP * 2, top + step * row + cell / 2), name, INK, font, "rm")
        for column, image in enumerate(images):
            x, y = left + step * column + apart * (column > 0), top + step * row
            draw.rectangle((x, y, x + cell - 1, y + cell - 1), BORDER)
            shown = _fitted(image, cell)
            picture.paste(shown, (x + (cell - shown.width) // 2, y + (cell - shown.height) // 2))
    return picture


def _fitted(image: Image.Image, cell: int) -> Image.Image:
    """Return the image scaled to fit a square cell; small images keep visible pixels."""
    scale = cell / max(image.size)
    method = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS
    return image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))), method)
