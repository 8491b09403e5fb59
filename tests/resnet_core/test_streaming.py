"""Streamed images: the right pixels, decided by seed and epoch alone, from processes that end with their owner."""

import gc
import itertools
import multiprocessing
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from resnet_core import ConfigError, DataConfig, Dataset, OptimConfig, RunSpec
from resnet_core.data import datasets, folders, indexing, make_batches
from resnet_core.data.batches import Batches
from resnet_core.data.decoding import View, decode_view
from resnet_core.data.splits import Files
from resnet_core.data.streaming import StreamedBatches

CPU = torch.device("cpu")
CROP = 14  # scaled to 16 in testing


def config(root: Path, **changes: Any) -> DataConfig:
    given: dict[str, Any] = {"name": "imagefolder", "stream": True, "image_size": CROP, "decode_workers": 1}
    return DataConfig(root=str(root), **given | changes)


def load(config: DataConfig, cache: Path | None = None) -> Dataset:
    """As in a fresh process."""
    datasets._kept.clear()
    return datasets.load_dataset(config, cache)


def make(
    dataset: Dataset, data: DataConfig, *, rank: int = 0, world_size: int = 1, seed: int = 0, batch: int = 8
) -> StreamedBatches:
    spec = RunSpec(data=data, optim=OptimConfig(global_batch_size=batch), seed=seed, world_size=world_size)
    batches = make_batches(dataset, spec, device=CPU, rank=rank)
    assert isinstance(batches, StreamedBatches)
    return batches


def save(path: Path, pixels: Any, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(pixels, np.uint8)).save(path, **options)
    return path


def ramp(height: int, width: int, level: int = 0) -> NDArray[np.uint8]:
    """An image that says of each pixel where it is: red is the column, green the row, blue the image."""
    image = np.zeros((height, width, 3), np.uint8)
    image[..., 0], image[..., 1], image[..., 2] = 2 * np.arange(width), 2 * np.arange(height)[:, None], level
    return image


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty training and seven test images of two classes and several shapes; blue tells them apart."""
    root = tmp_path_factory.mktemp("images")
    shapes = [(16, 16), (20, 32), (40, 16), (33, 47)]
    for i in range(27):
        part, name = ("train", "ab"[i % 2]) if i < 20 else ("test", "ab"[i % 2])
        save(root / part / name / f"{i:02}.png", ramp(*shapes[i // 2 % 4], level=9 * i))
    return root


@pytest.fixture(scope="module")
def dataset(images: Path) -> Dataset:
    return load(config(images))


def pixels(batches: StreamedBatches, images: Tensor) -> NDArray[np.float64]:
    """Return the images before normalization."""
    return np.asarray((images * batches.std + batches.mean).round().double())


def epoch(batches: StreamedBatches, number: int = 0) -> list[tuple[Tensor, Tensor]]:
    found = list(batches.train_epoch(number))
    batches.close()
    return found


# --- pixels ---


def test_a_view_is_cut_where_it_says(tmp_path: Path) -> None:
    path = str(save(tmp_path / "a.png", ramp(20, 30)))
    found = decode_view(View(path, side=20, size=8, row=0.999, column=0.5))
    assert np.array_equal(found, ramp(20, 30)[12:20, 11:19])
    assert np.array_equal(decode_view(View(path, side=20, size=8, row=0, column=0, flip=True)), ramp(20, 30)[:8, :8][:, ::-1])
    assert np.array_equal(decode_view(View(path, side=20)), ramp(20, 30))


@pytest.mark.parametrize("shape", [(64, 64), (60, 100), (201, 64), (500, 375)])
@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_a_view_is_the_crop_of_the_scaled_image(tmp_path: Path, shape: tuple[int, int], suffix: str) -> None:
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    smooth = np.stack([127 + 120 * np.sin(columns / 40), 127 + 120 * np.cos(rows / 50), 0 * rows], 2)
    path = save(tmp_path / f"a.{suffix}", smooth, **({"quality": 95} if suffix == "jpg" else {}))
    view = View(str(path), side=32, size=28, row=0.3, column=0.8)
    with Image.open(path) as file:
        scale = 32 / min(shape)
        whole = file.resize((round(shape[1] * scale), round(shape[0] * scale)), Image.Resampling.BILINEAR)
    top, left = int(0.3 * (whole.height - 27)), int(0.8 * (whole.width - 27))
    expected = np.asarray(whole, int)[top : top + 28, left : left + 28]
    assert abs(decode_view(view).astype(int) - expected).mean() < 1.5


@pytest.mark.parametrize(("mode", "colour"), [("L", 0), ("1", 0), ("LA", 0), ("P", 255), ("CMYK", 255), ("RGBA", 255)])
def test_images_of_other_modes_become_rgb(tmp_path: Path, mode: str, colour: int) -> None:
    path = tmp_path / f"a.{'tif' if mode == 'CMYK' else 'png'}"
    image = np.full((16, 16, 3), 255, np.uint8)
    image[:, 5:] = (colour, 0, 0)
    Image.fromarray(image).convert(mode).save(path)
    assert np.array_equal(decode_view(View(str(path), side=16, size=14)), image[1:15, 1:15])


@pytest.mark.parametrize(("crop", "side"), [(224, 256), (28, 32), (14, 16), (160, 183)])
def test_images_are_tested_at_eight_sevenths_of_the_crop(crop: int, side: int) -> None:
    assert indexing.shorter_side(crop) == side


@pytest.mark.slow
@pytest.mark.parametrize("world_size", [1, 2, 3, 9])
def test_all_workers_together_see_the_middle_of_every_test_image_once(images: Path, dataset: Dataset, world_size: int) -> None:
    assert isinstance(dataset.test, Files)
    seen = {}
    for rank in range(world_size):
        batches = make(dataset, config(images), rank=rank, world_size=world_size, batch=2 * world_size)
        share = np.arange(7)[rank::world_size]
        found = list(batches.test())
        assert torch.equal(torch.cat([y for _, y in found] or [torch.empty(0)]), torch.from_numpy(dataset.test.labels[share]))
        for index, image in zip(share, itertools.chain.from_iterable(x for x, _ in found), strict=True):
            seen[index] = pixels(batches, image)
        batches.close()
    expected = [decode_view(View(dataset.test.path(i), side=16, size=14)) for i in range(7)]
    assert np.array_equal(np.stack([seen[i] for i in range(7)]), np.stack(expected).transpose(0, 3, 1, 2))
    assert np.array_equal(dataset.examples(7), np.stack(expected).transpose(0, 3, 1, 2))


# --- randomness ---


def test_an_epoch_has_every_image_once_up_to_a_rest_that_changes(images: Path, dataset: Dataset) -> None:
    batches = make(dataset, config(images))
    seen = [{float(p) for x, _ in batches.train_epoch(e) for p in pixels(batches, x)[:, 2, 0, 0]} for e in range(6)]
    batches.close()
    assert batches.steps_per_epoch == 2
    assert all(len(levels) == 16 for levels in seen)
    assert set().union(*seen) == {9.0 * i for i in range(20)}


def same(a: list[tuple[Tensor, Tensor]], b: list[tuple[Tensor, Tensor]]) -> bool:
    return len(a) == len(b) and all(torch.equal(s, t) for x, y in zip(a, b, strict=True) for s, t in zip(x, y, strict=True))


def test_any_number_of_decoders_gives_the_same_batches(images: Path, dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("resnet_core.data.decoders.CHUNK", 3)  # batches come in several parts
    data = config(images, scale=(16, 24), color_augmentation=True)
    one = epoch(make(dataset, data), 3)
    assert same(one, epoch(make(dataset, config(images, scale=(16, 24), color_augmentation=True, decode_workers=2)), 3))
    assert not same(one, epoch(make(dataset, data), 4))
    assert not same(one, epoch(make(dataset, data, seed=1), 3))


@pytest.mark.slow
@pytest.mark.parametrize("world_size", [2, 4])
def test_shares_of_all_workers_make_the_global_batches(images: Path, dataset: Dataset, world_size: int) -> None:
    data = config(images, scale=(16, 24), color_augmentation=True)
    shares = zip(*(epoch(make(dataset, data, rank=r, world_size=world_size)) for r in range(world_size)), strict=True)
    together = [(torch.cat([x for x, _ in parts]), torch.cat([y for _, y in parts])) for parts in shares]
    assert same(together, epoch(make(dataset, data)))


def test_an_epoch_does_not_depend_on_those_before_it_nor_touch_the_global_generator(images: Path, dataset: Dataset) -> None:
    before = torch.get_rng_state()
    batches = make(dataset, config(images, scale=(16, 24)))
    next(iter(batches.train_epoch(0)))  # and abandoned
    list(batches.test())
    assert same(list(batches.train_epoch(1)), epoch(make(dataset, config(images, scale=(16, 24))), 1))
    batches.close()
    assert torch.equal(torch.get_rng_state(), before)


@pytest.fixture
def wide(tmp_path: Path) -> tuple[Path, Dataset]:
    """Sixty images 16 pixels high and 32 wide, all alike."""
    for i in range(62):
        save(tmp_path / ("test" if i > 59 else "train") / "ab"[i % 2] / f"{i}.png", ramp(16, 32))
    return tmp_path, load(config(tmp_path))


def test_training_images_are_cut_at_random_and_mirrored_half_the_time(wide: tuple[Path, Dataset]) -> None:
    root, data = wide
    batches = make(data, config(root), batch=60)
    ((x, _),) = epoch(batches)
    red, green = pixels(batches, x)[:, 0, 0], pixels(batches, x)[:, 1, :, 0]
    flipped = red[:, 0] > red[:, 1]
    assert 15 < flipped.sum() < 45
    assert set(np.minimum(red[:, 0], red[:, -1]) / 2) <= set(range(19))
    assert len(set(np.minimum(red[:, 0], red[:, -1]))) > 14
    assert set(green[:, 0] / 2) == {0, 1, 2}
    ((x, _),) = epoch(make(data, config(root, flip=False), batch=60))
    assert np.array_equal(pixels(batches, x)[:, 0, 0, 0], np.minimum(red[:, 0], red[:, -1])), "flips change nothing else"


def test_the_shorter_side_is_drawn_from_the_range(wide: tuple[Path, Dataset]) -> None:
    root, data = wide
    batches = make(data, config(root, scale=(16, 32), flip=False), batch=60)
    ((x, _),) = epoch(batches)
    red = pixels(batches, x)[:, 0]
    slopes = (red[:, 5, 13] - red[:, 5, 0]) / 13  # 2 at side 16, 1 at 32
    assert 0.9 < slopes.min() < 1.15
    assert 1.85 < slopes.max() < 2.1


def test_colours_shift_along_the_principal_components(wide: tuple[Path, Dataset]) -> None:
    root, data = wide
    batches = make(data, config(root), batch=60)
    ((plain, _),) = epoch(batches)
    ((shifted, _),) = epoch(make(data, config(root, color_augmentation=True), batch=60))
    shift = np.asarray(((shifted - plain) * batches.std).double())  # (N, 3, H, W)
    np.testing.assert_allclose(shift, shift[:, :, :1, :1] + 0 * shift, atol=1e-3)  # one for all pixels of an image
    vectors = np.array([(-0.5675, 0.7192, 0.4009), (-0.5808, -0.0045, -0.8140), (-0.5836, -0.6948, 0.4203)])
    alphas = np.linalg.solve(vectors, shift[:, :, 0, 0].T) / (255 * np.array([[0.2175], [0.0188], [0.0045]]))
    assert (abs(alphas.mean(1)) < 0.04).all()
    assert (abs(alphas.std(1) - 0.1) < 0.04).all()


# --- several views ---


def test_ten_crops_are_corners_and_centre_of_the_middle_square_and_their_mirror_images(images: Path, dataset: Dataset) -> None:
    assert isinstance(dataset.test, Files)
    batches = make(dataset, config(images))
    ((views, labels),) = [(list(views), labels) for views, labels in batches.views("ten_crop")]
    ((centres, _),) = batches.test()
    batches.close()
    squares = np.stack([decode_view(View(dataset.test.path(i), 16, 16)) for i in range(7)]).transpose(0, 3, 1, 2)
    for i, (row, column) in enumerate([(0, 0), (0, 2), (2, 0), (2, 2), (1, 1)]):
        expected = squares[:, :, row : row + 14, column : column + 14]
        assert np.array_equal(pixels(batches, views[2 * i]), expected)
        assert np.array_equal(pixels(batches, views[2 * i + 1]), expected[..., ::-1])
    assert labels.tolist() == dataset.test.labels.tolist()
    assert (abs(views[8] - centres) < 0.05).all()


def test_whole_images_are_seen_at_five_scales_and_mirrored(images: Path, dataset: Dataset) -> None:
    assert isinstance(dataset.test, Files)
    seen = []
    for rank in range(2):
        batches = make(dataset, config(images), rank=rank, world_size=2)
        for views, labels in batches.views("multi_scale"):
            found = [pixels(batches, view) for view in views]
            assert len(found) == 10
            for plain, mirrored, side in zip(found[::2], found[1::2], (14, 16, 24, 30, 40), strict=True):
                assert min(plain.shape[2:]) == side
                assert np.array_equal(plain[..., ::-1], mirrored)
            levels = found[0][:, 2, 0, 0]
            assert labels.tolist() == [int(level / 9) % 2 for level in levels]
            seen += levels.tolist()
        batches.close()
    assert sorted(seen) == [9.0 * i for i in range(20, 27)]


def test_views_that_are_not_taken_do_not_displace_the_others(images: Path, dataset: Dataset) -> None:
    batches = make(dataset, config(images))
    first = [
        int(pixels(batches, next(views))[0, 2, 0, 0] / 9) % 2 == int(labels[0]) for views, labels in batches.views("multi_scale")
    ]
    batches.close()
    assert all(first)
    assert len(first) == 4, "one group for each shape"


# --- processes ---


def children() -> list[Any]:
    gc.collect()
    return multiprocessing.active_children()


@pytest.mark.slow
def test_no_process_stays_when_the_batches_are_closed(images: Path, dataset: Dataset) -> None:
    batches = make(dataset, config(images))
    iterator = batches.train_epoch(0)
    next(iterator)
    assert children()
    batches.close()
    assert not children()
    with pytest.raises(RuntimeError, match=r"batches were ended"):
        next(iterator)
    with pytest.raises(RuntimeError, match=r"closed"):
        next(batches.test())


@pytest.mark.slow
def test_no_process_stays_when_an_epoch_is_abandoned(images: Path, dataset: Dataset) -> None:
    def interrupted() -> None:
        batches = make(dataset, config(images))
        for _ in batches.train_epoch(0):
            assert children()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not children()


def test_an_epoch_cannot_go_on_once_others_were_begun(images: Path, dataset: Dataset) -> None:
    batches = make(dataset, config(images))
    iterator = batches.train_epoch(0)
    next(iterator)
    assert sum(len(labels) for _, labels in batches.test()) == 7
    with pytest.raises(RuntimeError, match=r"batches were ended"):
        next(iterator)
    batches.close()


def test_waiting_for_training_images_is_counted_from_the_start_of_an_epoch(
    images: Path, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]

    def decode(batches: Iterable[Sequence[View]]) -> Iterator[Tensor]:
        for views in batches:
            clock[0] += 1
            yield torch.zeros(len(views), 3, CROP, CROP)

    batches = make(dataset, config(images))
    monkeypatch.setattr("resnet_core.data.streaming.time.perf_counter", lambda: clock[0])
    monkeypatch.setattr(batches._decoders, "decode", decode)
    for _ in range(2):
        for _ in batches.train_epoch(0):
            clock[0] += 100  # what training takes
        assert batches.wait_seconds == 2
    list(batches.test())
    assert batches.wait_seconds == 2


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(path.read_bytes()[:-30])], ids=["gone", "damaged"])
def test_a_file_that_is_damaged_during_training_is_named_in_the_first_line(
    images: Path, tmp_path: Path, damage: Callable[[Path], Any]
) -> None:
    shutil.copytree(images, tmp_path / "copy")
    data = config(tmp_path / "copy", train_examples=8)
    batches = make(load(data), data)
    assert isinstance(batches._train, Files)
    path = Path(batches._train.path(5))
    damage(path)
    with pytest.raises(ConfigError, match=rf"^data\.root={path}: cannot be decoded as an image \(.+\)$") as caught:
        list(batches.train_epoch(0))
    assert len(str(caught.value).splitlines()) == 1
    batches.close()


@pytest.mark.parametrize("channels_last", [True, False])
def test_batches_have_the_memory_layout_of_the_spec(images: Path, dataset: Dataset, channels_last: bool) -> None:
    spec = RunSpec(data=config(images), optim=OptimConfig(global_batch_size=8), channels_last=channels_last)
    batches = StreamedBatches(dataset, spec, device=CPU)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    found = [x for x, _ in (*batches.train_epoch(0), *batches.test())]
    found += [x for kind in ("ten_crop", "multi_scale") for views, _ in batches.views(kind) for x in views]
    batches.close()
    assert all(x.dtype == torch.float32 and x.is_contiguous(memory_format=layout) for x in found)


# --- the index ---


def test_a_streamed_data_set_offers_what_one_in_memory_does(images: Path, dataset: Dataset) -> None:
    assert (dataset.name, dataset.classes, dataset.in_channels, dataset.image_size) == ("imagefolder", ("a", "b"), 3, CROP)
    assert (np.bincount(dataset.train.labels).tolist(), np.bincount(dataset.test.labels).tolist()) == ([10, 10], [4, 3])
    assert isinstance(dataset.train, Files)
    crops = np.stack([decode_view(View(dataset.train.path(i), 16, 14)) for i in range(20)]).astype(float)
    np.testing.assert_allclose(dataset.mean, crops.mean((0, 1, 2)))
    np.testing.assert_allclose(dataset.std, crops.std((0, 1, 2)))


def test_images_in_memory_are_not_streamed(images: Path) -> None:
    data = config(images, stream=False, decode_workers=None)
    assert isinstance(make_batches(load(data), RunSpec(data=data), device=CPU), Batches)


def facts(data: Dataset) -> tuple[Any, ...]:
    assert isinstance(data.train, Files)
    assert isinstance(data.test, Files)
    paths = [part.path(i) for part in (data.train, data.test) for i in range(len(part.labels))]
    return data.name, data.classes, data.version, data.mean, data.std, data.crop, paths, [*data.train.labels, *data.test.labels]


def test_a_second_load_reads_no_image(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load(config(images), tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(indexing, "file_digests", None)
        second = load(config(images), tmp_path)
    assert facts(first) == facts(second) == facts(load(config(images)))
    assert facts(load(config(images, image_size=16), tmp_path))[5] == 16


@pytest.mark.parametrize("changes", [{"train_examples": 6}, {"test_examples": 2}, {"validation": 0.2}])
def test_the_version_tells_which_images_are_used(images: Path, dataset: Dataset, changes: dict[str, Any]) -> None:
    assert load(config(images, **changes)).version != dataset.version


def test_the_version_follows_the_bytes_not_the_place(images: Path, tmp_path: Path, dataset: Dataset) -> None:
    copy = shutil.copytree(images, tmp_path / "copy")
    assert load(config(copy)).version == dataset.version
    save(copy / "train" / "a" / "00.png", ramp(16, 16, level=1))
    assert load(config(copy), tmp_path / "cache").version != dataset.version


def test_names_that_are_no_text_are_found(tmp_path: Path) -> None:
    for i, name in enumerate([b"\xff\xfe.png", "größer.png".encode()] * 2):
        folder = tmp_path / ("train", "test")[i // 2] / "ab"[i % 2]
        os.rename(save(folder / "x.png", ramp(16, 16)), os.path.join(os.fsencode(folder), name))
    data = load(config(tmp_path), tmp_path / "cache")
    assert data.examples(2).shape == (2, 3, CROP, CROP)


def truncate(root: Path) -> None:
    path = save(root / "train" / "b" / "x.jpg", np.random.default_rng(0).integers(0, 256, (40, 40, 3)))
    path.write_bytes(path.read_bytes()[:-20])


def truncate_png(root: Path) -> None:
    path = root / "train" / "b" / "01.png"
    path.write_bytes(path.read_bytes()[:-20])


def empty_class(root: Path) -> None:
    for path in (root / "train" / "b").iterdir():
        path.unlink()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (truncate, r"data\.root={root}/train/b/x\.jpg: cannot be decoded as an image \(the file is truncated\)"),
        (truncate_png, r"data\.root={root}/train/b/01\.png: cannot be decoded as an image \(the file is truncated\)"),
        (lambda r: (r / "test/a/n.png").write_text("<html>"), r"data\.root={root}/test/a/n\.png: .* \(not an image .*\)"),
        (lambda r: Image.new("F", (16, 16)).save(r / "test/a/n.tif"), r"data\.root={root}/test/a/n\.tif: .* F; accepted: 8 bits.*"),
        (empty_class, r"data\.root={root}/train/b: no images in it; accepted: .*"),
        (lambda r: shutil.rmtree(r / "train/b"), r"data\.root={root}/train: accepted: at least two class folders, found 1"),
        (lambda r: save(r / "test/c/n.png", ramp(9, 9)), r"data\.root={root}: train and test must have the same classes; .*: c"),
    ],
)
def test_a_folder_that_cannot_be_streamed_is_refused_in_one_line(
    images: Path, tmp_path: Path, spoil: Callable[[Path], Any], message: str
) -> None:
    root = shutil.copytree(images, tmp_path / "copy")
    spoil(root)
    with pytest.raises(ConfigError) as caught:
        load(config(root))
    assert len(str(caught.value).splitlines()) == 1
    assert caught.match(f"^{message.format(root=root)}$")


def test_what_cameras_append_to_a_jpeg_is_no_damage(tmp_path: Path) -> None:
    for part, name in itertools.product(("train", "test"), "ab"):
        path = save(tmp_path / part / name / "x.jpg", ramp(16, 16))
        path.write_bytes(path.read_bytes() + b"appended" * 50)
    assert len(load(config(tmp_path)).train.labels) == 2


# --- ImageNet ---


@pytest.fixture
def imagenet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two classes that stand for a thousand."""
    monkeypatch.setattr(folders, "IMAGENET_CLASSES", 2)
    for part, name in itertools.product(("train", "val"), ("n01440764", "n01443537")):
        save(tmp_path / part / name / f"{part}.JPEG", ramp(16, 16))
    return tmp_path


def test_imagenet_is_streamed_with_its_known_statistics(imagenet: Path) -> None:
    (imagenet / "test").mkdir()  # its images have no labels
    data = load(config(imagenet, name="imagenet", stream=False))
    assert data.classes == ("n01440764", "n01443537")
    assert isinstance(data.test, Files)
    assert data.test.path(0) == str(imagenet / "val" / "n01440764" / "val.JPEG")
    np.testing.assert_allclose(data.mean, (123.675, 116.28, 103.53))
    np.testing.assert_allclose(data.std, (58.395, 57.12, 57.375))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda r: shutil.rmtree(r / "val"),
            r"data\.root={root}: accepted: folders train and val in it, each with 2 class folders",
        ),
        (lambda r: (r / "train").rename(r / "x"), r"data\.root={root}: accepted: folders train and val in it, .*"),
        (lambda r: shutil.rmtree(r / "val/n01443537"), r"data\.root={root}/val: accepted: at least two class folders, found 1"),
        (
            lambda r: [save(r / part / "n3" / "x.png", ramp(9, 9)) for part in ("train", "val")],
            r"data\.root={root}/train: imagenet has 2 class folders, found 3; others: data\.name=imagefolder",
        ),
    ],
)
def test_what_is_not_laid_out_as_imagenet_is_refused_in_one_line(
    imagenet: Path, spoil: Callable[[Path], Any], message: str
) -> None:
    spoil(imagenet)
    with pytest.raises(ConfigError, match=f"^{message.format(root=imagenet)}$"):
        load(config(imagenet, name="imagenet"))


def test_imagenet_with_validation_images_needs_no_val_folder(imagenet: Path) -> None:
    shutil.rmtree(imagenet / "val")
    save(imagenet / "train" / "n01443537" / "second.JPEG", ramp(16, 16, level=7))
    data = load(config(imagenet, name="imagenet", validation=0.3))
    assert (data.train.labels.tolist(), data.test.labels.tolist()) == ([0, 1], [1])
