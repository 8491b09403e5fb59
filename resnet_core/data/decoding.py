"""Image files to pixels: pure functions of a path and numbers, with Pillow and numpy only."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from resnet_core.fields import ConfigError, reject


class View(NamedTuple):
    """One look at one image file."""

    path: str
    side: int
    """Shorter side that the image is scaled to, in pixels."""
    size: int | None = None
    """Side of the square that is cut out, in pixels. None: the whole image."""
    row: float = 0.5
    column: float = 0.5
    """Where it is cut, as shares of the way from the first possible place to the last; the middle if not given."""
    flip: bool = False


def decode_view(view: View) -> NDArray[np.uint8]:
    """The pixels of a view (H, W, 3); raises ConfigError naming the file where it cannot be decoded."""
    with opened(view.path) as file:
        width, height = scaled_size(file.size, view.side)
        left, top, right, bottom = 0, 0, width, height
        if view.size is not None:
            left, top = int(view.column * (width - view.size + 1)), int(view.row * (height - view.size + 1))
            right, bottom = left + view.size, top + view.size
        # JPEG decoders scale down by 2, 4 or 8 almost for nothing. Pillow keeps at least the size that is asked for.
        file.draft(None, (width, height))
        file.load()
        image: Image.Image = file if file.mode == "RGB" else file.convert("RGB")
        across, down = image.width / width, image.height / height
        box = (left * across, top * down, min(right * across, image.width), min(bottom * down, image.height))
        image = image.resize((right - left, bottom - top), Image.Resampling.BILINEAR, box=box)  # only what is wanted of it
        if view.flip:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return np.asarray(image, np.uint8)


def decode_square(path: str, size: int | None) -> NDArray[np.uint8]:
    """One image (H, W, 1 or 3) to hold in memory, its shorter side scaled to `size` and the middle cut out."""
    with opened(path) as file:
        image: Image.Image = file.convert("L" if file.mode in ("L", "1") else "RGB")
    if size is not None and image.size != (size, size):
        image = image.resize(scaled_size(image.size, size))
        left, top = (image.width - size) // 2, (image.height - size) // 2
        image = image.crop((left, top, left + size, top + size))
    return np.asarray(image, np.uint8).reshape(image.height, image.width, -1)


def scaled_size(size: tuple[int, int], side: int) -> tuple[int, int]:
    """Width and height once the shorter of them is `side`."""
    scale = side / min(size)
    return max(side, round(size[0] * scale)), max(side, round(size[1] * scale))


def image_size(path: str) -> tuple[int, int]:
    """Width and height in pixels, from the header."""
    with opened(path) as file:
        return file.size


@contextmanager
def opened(path: str) -> Iterator[Image.Image]:
    """An open image; whatever goes wrong with it is a ConfigError that names the file."""
    try:
        with Image.open(path) as file:
            check_mode(file)
            yield file
    except ConfigError:
        raise
    except Exception as error:  # Pillow's plugins raise many types
        raise undecodable(path, error) from error


def check_mode(file: Image.Image) -> None:
    if file.mode.startswith(("I", "F")):  # Pillow would cut everything above 255 off
        raise ValueError(f"its pixels are {file.mode}, not 8 bits per channel")


def undecodable(path: str, reason: object) -> ConfigError:
    """What is said of a file that cannot be used, in one line."""
    return reject("data.root", path, f"cannot be decoded as an image ({' '.join(str(reason).split())})")
