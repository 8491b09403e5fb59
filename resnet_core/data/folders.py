"""Folders of class folders: which image files there are and which class they belong to."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from resnet_core.config import DataConfig
from resnet_core.data.splits import Files, hold_out
from resnet_core.fields import reject

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff", ".webp"})
IMAGENET_CLASSES = 1000
TEST_SHARE = 0.2
"""Held out of a folder that has no test images of its own."""
DEEPEST = 32
"""Folders within folders, at most."""


def existing_folder(config: DataConfig) -> Path:
    """The folder of a data set; raises ConfigError if there is none."""
    root = Path(os.path.expanduser(config.root or "")).absolute()
    if not os.path.isdir(root):  # Path.is_dir raises an error where the folder above cannot be entered
        raise reject("data.root", str(root), f"accepted: an existing folder with {config.name} data")
    return root


def image_folder(config: DataConfig) -> tuple[tuple[str, ...], Files, Files | None]:
    """`root/train/<class>/*` with `root/test` or `root/val`, or `root/<class>/*` of which a fifth is held out for testing.

    A folder `train` is a class if it holds no folders and there is no `test` or `val` next to it. If it holds some, they are the
    classes: as a class itself it would have the images of all of them.
    The test images are None where the scored images are held out of the training images.
    """
    root = existing_folder(config)
    tests = [root / name for name in ("test", "val") if (root / name).is_dir()]
    if (root / "train").is_dir() and (tests or any(_visible_folders(root / "train"))):
        if not (tests or config.validation):
            accepted = "has a folder train; accepted: a folder test or val next to it, or data.validation above 0"
            raise reject("data.root", str(root), accepted)
        return _train_and_test(root, tests[0] if tests else root, config)
    classes, whole = _class_folders(root)
    train, test = hold_out(whole, TEST_SHARE)
    return classes, train, None if config.validation else test


def imagenet(config: DataConfig) -> tuple[tuple[str, ...], Files, Files | None]:
    """`root/train` and `root/val` (or `root/test`) with the same 1,000 class folders.

    The test images are None where the scored images are held out of the training images.
    """
    root = existing_folder(config)
    # `val` before `test`: the images of ImageNet's test set have no published labels.
    tests = [root / name for name in ("val", "test") if (root / name).is_dir()]
    if not (root / "train").is_dir() or not (tests or config.validation):
        raise reject("data.root", str(root), f"accepted: folders train and val in it, each with {IMAGENET_CLASSES} class folders")
    classes, train, test = _train_and_test(root, tests[0] if tests else root, config)
    if len(classes) != IMAGENET_CLASSES:
        accepted = f"imagenet has {IMAGENET_CLASSES} class folders, found {len(classes)}; others: data.name=imagefolder"
        raise reject("data.root", str(root / "train"), accepted)
    return classes, train, test


def files_below(folder: str | Path, above: tuple[tuple[int, int], ...] = ()) -> Iterator[os.DirEntry[str]]:
    """All files below a folder, by name, following links wherever they lead; hidden ones and hidden folders are left out.

    They are made by tools: lock files, and copies of images such as `.ipynb_checkpoints` that would leak between splits.

    Args:
        folder: where to look.
        above: device and number of each folder on the way here.

    Raises:
        ConfigError: a link leads back to a folder that it is in, or folders are nested without end.
    """
    status = os.stat(folder)
    own = (status.st_dev, status.st_ino)
    if own in above:  # its images would be found over and over, and land in both splits
        raise reject("data.root", os.fspath(folder), "is a link to a folder that it is in")
    if len(above) > DEEPEST:
        raise reject("data.root", os.fspath(folder), f"accepted: at most {DEEPEST} folders within each other")
    with os.scandir(folder) as entries:
        for entry in sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda entry: entry.name):
            if entry.is_dir():
                yield from files_below(entry.path, (*above, own))
            else:
                yield entry


@contextmanager
def readable(config: DataConfig) -> Iterator[None]:
    """An OSError within, of a dangling link or a folder that may not be read, is a ConfigError that names it."""
    try:
        yield
    except OSError as error:
        raise reject("data.root", error.filename or config.root, f"cannot be read ({error.strerror or error})") from error


def _train_and_test(root: Path, tests: Path, config: DataConfig) -> tuple[tuple[str, ...], Files, Files | None]:
    classes, train = _class_folders(root / "train")
    if config.validation:
        return classes, train, None
    test_classes, test = _class_folders(tests)
    if classes != test_classes:
        odd = ", ".join(sorted(set(classes) ^ set(test_classes))[:5])
        raise reject("data.root", str(root), f"train and {tests.name} must have the same classes; only in one: {odd}")
    return classes, train, test


def _class_folders(root: Path) -> tuple[tuple[str, ...], Files]:
    classes = sorted(_visible_folders(root))
    if len(classes) < 2:
        raise reject("data.root", str(root), f"accepted: at least two class folders, found {len(classes)}")
    names: list[bytes] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        found = [os.fsencode(os.path.relpath(entry.path, root)) for entry in files_below(root / name) if _is_image(entry)]
        if not found:
            raise reject("data.root", str(root / name), f"no images in it; accepted: {', '.join(sorted(IMAGE_SUFFIXES))}")
        names += found
        labels += [label] * len(found)
    return tuple(classes), Files(str(root), np.array(names), np.array(labels, np.int64))


def _visible_folders(root: Path) -> Iterator[str]:
    return (path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))


def _is_image(entry: os.DirEntry[str]) -> bool:
    if os.path.splitext(entry.name)[1].lower() not in IMAGE_SUFFIXES:
        return False
    if not entry.is_file():  # reading a pipe waits for ever, a device never ends
        entry.stat()  # of a link that leads nowhere, the system says so
        raise reject("data.root", entry.path, "is named like an image and is no file")
    return True
