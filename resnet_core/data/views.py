"""Views of an image whose class probabilities are averaged in the extra tests of a network."""

from collections.abc import Iterator

from torch import Tensor

MULTI_SCALE_SIDES = (224, 256, 384, 480, 640)
"""Shorter sides of whole images in pixels, for crops of 224 (He et al. 2015, section 3.4)."""


def ten_crops(images: Tensor, size: int) -> Iterator[Tensor]:
    """Yield ten crops of square images (Krizhevsky et al. 2012, section 4.1).

    Args:
        images: images (N, C, S, S).
        size: side of the crops in pixels, at most S.

    Yields:
        Crops (N, C, size, size): upper left, upper right, lower left, lower right and center, each followed by its mirror image.
    """
    last = images.shape[-1] - size
    center = (last + 1) // 2
    for row, column in ((0, 0), (0, last), (last, 0), (last, last), (center, center)):
        crop = images[:, :, row : row + size, column : column + size]
        yield crop
        yield crop.flip(3)


def multi_scale_sides(crop: int) -> tuple[int, ...]:
    """Return the shorter sides of the multi-scale test, in pixels, for a network that was trained on crops of `crop` pixels."""
    return tuple(round(side * crop / 224) for side in MULTI_SCALE_SIDES)
