"""Several views of each image, whose scores are averaged in the extra tests of a network."""

from collections.abc import Iterator

from torch import Tensor

MULTI_SCALE_SIDES = (224, 256, 384, 480, 640)
"""Shorter sides of whole images in pixels, for crops of 224 (He et al. 2015, section 3.4)."""


def ten_crops(images: Tensor, size: int) -> Iterator[Tensor]:
    """Corners and center of larger squares, and their mirror images (Krizhevsky et al. 2012, section 4.1).

    Args:
        images: squares (N, C, S, S).
        size: side of the crops, at most S.

    Returns:
        Ten times images (N, C, size, size): upper left, upper right, lower left, lower right, center, each followed by its
        mirror image.
    """
    last = images.shape[-1] - size
    center = (last + 1) // 2
    for row, column in ((0, 0), (0, last), (last, 0), (last, last), (center, center)):
        crop = images[:, :, row : row + size, column : column + size]
        yield crop
        yield crop.flip(3)


def multi_scale_sides(crop: int) -> tuple[int, ...]:
    """Shorter sides of whole images for a network trained on crops of this many pixels."""
    return tuple(round(side * crop / 224) for side in MULTI_SCALE_SIDES)
