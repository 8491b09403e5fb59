"""What is found out once about images that stay on disk: whether they are whole, what they are, and their colours."""

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from itertools import repeat
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from resnet_core.data.decoding import View, check_mode, decode_view, undecodable
from resnet_core.data.splits import Files, subset

IMAGENET_MEAN = (0.485 * 255, 0.456 * 255, 0.406 * 255)
IMAGENET_STD = (0.229 * 255, 0.224 * 255, 0.225 * 255)
"""Channel statistics of ImageNet's training images that everybody uses, in units of 0 to 255."""
STATISTICS_SAMPLE = 2048
"""Training images that channel statistics of other streamed data are measured on."""
SCAN, END = b"\xff\xda", b"\xff\xd9"
"""Markers of JPEG. Neither occurs within compressed data."""
DECODING_THREADS = min(32, 2 * (os.cpu_count() or 1))


def file_digests(files: Files) -> NDArray[np.uint8]:
    """Hashes (N, 32) of the files' bytes, each file read once.

    Raises:
        ConfigError: a file cannot be read, is no image or is truncated.
    """
    paths = (files.path(i) for i in range(len(files.labels)))
    with ThreadPoolExecutor(DECODING_THREADS) as pool:  # reading and hashing release the GIL
        digests = b"".join(pool.map(_digest, paths))
    return np.frombuffer(digests, np.uint8).reshape(-1, 32)


def sampled_images(files: Files, size: int) -> NDArray[np.uint8]:
    """The middle squares (N, 3, size, size) of a fixed sample of all classes."""
    sample = subset(files, STATISTICS_SAMPLE)
    return centre_crops(sample, len(sample.labels), size)


def centre_crops(files: Files, count: int, size: int) -> NDArray[np.uint8]:
    """The middle squares (count, 3, size, size) of the first images, as in testing."""
    paths = (files.path(i) for i in range(min(count, len(files.labels))))
    with ThreadPoolExecutor(DECODING_THREADS) as pool:
        images = list(pool.map(decode_view, map(View, paths, repeat(shorter_side(size)), repeat(size))))
    return np.ascontiguousarray(np.stack(images).transpose(0, 3, 1, 2))


def shorter_side(crop: int) -> int:
    """What images are scaled to in testing: 256 pixels for crops of 224."""
    return round(8 / 7 * crop)


def _digest(path: str) -> bytes:
    try:
        content = Path(path).read_bytes()
        with Image.open(BytesIO(content)) as image:
            check_mode(image)
            if _is_truncated(content, image.format):
                raise ValueError("the file is truncated")
    except UnidentifiedImageError as error:
        raise undecodable(path, "it is no image that Pillow knows") from error
    except Exception as error:  # Pillow's plugins raise many types
        raise undecodable(path, error) from error
    return hashlib.sha256(content).digest()


def _is_truncated(content: bytes, kind: str | None) -> bool:
    if kind in ("JPEG", "MPO"):
        # After the last scan: a preview in the header has an end of its own, and cameras append their data after the end.
        return content.find(END, content.rfind(SCAN)) < 0
    return kind == "PNG" and b"IEND" not in content
