"""Image files to pixels: pure functions of a path and numbers, with Pillow and numpy only.

Both ways of reading, into memory and in every epoch, see a file alike: upright as its EXIF orientation says, transparency on
white, gray of 9 to 16 bits by its upper 8, and the first frame of several.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps

from resnet_core.fields import ConfigError, reject

BACKGROUND = "white"
"""What shows through transparent pixels."""
BITS_PER_SAMPLE, PHOTOMETRIC = 258, 262
"""Tags of TIFF."""
CHANGES = {
    "orientation": "turned as EXIF says",
    "transparency": "with transparency, shown on white",
    "depth": "of 16 bits, the upper 8 used",
    "frames": "with several frames, the first used",
}
"""What is done to files that are not simply pixels, by a name that is part of their hash, and in words."""


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
        upright = upright_size(file)
        width, height = scaled_size(upright, view.side)
        left, top, right, bottom = 0, 0, width, height
        if view.size is not None:
            left, top = int(view.column * (width - view.size + 1)), int(view.row * (height - view.size + 1))
            right, bottom = left + view.size, top + view.size
        # JPEG decoders scale down by 2, 4 or 8 almost for nothing. Pillow keeps at least the size that is asked for.
        file.draft(None, (width, height) if upright == file.size else (height, width))
        image = _in_mode("RGB", to_8_bits(file))
        across, down = image.width / width, image.height / height
        box = (left * across, top * down, min(right * across, image.width), min(bottom * down, image.height))
        image = image.resize((right - left, bottom - top), Image.Resampling.BILINEAR, box=box)  # only what is wanted of it
        if view.flip:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return np.asarray(image, np.uint8)


def decode_square(path: str, size: int | None) -> tuple[NDArray[np.uint8], list[str]]:
    """One image (H, W, 1 or 3) to hold in memory, its shorter side scaled to `size` and the middle cut out; and its `changes`."""
    with opened(path) as file:
        changed = changes(file)
        image = to_8_bits(file)
        if size is not None and image.size != (size, size):
            image = image.resize(scaled_size(image.size, size))
            left, top = (image.width - size) // 2, (image.height - size) // 2
            image = image.crop((left, top, left + size, top + size))
        return np.asarray(image, np.uint8).reshape(image.height, image.width, -1), changed


def to_8_bits(file: Image.Image) -> Image.Image:
    """Return an image as it is meant to be seen, of mode L where it is stored as gray (`is_gray`), else of mode RGB."""
    file.load()
    image = ImageOps.exif_transpose(file) if _orientation(file) in range(2, 9) else file
    if is_deep(file):
        return _upper_8_bits(image, file)
    if file.has_transparency_data:
        colors = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", colors.size, BACKGROUND), colors)
    return _in_mode("L" if is_gray(file) else "RGB", image)


def _in_mode(mode: str, image: Image.Image) -> Image.Image:
    return image if image.mode == mode else image.convert(mode)  # Pillow would copy


def _upper_8_bits(image: Image.Image, file: Image.Image) -> Image.Image:
    """Return the upper 8 of the bits that the file declares, as Pillow does where colors have 16."""
    levels, tags = np.asarray(image), getattr(file, "tag_v2", {})
    bits = tags.get(BITS_PER_SAMPLE, (16,))[0]
    pixels = (levels >> (bits - 8)).astype(np.uint8)
    if tags.get(PHOTOMETRIC) == 0:  # 0 is white; Pillow inverts 8 bits, not 16
        pixels = 255 - pixels
    if (transparent := file.info.get("transparency")) is not None:
        pixels = np.where(levels == transparent, np.uint8(255), pixels)
    return Image.fromarray(pixels)


def changes(file: Image.Image, *, turned: bool = True) -> list[str]:
    """Return the names in `CHANGES` of what is done to a file that is not loaded yet; none for most files.

    Args:
        file: the image.
        turned: False if nothing in the file says which side is up. Pillow decodes all of a PNG to find that out.
    """
    found = {
        "orientation": turned and _orientation(file) in range(2, 9),
        "transparency": file.has_transparency_data,
        "depth": is_deep(file),
        "frames": file.format != "MPO" and getattr(file, "is_animated", False),  # MPO: a photo and its preview
    }
    return [change for change, made in found.items() if made]


def is_gray(file: Image.Image) -> bool:
    """Whether a file, loaded or not, holds gray, with or without transparency. A palette holds colors."""
    return file.mode in ("1", "L", "LA") or is_deep(file)


def is_deep(file: Image.Image) -> bool:
    """Whether a file holds gray of more than 8 bits that can be used; PGM's is scaled to 16 bits by Pillow."""
    return file.mode.startswith("I;16") or (file.mode == "I" and file.format == "PPM")


def upright_size(file: Image.Image) -> tuple[int, int]:
    """Width and height in pixels of an image once it is turned upright."""
    return file.size[::-1] if _orientation(file) in range(5, 9) else file.size


def _orientation(file: Image.Image) -> Any:
    """What EXIF says which is still to be done: Pillow itself turns a TIFF when it loads it, and its size is said so before."""
    try:
        return None if file.format == "TIFF" else file.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # parsers raise many types: broken metadata turn nothing
        return None


def scaled_size(size: tuple[int, int], side: int) -> tuple[int, int]:
    """Width and height once the shorter of them is `side`."""
    scale = side / min(size)
    return max(side, round(size[0] * scale)), max(side, round(size[1] * scale))


def image_size(path: str) -> tuple[int, int]:
    """Width and height in pixels of an image once it is turned upright, from the header."""
    with opened(path) as file:
        return upright_size(file)


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
    if file.mode.startswith(("I", "F")) and not is_deep(file):  # Pillow would cut everything above 255 off
        raise ValueError(f"its pixels are {file.mode}; accepted: 8 bits per channel, unsigned gray of 16 bits")


def undecodable(path: str, reason: object) -> ConfigError:
    """What is said of a file that cannot be used, in one line."""
    return reject("data.root", path, f"cannot be decoded as an image ({' '.join(str(reason).split())})")
