"""Data sets of one's own: arrays, map-style datasets, Hugging Face folders and Parquet files become images as built-in ones are."""

import io
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from resnet_core import ConfigError, DataConfig, Images, fit, load_dataset, override, preset
from resnet_core.data import datasets as ours
from resnet_core.data.splits import Split

OWN = DataConfig(name="own")
RANDOM = np.random.RandomState(0)
PIXELS = RANDOM.randint(0, 256, (60, 3, 8, 8)).astype(np.uint8)
LABELS = np.arange(60) % 3
CLASSES = ("a", "b", "c")
TEST = (PIXELS[:12], LABELS[:12])


def reader(train: Any = (PIXELS, LABELS), test: Any = TEST, classes: Any = CLASSES, version: Any = None) -> Callable[..., Images]:
    def read(config: DataConfig) -> Images:
        return Images(train=train, test=test, classes=classes, version=version)

    return read


class Pairs:
    """A map-style dataset; counts the images that it decodes."""

    def __init__(self, count: int = 60, side: int = 8, mode: str = "RGB") -> None:
        self.count, self.side, self.mode, self.decoded = count, side, mode, 0

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Any, int]:
        self.decoded += 1
        image = Image.fromarray(PIXELS[index].transpose(1, 2, 0)).convert(self.mode)
        return image.resize((self.side, self.side)), int(LABELS[index])


def arrays(part: Any) -> Split:
    assert isinstance(part, Split)
    return part


@pytest.mark.parametrize(
    "train",
    [
        (PIXELS, LABELS),
        (PIXELS.transpose(0, 2, 3, 1), list(LABELS)),
        list(zip(PIXELS.transpose(0, 2, 3, 1), LABELS, strict=True)),
        list(zip(PIXELS, LABELS, strict=True)),
        Pairs(),
    ],
    ids=["NCHW", "NHWC", "list of HWC", "list of CHW", "PIL"],
)
def test_all_forms_of_the_same_images_are_the_same_data(train: Any) -> None:
    dataset = load_dataset(OWN, reader=reader(train))
    assert np.array_equal(arrays(dataset.train).images, PIXELS)
    assert np.array_equal(arrays(dataset.train).labels, LABELS)
    assert dataset.version == load_dataset(OWN, reader=reader()).version
    assert (dataset.classes, dataset.in_channels, dataset.image_size) == (CLASSES, 3, 8)


def test_images_of_pil_are_resized_and_gray_ones_stay_gray() -> None:
    dataset = load_dataset(replace(OWN, image_size=6), reader=reader(Pairs(mode="L"), None))
    assert (dataset.in_channels, dataset.image_size) == (1, 6)
    mixed = load_dataset(OWN, reader=reader(Pairs(mode="L"), Pairs(12)))
    assert (mixed.in_channels, len(mixed.test.labels)) == (3, 12)


def test_without_a_test_set_a_fifth_of_each_class_is_held_out() -> None:
    dataset = load_dataset(OWN, reader=reader(test=None))
    assert np.bincount(dataset.test.labels).tolist() == [4, 4, 4]
    assert (len(dataset.train.labels), dataset.scored) == (48, "a fifth of each class, held out")


def test_a_validation_split_never_reads_the_test_set() -> None:
    test = Pairs(12)
    dataset = load_dataset(replace(OWN, validation=0.1), reader=reader(test=test))
    assert (len(dataset.train.labels), len(dataset.test.labels), test.decoded) == (54, 6, 0)


def test_train_examples_select_a_balanced_subset_and_another_version() -> None:
    whole, some = (load_dataset(replace(OWN, train_examples=count), reader=reader(version="1")) for count in (None, 30))
    assert np.bincount(some.train.labels).tolist() == [10, 10, 10]
    assert whole.version != some.version
    assert np.array_equal(arrays(whole.test).images, arrays(some.test).images)


def test_the_version_is_a_hash_of_the_content_and_of_the_given_one() -> None:
    other = PIXELS.copy()
    other[0, 0, 0, 0] ^= 1
    assert load_dataset(OWN, reader=reader()).version != load_dataset(OWN, reader=reader((other, LABELS))).version
    one, same, changed, two = (
        load_dataset(OWN, reader=reader((each, LABELS), version=version)).version
        for each, version in ((PIXELS, "1"), (PIXELS, "1"), (other, "1"), (PIXELS, "2"))
    )
    assert one == same
    assert len({one, changed, two}) == 3


@pytest.mark.parametrize("lazy", [False, True], ids=["arrays", "a data set"])
@pytest.mark.parametrize("kept", [False, True], ids=["in another process", "in this process"])
def test_readers_that_give_the_same_version_do_not_share_images(tmp_path: Path, lazy: bool, kept: bool) -> None:
    def given(pixels: Any) -> Any:
        return list(zip(pixels, LABELS, strict=True)) if lazy else (pixels, LABELS)

    for pixels, code in ((PIXELS, "a"), (PIXELS // 2, "b"), (PIXELS, "a")):
        for reader_code, cache in ((code, tmp_path), ("", tmp_path), (code, None)):
            if not kept:
                ours._kept.clear()
            dataset = load_dataset(OWN, cache, reader=reader(given(pixels), None, version="1"), reader_code=reader_code)
            assert arrays(dataset.train).images.mean() == pytest.approx(pixels.mean(), rel=0.1)


def test_a_reader_s_images_in_another_folder_are_others(tmp_path: Path) -> None:
    means = []
    for root, pixels in (("one", PIXELS), ("two", PIXELS // 2)):
        read = reader(list(zip(pixels, LABELS, strict=True)), version="1")
        means.append(load_dataset(replace(OWN, root=root), tmp_path, reader=read, reader_code="a").mean)
    assert means[0] != means[1]


def test_decoded_images_are_cached_under_their_version(tmp_path: Path) -> None:
    datasets = []
    counts = []
    for version in ("1", "1", "2"):
        ours._kept.clear()  # as in another process
        pairs = Pairs()
        datasets.append(load_dataset(OWN, tmp_path, reader=reader(pairs, None, version=version), reader_code="a"))
        counts.append(pairs.decoded)
    assert counts == [61, 0, 61]  # the first image also tells the memory that all need
    assert np.array_equal(arrays(datasets[0].train).images, arrays(datasets[1].train).images)
    assert datasets[0].version == datasets[1].version
    assert datasets[1].scored == "a fifth of each class, held out"


def test_content_without_a_version_is_the_same_object_while_it_is_the_same() -> None:
    first, again = (load_dataset(OWN, reader=reader()) for _ in range(2))
    assert first is again
    assert load_dataset(OWN, reader=reader((255 - PIXELS, LABELS))) is not first


def test_a_run_trains_on_own_images() -> None:
    spec = override(preset("smoke"), {"data.name": "own", "image_size": None, "train_examples": None, "test_examples": None})
    *_, last = fit(spec, dataset=load_dataset(spec.data, reader=reader(Pairs(mode="L"), None)))
    assert last.metrics["test/loss"] > 0


def failing(_: DataConfig) -> Images:
    raise OSError("no such disk")


WRONG: dict[str, tuple[Any, dict[str, Any], str]] = {
    "no reader": (None, {}, r"^data.name=own: is what a reader returns, and there is none"),
    "failure": (failing, {}, r"^failing: OSError: no such disk$"),
    "another result": (lambda _: 3, {}, r"returns int; accepted: resnet_core.Images$"),
    "classes": (reader(classes=["a"]), {}, r"^read: classes=\['a'\]: accepted: at least two different names$"),
    "a number of classes": (reader(classes=10), {}, r"^read: classes=10: accepted: at least two different names$"),
    "no classes": (reader(classes=None), {}, r"^read: classes=None: accepted: at least two different names$"),
    "one text": (reader(classes="abc"), {}, r"^read: classes='abc': accepted"),
    "other data beside a reader": (
        reader(),
        {"name": "digits"},
        r"^data.name=digits: the images are those of a reader; accepted: own",
    ),
    "ragged images": (reader(([[1, 2], [3]], [0, 1])), {}, r"^images of read: train: .*; accepted: values of equal shape$"),
    "ragged labels": (reader((PIXELS, [[0], [1, 2]])), {}, r"^labels of read: train: .*; accepted: values of equal shape$"),
    "a list as a label": (reader([(PIXELS[0], 0), (PIXELS[1], [1, 2])]), {}, r"^labels of read: train: "),
    "version": (reader(version=3), {}, r"^read: version=3: accepted: text, or None"),
    "floats": (reader((PIXELS / 255, LABELS)), {}, r"^read: train has images \(60, 3, 8, 8\) of float64; accepted: square images"),
    "not square": (reader((PIXELS[..., :5], LABELS)), {}, r"has images \(60, 3, 8, 5\) of uint8; accepted: square"),
    "labels": (reader((PIXELS, LABELS[:5])), {}, r"^read: train has labels \(5,\) of int64 for 60 images; accepted"),
    "text": (reader((PIXELS, LABELS.astype(str))), {}, r"^read: train has labels \(60,\) of <U\d+ for 60 images"),
    "a class too many": (reader((PIXELS, LABELS + 1)), {}, r"^read: train has labels from 1 to 3; accepted: 0 to 2"),
    "none": (reader(None), {}, r"^read: train is a NoneType; accepted: a pair of arrays"),
    "empty": (reader([]), {}, r"^read: train is empty"),
    "an image that cannot be read": (reader(Pairs(61)), {}, r"^read: train: image 60: IndexError: "),
    "sizes": (reader([(PIXELS[0], 0), (PIXELS[0, :, :5, :5], 1)]), {}, r"images 0 and 1 of read: train have 8×8 and 5×5 pixels"),
    "sizes that a size does not change": (
        reader([(PIXELS[0], 0), (PIXELS[0, :, :5, :5], 1)]),
        {"image_size": 8},
        r"^read: train: images 0 and 1 are arrays of 8×8 and 5×5 pixels; accepted: one size, or PIL's images$",
    ),
    "size of arrays": (reader(), {"image_size": 9}, r"^data.image_size=9: the images of read: train have 8 pixels"),
    "test of another size": (reader(test=(PIXELS[:, :, :4, :4], LABELS)), {}, r"images of train and test differ in size"),
    "memory": (reader(Pairs(60, side=4)), {"image_size": 60_000}, r"^read: train takes 603 GiB of memory; accepted: at most 16"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_what_is_wrong_is_said_in_one_line(kind: str) -> None:
    read, fields, message = WRONG[kind]
    with pytest.raises(ConfigError, match=message):
        load_dataset(replace(OWN, **fields), reader=read)


def encoded(index: int, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(PIXELS[index].transpose(1, 2, 0)).save(file, kind)
    return file.getvalue()


CELLS: dict[str, Callable[[int], Any]] = {
    "encoded": encoded,
    "as Hugging Face stores them": lambda index: {"bytes": encoded(index), "path": None},
    "flat pixels": lambda index: PIXELS[index].transpose(1, 2, 0).reshape(-1).tolist(),
}


def write_parquet(
    path: Path, cell: Callable[[int], Any], index: range, label: Callable[[int], Any] = lambda i: CLASSES[i % 3]
) -> None:
    path.parent.mkdir(exist_ok=True)
    parquet.write_table(pa.table({"image": [cell(i) for i in index], "label": [label(i) for i in index], "id": [*index]}), path)


@pytest.mark.parametrize("kind", CELLS)
def test_parquet_files_are_images(kind: str, tmp_path: Path) -> None:
    write_parquet(tmp_path / "train-0.parquet", CELLS[kind], range(30))
    write_parquet(tmp_path / "train-1.parquet", CELLS[kind], range(30, 60))
    write_parquet(tmp_path / "test-0.parquet", CELLS[kind], range(12))
    config = DataConfig(name="parquet", root=str(tmp_path))
    dataset = load_dataset(config, tmp_path / "cache")
    assert np.array_equal(arrays(dataset.train).images, PIXELS)
    assert np.array_equal(arrays(dataset.test).images, PIXELS[:12])
    assert (dataset.classes, dataset.scored) == (CLASSES, "its test set")
    assert len(load_dataset(replace(config, validation=0.1), tmp_path / "cache").test.labels) == 6


def test_a_changed_file_is_other_data(tmp_path: Path) -> None:
    config = DataConfig(name="parquet", root=str(tmp_path / "data"))
    versions = []
    for count in (30, 45):
        write_parquet(tmp_path / "data" / "all.parquet", encoded, range(count), label=lambda i: i % 3)
        versions.append(load_dataset(config, tmp_path / "cache"))
    assert [len(each.train.labels) + len(each.test.labels) for each in versions] == [30, 45]
    assert versions[0].version != versions[1].version
    assert versions[0].classes == ("0", "1", "2")


def hugging_face(folder: Path, form: str) -> Path:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=["x", "y", "z"]))
    cells = [{"bytes": encoded(i), "path": None} for i in range(60)]
    whole = datasets.Dataset.from_dict({"image": cells, "label": [i % 3 for i in range(60)]}, features=features)
    if form == "saved table":
        whole.save_to_disk(str(folder))
    elif form == "saved splits":
        datasets.DatasetDict(train=whole, test=whole.select(range(12))).save_to_disk(str(folder))
    elif form == "parquet":
        folder.mkdir()
        whole.to_parquet(str(folder / "train.parquet"))
        whole.select(range(12)).to_parquet(str(folder / "test.parquet"))
    else:
        for split, count in (("train", 60), ("test", 12)):
            for i in range(count):
                path = folder / split / "xyz"[i % 3] / f"{i:02}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(encoded(i))
    return folder


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the library
@pytest.mark.parametrize("form", ["saved table", "saved splits", "parquet", "image folder"])
def test_local_folders_of_hugging_face_are_images(form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    root = hugging_face(tmp_path / "data", form)
    dataset = load_dataset(DataConfig(name="huggingface", root=str(root)))
    assert dataset.classes == ("x", "y", "z")
    assert (len(dataset.train.labels), len(dataset.test.labels)) == ((48, 12) if form == "saved table" else (60, 12))
    order = np.lexsort((np.arange(60), LABELS)) if form == "image folder" else np.arange(60)
    if form != "saved table":
        assert np.array_equal(arrays(dataset.train).images, PIXELS[order])


@pytest.mark.filterwarnings("ignore")
def test_tables_that_are_wrong_are_refused_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(name: str, message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            load_dataset(DataConfig(name=name, root=str(tmp_path)))  # type: ignore[arg-type]

    refused("parquet", r"accepted: a folder of files \*.parquet$")
    (tmp_path / "x.parquet").write_bytes(b"PAR1")
    refused("parquet", r"pyarrow cannot read it \(ArrowInvalid: ")
    (tmp_path / "x.parquet").unlink()
    parquet.write_table(pa.table({"img": [encoded(0)], "label": [1]}), tmp_path / "x.parquet")
    for name in ("parquet", "huggingface"):
        refused(name, r"has the columns img, label, without image; accepted: image and label$")
    write_parquet(tmp_path / "x.parquet", lambda i: [1, 2, 3, 4, 5], range(3))
    refused("parquet", r"image 0: ValueError: 5 pixels; accepted: those of a square gray or RGB image$")
    write_parquet(tmp_path / "x.parquet", encoded, range(6), label=lambda i: None if i == 3 else i)
    refused("parquet", r"has no label in row 3; accepted: a label for each image$")
    write_parquet(tmp_path / "x.parquet", encoded, range(6), label=lambda i: i / 2)
    refused("parquet", r"has the label 0.0 in row 0; accepted: whole numbers, or names$")
    fractions: list[Any] = [[0.5] * 64, [[0.5] * 8] * 8]
    for cell in fractions:
        write_parquet(tmp_path / "x.parquet", dict.fromkeys(range(6), cell).__getitem__, range(6), label=lambda i: i % 2)
        refused("parquet", r"image 0: ValueError: an array \(.*\) of float64; accepted: a PIL image, or uint8")
    labels: tuple[Callable[[int], Any], ...] = (lambda i: [i], lambda i: {"class": i})
    for label in labels:
        write_parquet(tmp_path / "x.parquet", encoded, range(6), label=label)
        refused("parquet", r"has (the label .*|labels that are no names of classes \(.*\)); accepted: whole numbers, or ")
    monkeypatch.setitem(sys.modules, "datasets", None)
    refused("huggingface", r'datasets cannot be imported \(.*\); accepted: pip install "resnet-ablations\[datasets\]"$')
