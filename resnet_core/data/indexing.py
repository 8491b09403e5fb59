"""What is found out once about images that stay on disk: whether they are whole, what they are, and their colors."""

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
"""Channel statistics of ImageNet's training images that everybody uses, in units of 0 to 255."""
STATISTICS_SAMPLE = 2048
"""Training images that channel statistics of other streamed data are measured on."""
SCAN, END = b"\xff\xda", b"\xff\xd9"
"""Markers of JPEG. Neither occurs within compressed data."""
DECODING_THREADS = min(32, 2 * (os.cpu_count() or 1))
BLOCK = 1024
"""Files that wait for a thread, at most: an interrupted process is done with them soon."""
MAX_NAMED = 10
"""Files that a complaint names, at most."""
METADATA = b"eXIf", b"exif", b"adobe.xmp"
"""What a PNG contains that may say which side is up. Pillow decodes it all to find that out."""

Result = TypeVar("Result")


def read_files(
    read: Callable[[str], Result], paths: Iterable[str], *, root: str | None = None, heartbeat: Heartbeat = no_heartbeat
) -> list[Result]:
    """Return what `read` makes of each file, in order, by threads: decoders, reading and hashing release the interpreter's lock.

    Args:
        read: raises ConfigError for a file that cannot be used.
        paths: the files.
        root: folder to name where several files cannot be used.
        heartbeat: called after each file.

    Raises:
        ConfigError: some cannot be used. All files are read first, and the first ten of those are named.
    """
    results: list[Result] = []
    refused: list[ConfigError] = []
    remaining = iter(paths)
    with ThreadPoolExecutor(DECODING_THREADS) as pool:
        while block := list(islice(remaining, BLOCK)):
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
    """Return one complaint of several about files, each of the form `data.root=FILE: reason`."""
    if len(refused) == 1:
        return refused[0]
    named = "; ".join(str(error).removeprefix("data.root=") for error in sorted(refused, key=str)[:MAX_NAMED])
    more = f"; and {len(refused) - MAX_NAMED:,} more" if len(refused) > MAX_NAMED else ""
    return reject("data.root", root, f"{len(refused):,} files cannot be used: {named}{more}")


def file_digests(
    parts: Sequence[Files], *, root: str | None = None, heartbeat: Heartbeat = no_heartbeat
) -> tuple[list[NDArray[np.uint8]], Counter[str]]:
    """Return hashes (N, 32) of each part's bytes, each file read once, and to how many files which change is made.

    The hash of a file that is not simply pixels also stands for what is done to it: `decoding.changes`.

    Raises:
        ConfigError: files cannot be read, are no images or are truncated.
    """
    paths = (part.path(i) for part in parts for i in range(len(part.labels)))
    found = read_files(_digest, paths, root=root, heartbeat=heartbeat)
    counts = Counter(change for _, changed in found for change in changed)
    digests = np.frombuffer(b"".join(digest for digest, _ in found), np.uint8).reshape(-1, 32)
    return np.split(digests, np.cumsum([len(part.labels) for part in parts[:-1]])), counts


def sampled_images(files: Files, size: int, *, heartbeat: Heartbeat = no_heartbeat) -> NDArray[np.uint8]:
    """The middle squares (N, 3, size, size) of a fixed sample of all classes."""
    sample = subset(files, STATISTICS_SAMPLE)
    return center_crops(sample, len(sample.labels), size, heartbeat=heartbeat)


def center_crops(files: Files, count: int, size: int, *, heartbeat: Heartbeat = no_heartbeat) -> NDArray[np.uint8]:
    """The middle squares (count, 3, size, size) of the first images, as in testing."""
    paths = (files.path(i) for i in range(min(count, len(files.labels))))
    images = read_files(lambda path: decode_view(View(path, shorter_side(size), size)), paths, root=files.root, heartbeat=heartbeat)
    return np.ascontiguousarray(np.stack(images).transpose(0, 3, 1, 2))


def shorter_side(crop: int) -> int:
    """What images are scaled to in testing: 256 pixels for crops of 224."""
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
        raise undecodable(path, "it is no image that Pillow knows") from error
    except Exception as error:  # Pillow's plugins raise many types
        raise undecodable(path, error) from error
    digest = hashlib.sha256(content)
    digest.update("".join(change for change in changed if change != "frames").encode())  # the first was used before, too
    return digest.digest(), changed


def _is_truncated(content: bytes, kind: str | None) -> bool:
    if kind in ("JPEG", "MPO"):
        # After the last scan: a preview in the header has an end of its own, and cameras append their data after the end.
        return content.find(END, content.rfind(SCAN)) < 0
    return kind == "PNG" and b"IEND" not in content
