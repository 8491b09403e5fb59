"""Data sets are read right, split the same for everybody, identified by content, decoded once, and refused in one line."""

import os
import shutil
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from resnet_core import ConfigError, DataConfig, Dataset, ModelConfig, RunSpec, load_dataset, override
from resnet_core.data import datasets, sources
from resnet_core.data.datasets import Split, resolve
from resnet_core.data.splits import hold_out
from tests.helpers.image_folders import save_image, save_images


def load(config: DataConfig, cache: Path | None = None) -> Dataset:
    """As in a fresh process."""
    datasets._kept.clear()
    return load_dataset(config, cache)


def folder(root: Path, **changes: Any) -> DataConfig:
    return DataConfig(name="imagefolder", root=str(root), **changes)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """The smallest good `imagefolder`: two classes with training and test images."""
    save_images(tmp_path / "images" / "train")
    save_images(tmp_path / "images" / "test", count=2)
    return tmp_path / "images"


def pixels_of(part: Any) -> NDArray[np.uint8]:
    assert isinstance(part, Split)
    return part.images


def same(a: Dataset, b: Dataset) -> bool:
    facts = [(d.name, d.classes, d.version, d.mean, d.std) for d in (a, b)]
    arrays: list[list[Any]] = [[*d.train, *d.test] for d in (a, b)]
    return facts[0] == facts[1] and all(np.array_equal(x, y) for x, y in zip(*arrays, strict=True))


# --- digits and splits ---


def test_digits_are_split_the_same_for_everybody() -> None:
    digits = load(DataConfig(name="digits"))
    assert pixels_of(digits.train).shape == (1437, 1, 8, 8)
    assert pixels_of(digits.test).shape == (360, 1, 8, 8)
    assert digits.version == "37ca518ccee450a05142"
    assert same(digits, load(DataConfig(name="digits", pad=0)))


def test_digits_are_scikit_learns_images_each_once() -> None:
    from sklearn.datasets import load_digits

    digits, raw = load(DataConfig(name="digits")), load_digits()
    found = np.concatenate([pixels_of(s).reshape(-1, 64) // 15 * 10 + s.labels[:, None] for s in (digits.train, digits.test)])
    expected = raw.data * 10 + raw.target[:, None]
    assert sorted(map(tuple, found)) == sorted(map(tuple, expected))


@pytest.mark.parametrize("sizes", [[178] * 10, [100, 10], [1, 6, 30], [1, 1, 1], [2, 2], [*[1] * 6, 5]])
def test_a_fifth_of_every_class_is_held_out_but_never_all_of_it(sizes: list[int]) -> None:
    labels = np.repeat(np.arange(len(sizes)), sizes)
    train, test = hold_out(Split(np.zeros((len(labels), 1, 4, 4), np.uint8), labels), 0.2)
    left, held = (np.bincount(split.labels, minlength=len(sizes)) for split in (train, test))
    assert (left + held).tolist() == sizes
    assert (left > 0).all()
    assert (abs(held - np.array(sizes) / 5) <= 2).all()


@pytest.mark.parametrize("name", ["digits", "imagefolder"])
def test_a_subset_is_balanced_and_leaves_the_rest_of_the_data_alone(name: Any, images: Path) -> None:
    full = DataConfig(name=name, root=str(images))
    few = DataConfig(name=name, root=str(images), train_examples=7)
    counts = np.bincount(load(few).train.labels)
    assert counts.sum() == 7
    assert np.ptp(counts) <= 1
    assert np.array_equal(pixels_of(load(few).test), pixels_of(load(full).test))
    assert load(few).version != load(full).version
    assert same(load(few), load(few))
    assert len(load(DataConfig(name=name, root=str(images), train_examples=10**6)).train.labels) == len(load(full).train.labels)


def test_synthetic_images_are_as_many_and_as_large_as_asked() -> None:
    data = load(DataConfig(name="synthetic", image_size=6, train_examples=30, test_examples=11))
    assert (pixels_of(data.train).shape, pixels_of(data.test).shape) == ((30, 3, 6, 6), (11, 3, 6, 6))
    assert np.bincount(data.train.labels).tolist() == [3] * 10


# --- validation ---


def numbers(part: Any) -> list[int]:
    """The images as numbers, one for each."""
    return [hash(image.tobytes()) for image in pixels_of(part)]


@pytest.mark.parametrize("name", ["digits", "synthetic", "imagefolder"])
def test_validation_images_are_a_fixed_share_of_every_class_of_the_training_images(name: Any, images: Path) -> None:
    full = load(DataConfig(name=name, root=str(images)))
    held = load(DataConfig(name=name, root=str(images), validation=0.2))
    train, validation = numbers(held.train), numbers(held.test)
    assert not set(train) & set(validation)
    assert sorted(train + validation) == sorted(numbers(full.train))
    assert not set(numbers(full.test)) & set(train + validation)
    counts = np.bincount(full.train.labels)
    assert (abs(np.bincount(held.test.labels) - counts * 0.2) <= 1).all()
    assert held.version != full.version
    assert same(held, load(DataConfig(name=name, root=str(images), validation=0.2)))


@pytest.mark.parametrize("stream", [False, True])
def test_with_validation_images_the_test_images_are_never_read(images: Path, stream: bool) -> None:
    (images / "test" / "a" / "0.png").write_text("no image")
    (images / "test" / "c").mkdir()
    held = load(folder(images, validation=0.2, stream=stream, image_size=4))
    assert (len(held.train.labels), len(held.test.labels)) == (8, 2)


def test_the_last_image_of_a_class_is_trained_on(images: Path) -> None:
    assert np.bincount(load(folder(images, validation=0.99)).train.labels).tolist() == [1, 1]


def test_training_and_validation_images_can_be_limited(images: Path) -> None:
    held = load(folder(images, validation=0.4, train_examples=4, test_examples=2))
    assert np.bincount(held.train.labels).tolist() == [2, 2]
    assert np.bincount(held.test.labels).tolist() == [1, 1]


def test_the_papers_validation_split_has_45000_and_5000_images_class_by_class() -> None:
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(10), 5000))
    train, held = hold_out(Split(np.zeros((50_000, 1, 1, 1), np.uint8), labels), 0.1)
    assert np.bincount(train.labels).tolist() == [4500] * 10
    assert np.bincount(held.labels).tolist() == [500] * 10


# --- statistics and content hash ---


@pytest.mark.parametrize("channels", [1, 3])
def test_channel_statistics_are_exact(channels: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 200, (50, channels, 7, 7)).astype(np.uint8)
    mean, std = datasets._channel_statistics(pixels)
    np.testing.assert_allclose(mean, pixels.astype(np.float64).mean((0, 2, 3)), rtol=1e-13)
    np.testing.assert_allclose(std, pixels.astype(np.float64).std((0, 2, 3)), rtol=1e-13)


def test_a_constant_channel_can_be_normalised() -> None:
    assert datasets._channel_statistics(np.full((2, 1, 3, 3), 9, np.uint8)) == ((9.0,), (1.0,))


def change_pixel(root: Path) -> None:
    path = root / "train" / "a" / "0.png"
    pixels = np.array(Image.open(path))
    pixels[1, 2, 0] ^= 1
    save_image(path, pixels)


def change_label(root: Path) -> None:
    (root / "train" / "a" / "0.png").rename(root / "train" / "b" / "9.png")


def change_class_name(root: Path) -> None:
    for part in ("train", "test"):
        (root / part / "b").rename(root / part / "c")


def swap_splits(root: Path) -> None:
    (root / "train").rename(root / "x")
    (root / "test").rename(root / "train")
    (root / "x").rename(root / "test")


@pytest.mark.parametrize("change", [change_pixel, change_label, change_class_name, swap_splits])
def test_the_version_changes_with_the_content(images: Path, change: Callable[[Path], None]) -> None:
    before = load(folder(images)).version
    change(images)
    assert load(folder(images)).version != before


def test_the_version_does_not_change_with_the_place(images: Path, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere" / "copy"
    shutil.copytree(images, moved)
    (moved / "README.txt").write_text("not an image")
    assert same(load(folder(images)), load(folder(moved)))


# --- the cache ---


def refuse(*_: Any, **__: Any) -> Any:
    raise AssertionError("decoded")


def test_a_second_load_maps_the_first_ones_arrays_and_decodes_nothing(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, first = load(folder(images)), load(folder(images), tmp_path / "cache")
    monkeypatch.setattr(sources, "decode_square", refuse)
    second = load(folder(images), tmp_path / "cache")
    assert same(plain, first)
    assert same(plain, second)
    assert isinstance(pixels_of(second.train), np.memmap)
    with pytest.raises(AssertionError, match="decoded"):
        load(folder(images), tmp_path / "other cache")


def test_the_same_config_gives_the_same_object(images: Path) -> None:
    assert load_dataset(folder(images)) is load_dataset(folder(images))


@pytest.mark.parametrize("change", [change_pixel, change_label, change_class_name])
def test_a_cache_is_not_used_for_files_that_changed(images: Path, tmp_path: Path, change: Callable[[Path], None]) -> None:
    load(folder(images), tmp_path / "cache")
    change(images)
    assert same(load(folder(images), tmp_path / "cache"), load(folder(images)))


@pytest.mark.parametrize("name", ["digits", "synthetic"])
def test_data_without_files_need_no_folder(name: Any, tmp_path: Path) -> None:
    left_over = DataConfig(name=name, root=str(tmp_path / "nowhere"))
    assert same(load(left_over, tmp_path / "cache"), load(DataConfig(name=name)))


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("meta.json", None),
        ("meta.json", b""),
        ("meta.json", b'{"name": "imagef'),
        ("meta.json", b"{}"),
        ("train-images.npy", None),
        ("train-images.npy", b""),
        ("train-images.npy", b"\x93NUMPY"),
        ("train-images.npy", slice(200)),
        ("test-labels.npy", slice(130)),
    ],
)
def test_a_cache_left_half_written_is_made_again(images: Path, tmp_path: Path, file: str, content: Any) -> None:
    load(folder(images), tmp_path / "cache")
    (path,) = (tmp_path / "cache").glob(f"*/{file}")
    if content is None:
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[content] if isinstance(content, slice) else content)
    assert same(load(folder(images), tmp_path / "cache"), load(folder(images)))
    assert len(list(path.parent.parent.glob("*/meta.json"))) == 1


DECODE_SLOWLY = """
import sys, time
from pathlib import Path
from resnet_core import DataConfig
from resnet_core.data import datasets
build, decoded = datasets._build, 0
def slow(config):
    global decoded
    decoded += 1
    time.sleep(1)
    return build(config)
datasets._build = slow
data = datasets.load_dataset(DataConfig(name="imagefolder", root=sys.argv[1]), Path(sys.argv[2]))
print(decoded, data.version)
"""


@pytest.mark.slow
def test_processes_that_start_together_decode_once(images: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", DECODE_SLOWLY, str(images), str(tmp_path / "cache")]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    outputs = [process.communicate(timeout=180)[0].split() for process in processes]
    assert sorted(decoded for decoded, _ in outputs) == ["0", "0", "1"]
    assert {version for _, version in outputs} == {load(folder(images)).version}


def test_a_cache_that_cannot_be_written_is_named_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for cache in (Path("/proc/nope"), tmp_path / "file" / "data"):
        with pytest.raises(ConfigError, match=rf"^cache={cache}: the folder cannot be written \(.+\)$"):
            load(DataConfig(name="digits"), cache)


def test_a_cache_without_room_is_named_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(ConfigError, match=rf"^cache={tmp_path}: the folder cannot be written \(No space left on device\)$"):
        load(DataConfig(name="digits"), tmp_path)


# --- imagefolder ---


@pytest.mark.parametrize("name", ["test", "val"])
def test_train_and_test_folders_are_taken_as_they_are(tmp_path: Path, name: str) -> None:
    save_image(tmp_path / "train" / "cat" / "1.png", np.full((4, 4, 3), 1))
    save_image(tmp_path / "train" / "dog" / "2.png", np.full((4, 4, 3), 2))
    save_image(tmp_path / name / "cat" / "3.png", np.full((4, 4, 3), 3))
    save_image(tmp_path / name / "dog" / "deeper" / "4.PNG", np.full((4, 4, 3), 4))
    data = load(folder(tmp_path))
    assert data.classes == ("cat", "dog")
    assert [(int(x[0, 0, 0]), int(y)) for x, y in zip(*data.train, strict=True)] == [(1, 0), (2, 1)]
    assert [(int(x[0, 0, 0]), int(y)) for x, y in zip(*data.test, strict=True)] == [(3, 0), (4, 1)]


def test_a_train_folder_is_no_class(images: Path) -> None:
    (images / "test").rename(images / "valid")
    with pytest.raises(
        ConfigError, match=rf"^data\.root={images}: has a folder train; accepted: a folder test or val next to it, .+$"
    ):
        load(folder(images))
    held = load(folder(images, validation=0.2))
    assert (held.classes, len(held.train.labels), len(held.test.labels)) == (("a", "b"), 8, 2)


@pytest.mark.parametrize("stream", [False, True])
def test_hidden_folders_hold_no_images(images: Path, tmp_path: Path, stream: bool) -> None:
    config = folder(images, stream=stream, image_size=4)
    before, cache = load(config), tmp_path / "cache"
    cached = load(config, cache)
    for part in ("a/.ipynb_checkpoints", "b/deeper/.hidden/further"):
        save_image(images / "train" / part / "0-checkpoint.png", np.full((4, 4, 3), 9))
    (images / "train" / "a" / ".dangling").symlink_to("nowhere")
    assert load(config).version == load(config, cache).version == cached.version == before.version
    assert len(load(config).train.labels) == 10
    assert len(list(cache.glob("*/meta.json"))) == 1


def test_of_plain_class_folders_a_fifth_is_held_out(tmp_path: Path) -> None:
    data = load(folder(save_images(tmp_path, "abc", count=10)))
    assert np.bincount(data.train.labels).tolist() == [8, 8, 8]
    assert np.bincount(data.test.labels).tolist() == [2, 2, 2]


def test_pixels_are_where_they_were(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (4, 4, 3))
    for part, name in (("train", "a"), ("train", "b"), ("test", "a"), ("test", "b")):
        save_image(tmp_path / part / name / "0.png", pixels)
    assert np.array_equal(pixels_of(load(folder(tmp_path)).train)[0].transpose(1, 2, 0), pixels)


def test_grayscale_images_stay_so_unless_others_have_colours(tmp_path: Path) -> None:
    gray = save_images(tmp_path / "gray", shape=(4, 4))
    assert load(folder(gray)).in_channels == 1
    pixels = np.array(Image.open(gray / "a" / "0.png"))
    save_image(gray / "b" / "colour.png", np.zeros((4, 4, 3)))
    mixed = load(folder(gray))
    everything = np.concatenate([pixels_of(mixed.train), pixels_of(mixed.test)])
    assert everything.shape[1] == 3
    assert any(np.array_equal(image, np.stack([pixels] * 3)) for image in everything)


def test_images_are_scaled_to_the_shorter_side_and_cut_in_the_middle(tmp_path: Path) -> None:
    wide = np.zeros((8, 24), np.uint8)
    wide[:, 8:16] = 200  # exactly the middle
    for name in "ab":
        for i, pixels in enumerate((wide, wide.T)):
            save_image(tmp_path / name / f"{i}.png", pixels)
    data = load(folder(tmp_path, image_size=4))
    everything = np.concatenate([pixels_of(data.train), pixels_of(data.test)])
    assert everything.shape == (4, 1, 4, 4)
    assert (everything > 180).all()


# --- what cannot be used ---


def without_class(root: Path) -> None:
    shutil.rmtree(root / "train" / "b")


def without_images(root: Path) -> None:
    (root / "train" / "b" / "0.png").with_name("notes.txt").write_text("")
    for path in (root / "train" / "b").glob("*.png"):
        path.unlink()


def truncated(root: Path) -> None:
    path = root / "train" / "b" / "3.png"
    path.write_bytes(path.read_bytes()[:40])


def not_an_image(root: Path) -> None:
    (root / "train" / "b" / "3.png").write_text("<html>\nnot found\n</html>")


def thirty_two_bits(root: Path) -> None:
    Image.fromarray(np.full((4, 4), 1000, np.int32)).save(root / "train" / "b" / "3.tif")


def other_size(root: Path) -> None:
    save_image(root / "train" / "b" / "3.png", np.zeros((6, 5, 3)))


def not_square(root: Path) -> None:
    shutil.rmtree(root)
    save_images(root / "train", shape=(4, 6, 3))
    save_images(root / "test", shape=(4, 6, 3))


def more_test_classes(root: Path) -> None:
    save_images(root / "test", "c")


def other_test_size(root: Path) -> None:
    save_images(root / "test", shape=(6, 6, 3))


def dangling_link(root: Path) -> None:
    (root / "train" / "b" / "3.png").unlink()
    (root / "train" / "b" / "3.png").symlink_to("nowhere")


def circular_link(root: Path) -> None:
    (root / "train" / "b" / "circle").symlink_to("circle")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (dangling_link, r"data\.root={root}/train/b/3\.png: cannot be .+ \(.*No such file or directory.*\)"),
        (circular_link, r"data\.root={root}/train/b/circle: cannot be read \(.*symbolic links\)"),
        (shutil.rmtree, r"data\.root={root}: accepted: an existing folder with imagefolder data"),
        (without_class, r"data\.root={root}/train: accepted: at least two class folders, found 1"),
        (without_images, r"data\.root={root}/train/b: no images in it; accepted: \.bmp, \.gif, \.jpeg, .*"),
        (truncated, r"data\.root={root}/train/b/3\.png: cannot be decoded as an image \(.+\)"),
        (not_an_image, r"data\.root={root}/train/b/3\.png: cannot be decoded as an image \(.+\)"),
        (thirty_two_bits, r"data\.root={root}/train/b/3\.tif: cannot be decoded as an image \(its pixels are I; accepted: 8 .+\)"),
        (other_size, r"data\.image_size=None: {root}/train/a/0\.png has 4×4 pixels, {root}/train/b/3\.png has 5×6: set one size"),
        (not_square, r"data\.image_size=None: {root}/train/a/0\.png is not square: set a size"),
        (more_test_classes, r"data\.root={root}: train and test must have the same classes; only in one: c"),
        (
            other_test_size,
            r"data\.image_size=None: {root}/train/a/0\.png has 4×4 pixels, {root}/test/a/0\.png has 6×6: set one size",
        ),
    ],
)
@pytest.mark.parametrize("cached", [False, True])
def test_a_folder_that_cannot_be_used_is_refused_in_one_line(
    images: Path, tmp_path: Path, spoil: Callable[[Path], None], message: str, cached: bool
) -> None:
    spoil(images)
    with pytest.raises(ConfigError) as caught:
        load(folder(images), tmp_path / "cache" if cached else None)
    assert len(str(caught.value).splitlines()) == 1
    assert caught.match(f"^{message.format(root=images)}$")


@pytest.mark.parametrize("cached", [False, True])
def test_a_folder_that_may_not_be_read_is_refused_in_one_line(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cached: bool
) -> None:
    closed, scandir = images / "train" / "b", os.scandir

    def guarded(path: Any) -> Any:  # root may read everything
        if Path(path) == closed:
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", guarded)
    with pytest.raises(ConfigError, match=rf"^data\.root={closed}: cannot be read \(Permission denied\)$"):
        load(folder(images), tmp_path / "cache" if cached else None)


@pytest.mark.parametrize("name", ["digits", "imagefolder"])
def test_a_share_that_holds_nothing_out_is_named(name: Any, images: Path) -> None:
    with pytest.raises(ConfigError, match=r"^data\.validation=1e-13: holds out none of \d+ training images, .+: a larger share$"):
        load(DataConfig(name=name, root=str(images), validation=1e-13))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"image_size": 100_000}, "image_size=100000"),
        ({"image_size": 10**200, "train_examples": 4}, f"image_size={10**200}"),
        ({"train_examples": 999_999_999_999}, "train_examples=999999999999"),
        ({"image_size": 64, "test_examples": 10**6, "train_examples": 10}, "test_examples=1000000"),
    ],
)
def test_more_synthetic_images_than_memory_are_refused_before_they_are_made(
    changes: dict[str, Any], named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(np.random, "RandomState", refuse)
    with pytest.raises(ConfigError, match=rf"^data\.{named}: more than 16 GiB of memory to generate: set it lower$"):
        load(DataConfig(name="synthetic", **changes))


def test_the_memory_that_synthetic_images_take_is_counted() -> None:
    tracemalloc.start()
    try:
        sources.make_synthetic(DataConfig(name="synthetic", image_size=32, train_examples=200))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert 0.7 < peak / (sources.SYNTHETIC_BYTES * 3 * 32**2 * 210) < 1.1


def test_a_folder_with_too_few_images_to_hold_any_out_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"accepted: at least one training and one test image$"):
        load(folder(save_images(tmp_path, count=1)))


def test_more_images_than_memory_are_refused_before_they_are_decoded(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "MEMORY_LIMIT_GIB", 1e-9)
    with pytest.raises(
        ConfigError, match=r"^data\.image_size=None: .* GiB to hold in memory, at most .*: set it lower, or data.stream=true$"
    ):
        load(folder(images))


# --- spec and data together ---


def test_a_spec_takes_from_the_data_what_it_left_open(images: Path) -> None:
    spec = override(RunSpec(data=folder(images)), {"global_batch_size": 10})
    assert resolve(spec, load(spec.data)).model == ModelConfig(num_classes=2, in_channels=3).resolved()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_classes": 5}, r"^model\.num_classes=5: the data set has 2$"),
        ({"in_channels": 1}, r"^model\.in_channels=1: the data set has 3$"),
        ({"global_batch_size": 11}, r"^optim\.global_batch_size=11: accepted: at most 10, the training images of imagefolder$"),
    ],
)
def test_a_spec_that_contradicts_the_data_is_refused(images: Path, changes: dict[str, Any], message: str) -> None:
    spec = override(RunSpec(data=folder(images)), {"global_batch_size": 10} | changes)
    with pytest.raises(ConfigError, match=message):
        resolve(spec, load(spec.data))


def test_the_home_of_nobody_is_a_folder_that_does_not_exist() -> None:
    with pytest.raises(ConfigError, match=r"^data\.root=.*~nosuchuser"):
        load_dataset(DataConfig(name="imagefolder", root="~nosuchuser/photos"))
