"""Listing of folders of class folders: image files, their classes, and ignored files."""

import hashlib
import itertools
import os
import re
import stat
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from resnet_core.config import DataConfig
from resnet_core.data.indexing import unusable
from resnet_core.data.splits import Files, hold_out
from resnet_core.fields import ConfigError, enumerated, reject
from resnet_core.heartbeat import Heartbeat, no_heartbeat

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff", ".webp"})
"""Suffixes of image files, in lower case."""
IMAGENET_CLASSES = 1000
TEST_FRACTION = 0.2
"""Fraction of each class that is held out as the test set if a folder has none."""
MAX_FOLDER_DEPTH = 32
"""Maximum number of nested folders."""
LETTER = r"[^\W\d_]"
"""Pattern of a letter."""
SPLIT_NAMES = re.compile(
    rf"(?<!{LETTER})(?:(train|training)|(val|valid|validation|dev)|(test|testing|eval|evaluation))"
    rf"(?:[\W_]*(?:set|data|images))*(?!{LETTER})"
)
"""Pattern of words for a split in a lower-case name: training, validation and test in one group each."""
TRAINING = 1
"""Number of the group for training images."""
CAMEL_CASE = "(?<=[a-z])(?=[A-Z])", "(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])"
"""Patterns of word boundaries in camel case, as in `imagesTrain` and `XTrain`. The second alone would split `TRAINset` before its
N."""
MAX_NAMED_CLASSES = 5
"""Maximum number of classes that a message names."""
MAX_KINDS = 5
"""Maximum number of kinds of ignored files that a summary names."""


@dataclass(frozen=True)
class Listing:
    """Contents of a folder of class folders, without opening files."""

    classes: tuple[str, ...]
    """Names of the classes, in order of their labels."""
    train: Files
    """Training images."""
    test: Files | None
    """Test images. None: evaluation images are held out of the training images."""
    scored: str
    """Origin of the evaluation images, in words."""
    skipped: str
    """Ignored files and folders, in words; empty if there are none."""
    state: str
    """Hash of the images' names, sizes and times of change. It changes if an image is added, removed, moved or written."""


class _Walk:
    """Walk through class folders that counts ignored files and collects unusable ones."""

    def __init__(self, root: Path, heartbeat: Heartbeat) -> None:
        self.root, self.heartbeat = root, heartbeat
        self.skipped: Counter[str] = Counter()
        self._state = hashlib.sha256(os.fsencode(root))
        self._refused: list[ConfigError] = []

    def classes(self, root: Path) -> tuple[tuple[str, ...], Files]:
        """Return the names of the class folders in `root` and their images; raise ConfigError if they cannot be classes."""
        classes = sorted(_visible_folders(root, self.skipped))
        if splits := _names_of_splits(classes):
            accepted = "accepted: folders train and test (or val), each with class folders; if they are classes, rename one of them"
            raise reject("data.root", str(root), f"{' and '.join(splits)} look like splits, not classes; {accepted}")
        if len(classes) < 2:
            raise reject("data.root", str(root), f"accepted: at least two class folders, found {len(classes)}")
        names: list[bytes] = []
        labels: list[int] = []
        above = len(os.fsencode(os.path.join(root, "")))
        for label, name in enumerate(classes):
            before = len(names), len(self._refused)
            names += (path[above:] for path in self._images(root / name))
            if before == (len(names), len(self._refused)):
                raise reject("data.root", str(root / name), f"no images in it; accepted: {', '.join(sorted(IMAGE_SUFFIXES))}")
            labels += [label] * (len(names) - before[0])
        return tuple(classes), Files(str(root), np.array(names), np.array(labels, np.int64))

    def listing(
        self, classes: tuple[str, ...], train: Files, test: Files | None, scored: str, unused: Sequence[str] = ()
    ) -> Listing:
        """Return the listing of the walk.

        Args:
            classes: names of the classes.
            train: training images.
            test: test images; None if there are none.
            scored: origin of the evaluation images, in words.
            unused: names of ignored folders.

        Raises:
            ConfigError: a file with the name of an image cannot be read.
        """
        if self._refused:
            raise unusable(str(self.root), self._refused)
        return Listing(classes, train, test, scored, self._skipped(unused), self._state.hexdigest())

    def _skipped(self, folders: Sequence[str]) -> str:
        named = self.skipped.most_common(MAX_KINDS)
        words = [f"{count:,} {kind}" for kind, count in named] + [f"the folder {name}" for name in folders[:MAX_KINDS]]
        if others := self.skipped.total() - sum(count for _, count in named):
            words.append(f"{others:,} other files")
        if len(folders) > MAX_KINDS:
            words.append(f"{len(folders) - MAX_KINDS:,} other folders")
        return ", ".join(words)

    def _images(self, folder: Path) -> Iterator[bytes]:
        for entry in files_below(folder, skipped=self.skipped):
            self.heartbeat()
            suffix = os.path.splitext(entry.name)[1].lower()
            if suffix not in IMAGE_SUFFIXES:
                self.skipped[suffix or "without extension"] += 1
                continue
            try:
                status = entry.stat()
            except OSError as error:  # a dangling link
                self._refused.append(reject("data.root", entry.path, f"cannot be read ({error.strerror or error})"))
                continue
            if not stat.S_ISREG(status.st_mode):  # a pipe would block, a device would never end
                self._refused.append(reject("data.root", entry.path, "has the name of an image but is not a regular file"))
                continue
            path = os.fsencode(entry.path)
            self._state.update(state_of(path, status))
            yield path


def state_of(path: bytes, status: os.stat_result) -> bytes:
    """Return the path, size and times of a file, which change whenever the file does.

    Copies may preserve the time of the last write (mtime). Only the time of the last change (ctime) shows that two files of equal
    size and mtime were exchanged.
    """
    return b"%s\0%d\0%d\0%d\n" % (path, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def existing_folder(config: DataConfig) -> Path:
    """Return the folder of a data set; raise ConfigError if it does not exist."""
    root = Path(os.path.expanduser(config.root or "")).absolute()
    if not os.path.isdir(root):  # Path.is_dir raises if the parent folder is not accessible
        raise reject("data.root", str(root), f"accepted: an existing folder with {config.name} data")
    return root


def image_folder(config: DataConfig, *, heartbeat: Heartbeat = no_heartbeat) -> Listing:
    """Return the listing of `data.name=imagefolder`.

    Two layouts are accepted: `root/train/<class>/*` with `root/test` or `root/val`, and `root/<class>/*`, of which a fifth is
    held out. A folder `train` is itself a class if it holds no folders and has no `test` or `val` beside it.

    Args:
        config: data set.
        heartbeat: called for each file.

    Raises:
        ConfigError: the folder has another layout, or holds unusable files.
    """
    root = existing_folder(config)
    tests = [name for name in ("test", "val") if (root / name).is_dir()]
    if (root / "train").is_dir() and (tests or any(_visible_folders(root / "train"))):
        if not (tests or config.validation):
            accepted = "has a folder train; accepted: a folder test or val next to it, or data.validation above 0"
            raise reject("data.root", str(root), accepted)
        return _train_and_test(root, tests, config, heartbeat)
    walk = _Walk(root, heartbeat)
    whole = walk.listing(*walk.classes(root), None, "")
    if config.validation:
        return whole
    train, test = hold_out(whole.train, TEST_FRACTION)
    return replace(whole, train=train, test=test, scored="a fifth of each class, held out")


def imagenet(config: DataConfig, *, heartbeat: Heartbeat = no_heartbeat) -> Listing:
    """Return the listing of `data.name=imagenet`: `root/train` and `root/val` (or `root/test`) with the same 1,000 class folders.

    Args:
        config: data set.
        heartbeat: called for each file.

    Raises:
        ConfigError: the folder has another layout, or holds unusable files.
    """
    root = existing_folder(config)
    # `val` before `test`: the labels of ImageNet's test set are not published.
    tests = [name for name in ("val", "test") if (root / name).is_dir()]
    if not (root / "train").is_dir() or not (tests or config.validation):
        raise reject("data.root", str(root), f"accepted: folders train and val in it, each with {IMAGENET_CLASSES} class folders")
    found = _train_and_test(root, tests, config, heartbeat)
    if len(found.classes) != IMAGENET_CLASSES:
        accepted = f"imagenet has {IMAGENET_CLASSES} class folders, found {len(found.classes)}; others: data.name=imagefolder"
        raise reject("data.root", str(root / "train"), accepted)
    return found


def files_below(
    folder: str | Path, above: tuple[tuple[int, int], ...] = (), skipped: Counter[str] | None = None
) -> Iterator[os.DirEntry[str]]:
    """Yield all files below a folder in order of their names, following links.

    Hidden files and folders are ignored. Tools create them: lock files, and copies of images such as `.ipynb_checkpoints` that
    would leak between splits.

    Args:
        folder: folder to walk through.
        above: device and inode number of each enclosing folder.
        skipped: counter of hidden files and folders.

    Raises:
        ConfigError: a link leads to a folder that contains it, or folders are nested too deeply.
    """
    status = os.stat(folder)
    own = (status.st_dev, status.st_ino)
    if own in above:  # its images would be found repeatedly, and end up in both splits
        raise reject("data.root", os.fspath(folder), "is a link to a folder that contains it")
    if len(above) > MAX_FOLDER_DEPTH:
        raise reject("data.root", os.fspath(folder), f"accepted: at most {MAX_FOLDER_DEPTH} nested folders")
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if entry.name.startswith("."):
                if skipped is not None:
                    skipped["hidden"] += 1
            elif entry.is_dir():
                yield from files_below(entry.path, (*above, own), skipped)
            else:
                yield entry


@contextmanager
def readable(config: DataConfig) -> Iterator[None]:
    """Turn an OSError, as from a dangling link or an unreadable folder, into a ConfigError that names the path."""
    try:
        yield
    except OSError as error:
        raise reject("data.root", error.filename or config.root, f"cannot be read ({error.strerror or error})") from error


def _train_and_test(root: Path, tests: list[str], config: DataConfig, heartbeat: Heartbeat) -> Listing:
    used = {"train"} if config.validation else {"train", tests[0]}
    walk = _Walk(root, heartbeat)
    unused = [name for name in sorted(_visible_folders(root, walk.skipped)) if name not in used]
    classes, train = walk.classes(root / "train")
    if config.validation:
        return walk.listing(classes, train, None, "", unused)
    test_classes, test = walk.classes(root / tests[0])
    if classes != test_classes:
        odd = enumerated(sorted(set(classes) ^ set(test_classes)), MAX_NAMED_CLASSES)
        raise reject("data.root", str(root), f"train and {tests[0]} must have the same classes; only in one: {odd}")
    return walk.listing(classes, train, test, f"the folder {tests[0]}", unused)


def _visible_folders(root: Path, skipped: Counter[str] | None = None) -> Iterator[str]:
    for path in root.iterdir():
        if path.name.startswith("."):
            kind = "hidden"
        elif path.is_dir():
            yield path.name
            continue
        else:
            kind = "beside the folders"
        if skipped is not None:
            skipped[kind] += 1


def _names_of_splits(names: Iterable[str]) -> list[str]:
    """Return names that differ only in a word for a split, such as `Train` and `TestSet`, or `seg_train` and `seg_test`.

    Names with further words are splits only if one of them is for training: `Dev Team` and `Test Team` are classes.
    """
    alike: defaultdict[tuple[str, ...], dict[int | None, str]] = defaultdict(dict)
    for name, beginning in itertools.product(names, CAMEL_CASE):
        words = re.sub(beginning, "_", name).lower()
        for match in SPLIT_NAMES.finditer(words):
            others = tuple(re.sub(r"[\W_]+", "", part) for part in (words[: match.start()], words[match.end() :]))
            alike[others].setdefault(match.lastindex, name)
    for others, splits in alike.items():
        if len(splits) > 1 and (TRAINING in splits or not re.search(LETTER, "".join(others))):
            return list(splits.values())
    return []
