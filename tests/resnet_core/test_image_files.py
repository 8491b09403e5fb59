"""Image files are seen as they are meant to be, alike in memory and streamed; what lies beside them is refused or told."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageOps

from resnet_core import ConfigError, DataConfig, Dataset, load_dataset
from resnet_core.data import datasets, indexing
from resnet_core.data.__main__ import main
from resnet_core.data.decoding import View, decode_square, decode_view, image_size

ORIENTATION, BITS_PER_SAMPLE, PHOTOMETRIC = 0x0112, 258, 262
SIDE = 16


def load(root: Path, cache: Path | None = None, **changes: Any) -> Dataset:
    """As in a fresh process."""
    datasets._kept.clear()
    return load_dataset(DataConfig(name="imagefolder", root=str(root), **{"image_size": 14, "decode_workers": 1} | changes), cache)


def smooth(height: int, width: int) -> NDArray[np.uint8]:
    """Red grows to the right, green downwards: turned images differ."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([4 * columns, 4 * rows, 0 * rows], 2).astype(np.uint8)


def seen(path: Path) -> NDArray[np.uint8]:
    """An image as both ways of reading see it, in its own size (H, W, 3)."""
    memory, _ = decode_square(str(path), None)
    streamed = decode_view(View(str(path), side=min(image_size(str(path)))))
    assert np.array_equal(np.broadcast_to(memory, streamed.shape), streamed)
    return streamed


def save_exif(path: Path, orientation: int, shape: tuple[int, int] = (40, 24)) -> Path:
    image = Image.fromarray(smooth(*shape))
    exif = image.getexif()
    exif[ORIENTATION] = orientation
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, exif=exif)
    return path


# --- orientation ---


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif"])
def test_images_are_turned_as_exif_transpose_does(tmp_path: Path, orientation: int, suffix: str) -> None:
    path = save_exif(tmp_path / f"a.{suffix}", orientation)
    with Image.open(path) as file:
        expected = np.asarray(ImageOps.exif_transpose(file).convert("RGB"))
    assert np.array_equal(seen(path), expected)
    assert image_size(str(path)) == expected.shape[1::-1]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_view_is_cut_from_the_upright_image(tmp_path: Path, orientation: int) -> None:
    path = save_exif(tmp_path / "a.jpg", orientation, (400, 240))  # large enough for JPEG's own scaling
    with Image.open(path) as file:
        ImageOps.exif_transpose(file).save(tmp_path / "upright.png")
    for row, column in ((0.0, 0.9), (0.9, 0.0), (0.5, 0.5)):
        turned, upright = (decode_view(View(str(tmp_path / name), 32, 28, row, column)) for name in ("a.jpg", "upright.png"))
        assert abs(turned.astype(int) - upright).mean() < 2


def test_broken_exif_turns_nothing(tmp_path: Path) -> None:
    Image.fromarray(smooth(16, 24)).save(tmp_path / "a.webp", lossless=True, exif=b"Exif\0\0no such thing")
    assert np.array_equal(seen(tmp_path / "a.webp"), smooth(16, 24))


# --- transparency ---

BLUE, HIDDEN = (0, 0, 255, 255), (250, 0, 0, 0)


def rgba() -> Image.Image:
    """Blue on the left, transparent on the right, with another colour beneath."""
    image = Image.new("RGBA", (16, 16), BLUE)
    image.paste(HIDDEN, (8, 0, 16, 16))
    return image


def with_palette() -> Image.Image:
    image = Image.new("P", (16, 16), 1)
    image.putpalette([250, 0, 0, 0, 0, 255])
    image.paste(0, (8, 0, 16, 16))
    image.info["transparency"] = 0
    return image


def with_color_key() -> Image.Image:
    image = Image.new("RGB", (16, 16), BLUE[:3])
    image.paste(HIDDEN[:3], (8, 0, 16, 16))
    image.info["transparency"] = HIDDEN[:3]
    return image


@pytest.mark.parametrize("make", [rgba, with_palette, with_color_key])
def test_transparent_pixels_are_white(tmp_path: Path, make: Callable[[], Image.Image]) -> None:
    image = make()
    image.save(tmp_path / "a.png", **({"transparency": image.info["transparency"]} if image.info else {}))
    found = seen(tmp_path / "a.png")
    assert (found[:, :8] == BLUE[:3]).all()
    assert (found[:, 8:] == 255).all()


def test_half_transparent_gray_is_mixed_with_white_and_stays_gray(tmp_path: Path) -> None:
    Image.new("LA", (16, 16), (0, 102)).save(tmp_path / "a.png")
    assert decode_square(str(tmp_path / "a.png"), None)[0].shape == (16, 16, 1)
    assert set(seen(tmp_path / "a.png").flat) == {153}


def test_an_opaque_alpha_channel_changes_nothing(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 4)).astype(np.uint8)
    pixels[..., 3] = 255
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert np.array_equal(seen(tmp_path / "a.png"), pixels[..., :3])


@pytest.mark.parametrize("suffix", ["gif", "png", "webp", "tif"])
def test_of_several_frames_the_first_is_used(tmp_path: Path, suffix: str) -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in ((255, 255, 255), (0, 0, 0))]
    frames[0].save(tmp_path / f"a.{suffix}", save_all=True, append_images=frames[1:])
    assert (seen(tmp_path / f"a.{suffix}") == 255).all()


# --- 16 bits ---

LEVELS = np.array([[0, 255, 256, 4095], [4096, 32768, 65279, 65535]] * 2, np.uint16)


def png(path: Path) -> None:
    Image.fromarray(LEVELS).save(path.with_suffix(".png"))


def tiff(path: Path) -> None:
    Image.fromarray(LEVELS).save(path.with_suffix(".tif"))


def compressed_tiff(path: Path) -> None:
    Image.fromarray(LEVELS).save(path.with_suffix(".tif"), compression="tiff_lzw")


def big_endian_tiff(path: Path) -> None:
    Image.fromarray(LEVELS.astype(">u2")).save(path.with_suffix(".tif"))


def pgm(path: Path) -> None:
    path.with_suffix(".pgm").write_bytes(b"P5\n4 4\n65535\n" + LEVELS.astype(">u2").tobytes())


def inverted_tiff(path: Path) -> None:
    Image.fromarray(65535 - LEVELS).save(path.with_suffix(".tif"))
    content = path.with_suffix(".tif").read_bytes()  # 0 is white: a tag of type SHORT with one value
    black, white = (np.array([PHOTOMETRIC, 3, 1, 0, value, 0], "<u2").tobytes() for value in (1, 0))
    assert black in content
    path.with_suffix(".tif").write_bytes(content.replace(black, white))


@pytest.mark.parametrize("save", [png, tiff, compressed_tiff, big_endian_tiff, pgm, inverted_tiff])
def test_of_gray_with_16_bits_the_upper_8_are_used(tmp_path: Path, save: Callable[[Path], None]) -> None:
    save(tmp_path / "a")
    (path,) = tmp_path.iterdir()
    assert decode_square(str(path), None)[0].shape == (4, 4, 1)
    assert np.array_equal(seen(path)[..., 0], LEVELS >> 8)


def test_of_gray_that_declares_12_bits_the_upper_8_of_those_are_used(tmp_path: Path) -> None:
    (tmp_path / "a.pgm").write_bytes(b"P5\n4 1\n4095\n" + np.array([0, 15, 2048, 4095], ">u2").tobytes())
    assert seen(tmp_path / "a.pgm")[0, :, 0].tolist() == [0, 0, 128, 255]
    Image.fromarray(np.zeros((1, 4), np.uint16)).save(tmp_path / "a.tif")
    content = (tmp_path / "a.tif").read_bytes()
    deep, packed = (np.array([BITS_PER_SAMPLE, 3, 1, 0, bits, 0], "<u2").tobytes() for bits in (16, 12))
    assert content.endswith(bytes(8))
    # Two values of 12 bits in three bytes.
    (tmp_path / "a.tif").write_bytes(content.replace(deep, packed)[:-8] + bytes.fromhex("00000f 800fff 0000"))
    assert seen(tmp_path / "a.tif")[0, :, 0].tolist() == [0, 0, 128, 255]


def test_gray_with_16_bits_is_turned_and_may_have_a_transparent_level(tmp_path: Path) -> None:
    image = Image.fromarray(LEVELS)
    exif = image.getexif()
    exif[ORIENTATION] = 6
    image.save(tmp_path / "a.png", exif=exif, transparency=4096)
    expected = np.where(LEVELS == 4096, 255, LEVELS >> 8)
    assert np.array_equal(seen(tmp_path / "a.png")[..., 0], np.rot90(expected, -1))


@pytest.mark.parametrize("mode", ["I", "F"])
def test_signed_and_floating_point_pixels_are_refused(tmp_path: Path, mode: str) -> None:
    Image.new(mode, (16, 16)).save(tmp_path / "a.tif")
    for read in (lambda path: decode_square(path, None), lambda path: decode_view(View(path, 16))):
        with pytest.raises(ConfigError, match=rf"its pixels are {mode}; accepted: 8 bits per channel, unsigned gray of 16 bits"):
            read(str(tmp_path / "a.tif"))


# --- channels ---


@pytest.mark.parametrize("place", ["train", "test"])
def test_how_many_images_are_used_does_not_change_the_channels(tmp_path: Path, place: str) -> None:
    for part, name, i in itertools.product(("train", "test"), ("cat", "dog"), range(5)):
        path = tmp_path / part / name / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new(("L", "1", "LA", "I;16", "L")[i], (SIDE, SIDE), 1).save(path)
    few: dict[str, Any] = {"train_examples": 2, "test_examples": 2}
    gray = load(tmp_path, **few)
    assert gray.in_channels == load(tmp_path).in_channels == 1
    (tmp_path / place / "dog" / "broken.png").write_text("no image, and not used")
    colored = tmp_path / place / "cat" / "colored.png"
    Image.new("RGB", (SIDE, SIDE)).save(colored)
    assert load(tmp_path, **few).in_channels == 3
    (tmp_path / place / "dog" / "broken.png").unlink()
    assert load(tmp_path).in_channels == 3
    colored.unlink()
    assert load(tmp_path, **few).version == gray.version


# --- the version ---


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Two classes of five images."""
    root = tmp_path / "images"
    for name, i in itertools.product(("cat", "dog"), range(5)):
        path = root / name / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(smooth(SIDE, SIDE) // (i + 1)).save(path)
    return root


def test_a_version_of_plain_files_is_what_it_was_before_files_were_changed(images: Path) -> None:
    (images / "dog" / "README.txt").write_text("")
    assert load(images, stream=True, image_size=SIDE).version == "8fedadf18a402dd4e987"
    assert load(images, image_size=SIDE).version == "96e8f67e916679c41eae"


@pytest.mark.parametrize("stream", [False, True])
def test_a_version_stands_for_what_is_done_to_files(images: Path, stream: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    save_exif(images / "cat" / "0.png", 6, (SIDE, SIDE))
    turned = load(images, stream=stream)
    assert turned.changed == {"orientation": 1}
    monkeypatch.setattr("resnet_core.data.decoding._orientation", lambda _: None)
    assert load(images, stream=stream).version != turned.version


@pytest.mark.parametrize("stream", [False, True])
def test_a_summary_says_images_classes_split_changes_and_what_is_not_used(images: Path, tmp_path: Path, stream: bool) -> None:
    rgba().save(images / "cat" / "0.png")
    save_exif(images / "cat" / "1.jpg", 3, (SIDE, SIDE))
    Image.fromarray(np.zeros((SIDE, SIDE), np.uint16)).save(images / "dog" / "deep.tif")
    Image.new("L", (SIDE, SIDE)).save(images / "dog" / "two.gif", save_all=True, append_images=[Image.new("L", (SIDE, SIDE), 9)])
    for name in ("a.heic", "b.HEIC", "noextension", ".hidden.png", "deeper/c.heic"):
        (images / "dog" / name).parent.mkdir(exist_ok=True)
        (images / "dog" / name).write_text("")
    (images / "labels.csv").write_text("")
    expected = (
        "10 images to train, 3 images to score (a fifth of each class, held out), 2 classes, 14×14 pixels, RGB; "
        "1 turned as EXIF says, 1 with transparency, shown on white, 1 of 16 bits, the upper 8 used, "
        "1 with several frames, the first used; not used: 3 .heic, 1 beside the folders, 1 hidden, 1 without extension"
    )
    for _ in range(2):  # also from the cache
        assert load(images, tmp_path / "cache", stream=stream).summary == expected
    assert load(images, stream=stream, validation=0.2).summary.startswith(
        "10 images to train, 3 images to score (20 % of each class's training images, held out)"
    )


@pytest.mark.parametrize("stream", [False, True])
def test_a_summary_of_limited_images_says_of_how_many_they_are(images: Path, tmp_path: Path, stream: bool) -> None:
    for _ in range(2):  # also from the cache
        found = load(images, tmp_path / "cache", stream=stream, train_examples=6, test_examples=1).summary
        assert found.startswith("6 images to train (of 8), 1 image to score (of 2, a fifth of each class, held out), 2 classes")
    assert load(images, stream=stream, train_examples=99, test_examples=1, validation=0.2).summary.startswith(
        "8 images to train, 1 image to score (of 2, 20 % of each class's training images, held out)"
    )


def test_folders_that_are_not_read_are_told(images: Path) -> None:
    for name in ("train", "val", "test"):
        (images / name).mkdir()
        for label in ("cat", "dog"):
            (images / name / label).mkdir()
            Image.new("L", (SIDE, SIDE)).save(images / name / label / "0.png")
    assert load(images).summary.endswith(
        "(the folder test), 2 classes, 14×14 pixels, gray; not used: the folder cat, the folder dog, the folder val"
    )


def test_prepare_says_what_is_changed_and_not_used(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_exif(images / "cat" / "0.png", 6, (SIDE, SIDE))
    (images / "cat" / "photo.heic").write_text("")
    settings = ["data.name=imagefolder", f"data.root={images}", "train_examples=none", "test_examples=none"]
    assert main(["prepare", "--preset", "smoke", "--set", *settings, "--cache", str(tmp_path / "cache")]) == 0
    assert capsys.readouterr().out.endswith("changed     1 turned as EXIF says\nnot used    1 .heic\n")


# --- what looks like splits ---


@pytest.mark.parametrize(
    "names",
    [
        ("Train", "Test"),
        ("TRAIN", "VAL"),
        ("seg_train", "seg_test"),
        ("training", "validation"),
        ("training_set", "test_set"),
        ("train2017", "val2017"),
        ("imagesTrain", "imagesTest"),
        ("trainset", "testset"),
        ("Train", "TestSet"),
        ("training_set", "test"),
        ("trainset", "Test"),
        ("XTrain", "XTest"),
        ("TRAINset", "TEST"),
        ("train images", "test-images"),
        ("seg-train", "seg_test_data"),
        ("train_cats", "test_cats"),
        ("val", "test"),
    ],
)
@pytest.mark.parametrize("nested", [False, True])
def test_folders_named_like_splits_are_no_classes(images: Path, names: tuple[str, str], nested: bool) -> None:
    for name in names:
        (images / name / name).mkdir(parents=True)
        for label in ("cat", "dog"):
            (images / label).rename(images / name / name / label) if name == names[0] else None
    root = images
    if nested:  # the layout is right above: its classes are the splits
        for part in ("train", "test"):
            for name in names:
                (images / "x" / part / name).mkdir(parents=True)
        root = images / "x"
    with pytest.raises(ConfigError) as caught:
        load(root)
    assert len(str(caught.value).splitlines()) == 1
    assert caught.match(
        rf"^data\.root={images}.*: (?:{names[0]} and {names[1]}|{names[1]} and {names[0]}) look like splits, not classes; "
        r"accepted: folders train and test \(or val\), each with class folders; if they are classes, rename one of them$"
    )


@pytest.mark.parametrize(
    "names",
    [
        ("test_tube", "train"),
        ("test_tube", "train_station"),
        ("valid", "invalid"),
        ("contest", "restraint"),
        ("test", "x"),
        ("Dev Team", "Test Team"),
        ("dev_kit", "test_kit"),
        ("test_settle", "train"),
    ],
)
def test_honest_class_names_are_classes(images: Path, names: tuple[str, str]) -> None:
    for before, after in zip(("cat", "dog"), names, strict=True):
        (images / before).rename(images / after)
    assert load(images).classes == tuple(sorted(names))


# --- files that cannot be read ---


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("spoilt", [2, 13])
def test_all_files_that_cannot_be_decoded_are_named_at_once(
    images: Path, stream: bool, spoilt: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(indexing, "MAX_QUEUED_FILES", 3)
    paths = [images / "cat" / f"{i:02}.png" for i in range(spoilt)]  # "00.png" comes before all others
    for path in paths:
        path.write_text("no image")
    with pytest.raises(ConfigError) as caught:
        load(images, stream=stream)
    text = str(caught.value)
    assert text.startswith(f"data.root={images}: {spoilt} files cannot be used: {paths[0]}: cannot be decoded as an image (")
    assert text.count("cannot be decoded") == min(spoilt, 10)
    assert text.endswith("; and 3 more") == (spoilt == 13)
    assert len(text.splitlines()) == 1


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("left", [0, 5])
def test_all_links_that_lead_nowhere_are_named_at_once(images: Path, tmp_path: Path, cached: bool, left: int) -> None:
    for path in images.glob("*/*.png"):  # as where the folder that all of them lead to was moved
        if left == 0 or path.stem in "01":
            path.unlink()
            path.symlink_to("nowhere")
    with pytest.raises(ConfigError) as caught:
        load(images, tmp_path / "cache" if cached else None)
    count = 4 if left else 10
    assert caught.match(
        rf"^data\.root={images}: {count} files cannot be used: {images}/cat/0\.png: cannot be read \(No such .+\); "
    )
    assert str(caught.value).count("cannot be read") == count
