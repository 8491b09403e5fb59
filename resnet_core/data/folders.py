"""Folders of class folders: which image files there are, which class they belong to, and what else lies there."""

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
from resnet_core.fields import ConfigError, reject
from resnet_core.heartbeat import Heartbeat, no_heartbeat

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff", ".webp"})
IMAGENET_CLASSES = 1000
TEST_SHARE = 0.2
"""Held out of a folder that has no test images of its own."""
DEEPEST = 32
"""Folders within folders, at most."""
LETTER = r"[^\W\d_]"
SPLIT_NAMES = re.compile(
    rf"(?<!{LETTER})(?:(train|training)|(val|valid|validation|dev)|(test|testing|eval|evaluation))"
    rf"(?:[\W_]*(?:set|data|images))*(?!{LETTER})"
)
"""Words for a split within a name in lower case, one group for each split."""
TRAINING = 1
"""The group of training images."""
CAMEL_CASE = "(?<=[a-z])(?=[A-Z])", "(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])"
"""Where a word begins within a name, as in `imagesTrain` or `XTrain`; the latter rule alone would split `TRAINset` at its N."""
MAX_KINDS = 5
"""Kinds of files passed over that a summary names, at most."""


@dataclass(frozen=True)
class Listing:
    """What is in a folder, without looking into a file."""

    classes: tuple[str, ...]
    train: Files
    test: Files | None
    """None where the scored images are held out of the training images."""
    scored: str
    """Where the scored images come from, in words."""
    skipped: str
    """What is passed over, in words; empty if nothing is."""
    state: str
    """Hash of the images' names, sizes and times of change: another one if any of them was added, removed, moved or written."""


class _Walk:
    """A way through class folders, and what was seen on it."""

    def __init__(self, root: Path, heartbeat: Heartbeat) -> None:
        self.root, self.heartbeat = root, heartbeat
        self.skipped: Counter[str] = Counter()
        self._state = hashlib.sha256(os.fsencode(root))
        self._refused: list[ConfigError] = []

    def classes(self, root: Path) -> tuple[tuple[str, ...], Files]:
        """Return the names of the class folders in `root`, and their images."""
        classes = sorted(_visible_folders(root, self.skipped))
        if splits := _alike_but_for_the_split(classes):
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
        """Return what was seen; raises ConfigError if something in place of an image cannot be read."""
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
            except OSError as error:  # a link that leads nowhere
                self._refused.append(reject("data.root", entry.path, f"cannot be read ({error.strerror or error})"))
                continue
            if not stat.S_ISREG(status.st_mode):  # reading a pipe waits for ever, a device never ends
                self._refused.append(reject("data.root", entry.path, "is named like an image and is no file"))
                continue
            path = os.fsencode(entry.path)
            self._state.update(state_of(path, status))
            yield path


def state_of(path: bytes, status: os.stat_result) -> bytes:
    """Return what tells a file from what it was before, without reading it.

    The time of the last change (ctime) counts next to that of the last write (mtime), which a copy may bring along: only the
    former says that two files of one size and age were exchanged.
    """
    return b"%s\0%d\0%d\0%d\n" % (path, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def existing_folder(config: DataConfig) -> Path:
    """The folder of a data set; raises ConfigError if there is none."""
    root = Path(os.path.expanduser(config.root or "")).absolute()
    if not os.path.isdir(root):  # Path.is_dir raises an error where the folder above cannot be entered
        raise reject("data.root", str(root), f"accepted: an existing folder with {config.name} data")
    return root


def image_folder(config: DataConfig, *, heartbeat: Heartbeat = no_heartbeat) -> Listing:
    """`root/train/<class>/*` with `root/test` or `root/val`, or `root/<class>/*` of which a fifth is held out for testing.

    A folder `train` is a class if it holds no folders and there is no `test` or `val` next to it. If it holds some, they are the
    classes: as a class itself it would have the images of all of them.
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
    train, test = hold_out(whole.train, TEST_SHARE)
    return replace(whole, train=train, test=test, scored="a fifth of each class, held out")


def imagenet(config: DataConfig, *, heartbeat: Heartbeat = no_heartbeat) -> Listing:
    """`root/train` and `root/val` (or `root/test`) with the same 1,000 class folders."""
    root = existing_folder(config)
    # `val` before `test`: the images of ImageNet's test set have no published labels.
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
    """All files below a folder, by name, following links wherever they lead; hidden ones and hidden folders are left out.

    They are made by tools: lock files, and copies of images such as `.ipynb_checkpoints` that would leak between splits.

    Args:
        folder: where to look.
        above: device and number of each folder on the way here.
        skipped: counts hidden files and folders, if given.

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
    """An OSError within, of a dangling link or a folder that may not be read, is a ConfigError that names it."""
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
        odd = ", ".join(sorted(set(classes) ^ set(test_classes))[:5])
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


def _alike_but_for_the_split(names: Iterable[str]) -> list[str]:
    """Return names that differ only in a word for a split: `Train` and `TestSet`, or `seg_train` and `seg_test`; not `test_tube`.

    With other words in them they are splits only if one is for training: `Dev Team` and `Test Team` are classes.
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
