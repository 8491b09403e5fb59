"""Checks, hashes and channel statistics of image files, computed once per data set by threads."""

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from resnet_core.data.decoding import View, changes, check_mode, decode_view, undecodable
from resnet_core.data.splits import Files, subset
from resnet_core.fields import ConfigError, reject
from resnet_core.heartbeat import Heartbeat, no_heartbeat

IMAGENET_MEAN = (0.485 * 255, 0.456 * 255, 0.406 * 255)
IMAGENET_STD = (0.229 * 255, 0.224 * 255, 0.225 * 255)
"""Commonly used channel statistics of ImageNet's training images, on the scale of 0 to 255."""
STATISTICS_SAMPLE = 2048
"""Number of training images for the channel statistics of other streamed data sets."""
SCAN, END = b"\xff\xda", b"\xff\xd9"
"""JPEG markers for the start of a scan and the end of the image. Neither occurs within compressed data."""
DECODING_THREADS = min(32, 2 * (os.cpu_count() or 1))
MAX_QUEUED_FILES = 1024
"""Maximum number of files that wait for a thread. A low number lets an interrupted process end soon."""
MAX_NAMED_FILES = 10
"""Maximum number of files that an error message names."""
METADATA = b"eXIf", b"exif", b"adobe.xmp"
"""Bytes of a PNG that may hold an orientation. Searching for them saves decoding all of the PNG."""

Result = TypeVar("Result")


def read_files(
    read: Callable[[str], Result], paths: Iterable[str], *, root: str | None = None, heartbeat: Heartbeat = no_heartbeat
) -> list[Result]:
    """Return the result of `read` for each file, in order. Threads suffice: decoding, reading and hashing release the GIL.

    Args:
        read: function of a path that raises ConfigError for an unusable file.
        paths: paths of the files.
        root: folder that the message names if several files are unusable.
        heartbeat: called after each file.

    Raises:
        ConfigError: files are unusable. The message, after all files were read, names the first ten.
    """
    results: list[Result] = []
    refused: list[ConfigError] = []
    remaining = iter(paths)
    with ThreadPoolExecutor(DECODING_THREADS) as pool:
        while block := list(islice(remaining, MAX_QUEUED_FILES)):
            for result in pool.map(partial(_attempt, read), block):
                if isinstance(result, ConfigError):
                    refused.append(result)
                else:
                    results.append(result)
                heartbeat()
    if refused:
        raise unusable(root, refused)
    return results


def unusable(root: str | None, refused: Sequence[ConfigError]) -> ConfigError:
    """Return one error for several unusable files, from errors of the form `data.root=FILE: reason`."""
    if len(refused) == 1:
        return refused[0]
    named = "; ".join(str(error).removeprefix("data.root=") for error in sorted(refused, key=str)[:MAX_NAMED_FILES])
    more = f"; and {len(refused) - MAX_NAMED_FILES:,} more" if len(refused) > MAX_NAMED_FILES else ""
    return reject("data.root", root, f"{len(refused):,} files cannot be used: {named}{more}")


def file_digests(
    parts: Sequence[Files], *, root: str | None = None, heartbeat: Heartbeat = no_heartbeat
) -> tuple[list[NDArray[np.uint8]], Counter[str]]:
    """Return SHA-256 hashes (N, 32) of the files of each part, and the number of files by kind of change. Each file is read once.

    The hash of a file that decoding changes includes the names of the changes, from `decoding.changes`.

    Args:
        parts: training and evaluation images.
        root: folder that the message names if several files are unusable.
        heartbeat: called after each file.

    Raises:
        ConfigError: files are unreadable, truncated or not images.
    """
    paths = (part.path(i) for part in parts for i in range(len(part.labels)))
    found = read_files(_digest, paths, root=root, heartbeat=heartbeat)
    counts = Counter(change for _, changed in found for change in changed)
    digests = np.frombuffer(b"".join(digest for digest, _ in found), np.uint8).reshape(-1, 32)
    return np.split(digests, np.cumsum([len(part.labels) for part in parts[:-1]])), counts


def sampled_images(files: Files, size: int, *, heartbeat: Heartbeat = no_heartbeat) -> NDArray[np.uint8]:
    """Return center crops (N, 3, size, size), uint8, of a fixed sample of all classes."""
    sample = subset(files, STATISTICS_SAMPLE)
    return center_crops(sample, len(sample.labels), size, heartbeat=heartbeat)


def center_crops(files: Files, count: int, size: int, *, heartbeat: Heartbeat = no_heartbeat) -> NDArray[np.uint8]:
    """Return center crops (count, 3, size, size), uint8, of the first `count` images, as in testing."""
    paths = (files.path(i) for i in range(min(count, len(files.labels))))
    images = read_files(lambda path: decode_view(View(path, shorter_side(size), size)), paths, root=files.root, heartbeat=heartbeat)
    return np.ascontiguousarray(np.stack(images).transpose(0, 3, 1, 2))


def shorter_side(crop: int) -> int:
    """Return the shorter side that images are scaled to in testing: 256 pixels for crops of 224."""
    return round(8 / 7 * crop)


def _attempt(read: Callable[[str], Result], path: str) -> Result | ConfigError:
    try:
        return read(path)
    except ConfigError as error:
        return error


def _digest(path: str) -> tuple[bytes, list[str]]:
    try:
        content = Path(path).read_bytes()
        with Image.open(BytesIO(content)) as image:
            check_mode(image)
            if _is_truncated(content, image.format):
                raise ValueError("the file is truncated")
            changed = changes(image, turned=image.format != "PNG" or any(mark in content for mark in METADATA))
    except UnidentifiedImageError as error:
        raise undecodable(path, "not an image format that Pillow supports") from error
    except Exception as error:  # Pillow's plugins raise many types
        raise undecodable(path, error) from error
    digest = hashlib.sha256(content)
    # "frames" is left out: data versions from before it was counted also used the first frame, and stay valid.
    digest.update("".join(change for change in changed if change != "frames").encode())
    return digest.digest(), changed


def _is_truncated(content: bytes, kind: str | None) -> bool:
    if kind in ("JPEG", "MPO"):
        # Search after the last scan: a preview in the header has its own end marker, and cameras append data after the end.
        return content.find(END, content.rfind(SCAN)) < 0
    return kind == "PNG" and b"IEND" not in content
