"""Decoding of image files: pure functions of a path and numbers, with Pillow and numpy only.

Images in memory and streamed images are decoded alike. EXIF orientation is applied, transparent pixels become white, gray images
of 9 to 16 bits keep their upper 8 bits, and a file with several frames gives its first one.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps

from resnet_core.fields import ConfigError, reject

BACKGROUND = "white"
"""Color behind transparent pixels."""
BITS_PER_SAMPLE, PHOTOMETRIC = 258, 262
"""TIFF tags."""
CHANGES = {
    "orientation": "turned as EXIF says",
    "transparency": "with transparency, shown on white",
    "depth": "of 16 bits, the upper 8 used",
    "frames": "with several frames, the first used",
}
"""Descriptions of the changes that decoding makes to a file, by name. The names are part of the file's hash."""


class View(NamedTuple):
    """View of an image file: scale, crop and mirroring."""

    path: str
    """Path of the file."""
    side: int
    """Shorter side that the image is scaled to, in pixels."""
    size: int | None = None
    """Side of the square crop, in pixels. None: the whole image."""
    row: float = 0.5
    """Vertical position of the crop, as a fraction from 0 (top) to 1 (bottom)."""
    column: float = 0.5
    """Horizontal position of the crop, as a fraction from 0 (left) to 1 (right)."""
    flip: bool = False
    """True if the crop is mirrored."""


def decode_view(view: View) -> NDArray[np.uint8]:
    """Return the pixels of a view (H, W, 3), uint8; raise ConfigError that names the file if it cannot be decoded."""
    with opened(view.path) as file:
        upright = upright_size(file)
        width, height = scaled_size(upright, view.side)
        left, top, right, bottom = 0, 0, width, height
        if view.size is not None:
            left, top = int(view.column * (width - view.size + 1)), int(view.row * (height - view.size + 1))
            right, bottom = left + view.size, top + view.size
        # JPEG decoders scale down by 2, 4 or 8 almost for free. Pillow keeps at least the requested size.
        file.draft(None, (width, height) if upright == file.size else (height, width))
        image = _in_mode("RGB", to_8_bits(file))
        across, down = image.width / width, image.height / height
        box = (left * across, top * down, min(right * across, image.width), min(bottom * down, image.height))
        image = image.resize((right - left, bottom - top), Image.Resampling.BILINEAR, box=box)  # resizes the crop only
        if view.flip:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return np.asarray(image, np.uint8)


def decode_square(path: str, size: int | None) -> tuple[NDArray[np.uint8], list[str]]:
    """Return the pixels of an image to hold in memory (H, W, 1 or 3), uint8, and the names of its changes.

    Args:
        path: path of the file.
        size: side of the central square, in pixels, that the shorter side is scaled to first. None: the image as it is.
    """
    with opened(path) as file:
        changed = changes(file)
        return square_pixels(file, size), changed


def square_pixels(file: Image.Image, size: int | None) -> NDArray[np.uint8]:
    """Return the pixels (H, W, 1 or 3), uint8, of an opened image, as `decode_square` does."""
    image = to_8_bits(file)
    if size is not None and image.size != (size, size):
        image = image.resize(scaled_size(image.size, size))
        left, top = (image.width - size) // 2, (image.height - size) // 2
        image = image.crop((left, top, left + size, top + size))
    return np.asarray(image, np.uint8).reshape(image.height, image.width, -1)


def to_8_bits(file: Image.Image) -> Image.Image:
    """Return an upright, opaque 8-bit image: of mode L if the file is gray (`is_gray`), else of mode RGB."""
    file.load()
    image = ImageOps.exif_transpose(file) if _orientation(file) in range(2, 9) else file
    if is_deep(file):
        return _upper_8_bits(image, file)
    if file.has_transparency_data:
        colors = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", colors.size, BACKGROUND), colors)
    return _in_mode("L" if is_gray(file) else "RGB", image)


def _in_mode(mode: str, image: Image.Image) -> Image.Image:
    return image if image.mode == mode else image.convert(mode)  # `convert` would copy


def _upper_8_bits(image: Image.Image, file: Image.Image) -> Image.Image:
    """Return the upper 8 of the declared bits, as Pillow does for colors of 16 bits."""
    levels, tags = np.asarray(image), getattr(file, "tag_v2", {})
    bits = tags.get(BITS_PER_SAMPLE, (16,))[0]
    pixels = (levels >> (bits - 8)).astype(np.uint8)
    if tags.get(PHOTOMETRIC) == 0:  # 0 is white; Pillow inverts images of 8 bits, but not of 16
        pixels = 255 - pixels
    if (transparent := file.info.get("transparency")) is not None:
        pixels = np.where(levels == transparent, np.uint8(255), pixels)
    return Image.fromarray(pixels)


def changes(file: Image.Image, *, turned: bool = True) -> list[str]:
    """Return the names of the changes that decoding makes to a file, keys of `CHANGES`; none for most files.

    Args:
        file: opened image, not loaded yet.
        turned: False if the caller knows that the file states no orientation: Pillow would decode all of a PNG to find out.
    """
    found = {
        "orientation": turned and _orientation(file) in range(2, 9),
        "transparency": file.has_transparency_data,
        "depth": is_deep(file),
        "frames": file.format != "MPO" and getattr(file, "is_animated", False),  # MPO: a photo and its preview
    }
    return [change for change, made in found.items() if made]


def is_gray(file: Image.Image) -> bool:
    """Return True if a file, loaded or not, is gray, with or without transparency. Palettes count as colors."""
    return file.mode in ("1", "L", "LA") or is_deep(file)


def is_deep(file: Image.Image) -> bool:
    """Return True if a file is gray with 9 to 16 bits. Pillow scales PGM files to 16 bits."""
    return file.mode.startswith("I;16") or (file.mode == "I" and file.format == "PPM")


def upright_size(file: Image.Image) -> tuple[int, int]:
    """Return the width and height of the upright image, in pixels."""
    return file.size[::-1] if _orientation(file) in range(5, 9) else file.size


def _orientation(file: Image.Image) -> Any:
    """Return the EXIF orientation that is still to be applied. Pillow itself applies it to TIFF files and to their size."""
    try:
        return None if file.format == "TIFF" else file.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # parsers raise many types; broken metadata are ignored
        return None


def scaled_size(size: tuple[int, int], side: int) -> tuple[int, int]:
    """Return width and height after scaling the shorter one to `side` pixels."""
    scale = side / min(size)
    return max(side, round(size[0] * scale)), max(side, round(size[1] * scale))


def image_size(path: str) -> tuple[int, int]:
    """Return the width and height of the upright image in a file, in pixels, from its header."""
    with opened(path) as file:
        return upright_size(file)


@contextmanager
def opened(path: str) -> Iterator[Image.Image]:
    """Open an image file; any error within the context becomes a ConfigError that names the file."""
    try:
        with Image.open(path) as file:
            check_mode(file)
            yield file
    except ConfigError:
        raise
    except Exception as error:  # Pillow's plugins raise many types
        raise undecodable(path, error) from error


def check_mode(file: Image.Image) -> None:
    """Raise ValueError if the pixels are neither of 8 bits nor unsigned gray of 16 bits."""
    if file.mode.startswith(("I", "F")) and not is_deep(file):  # Pillow would clip values above 255
        raise ValueError(f"its pixels are {file.mode}; accepted: 8 bits per channel, unsigned gray of 16 bits")


def undecodable(path: str, reason: object) -> ConfigError:
    """Return the error for a file that cannot be decoded."""
    return reject("data.root", path, f"cannot be decoded as an image ({' '.join(str(reason).split())})")
