"""Data on disk decide, also within a process; and a process that reads or waits long gives signs of life."""

import itertools
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock
from PIL import Image

from ablations.engine.task.image_classification import IMAGE_CLASSIFICATION
from ablations.engine.trial import worker
from ablations.engine.trial.job import Job
from resnet_core import ConfigError, DataConfig, Dataset, RunSpec, load_dataset, preset
from resnet_core.heartbeat import acquire_lock


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Two classes of five images, all files of one size."""
    root = tmp_path / "images"
    for (label, name), i in itertools.product(enumerate(("cat", "dog")), range(5)):
        path = root / name / f"{i}.bmp"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((16, 16, 3), 50 * label + i, np.uint8)).save(path)
    return root


def config(root: Path, *, stream: bool = False) -> DataConfig:
    return DataConfig(name="imagefolder", root=str(root), stream=stream, image_size=14 if stream else None)


def count(dataset: Dataset) -> int:
    return len(dataset.train.labels) + len(dataset.test.labels)


# --- freshness ---


def added(root: Path) -> None:
    for i in range(30):
        Image.new("RGB", (16, 16), (i, i, i)).save(root / "cat" / f"new{i}.bmp")


def removed(root: Path) -> None:
    (root / "dog" / "0.bmp").unlink()


def written_over(root: Path) -> None:
    Image.new("RGB", (16, 16), "red").save(root / "dog" / "0.bmp")


def exchanged(root: Path) -> None:
    """Both files have one size and one time of change; only ctime tells them apart."""
    for path in root.rglob("*.bmp"):
        os.utime(path, (0, 0))
    load_dataset(config(root))
    a, b = root / "cat" / "0.bmp", root / "dog" / "0.bmp"
    a.rename(root / "x")
    b.rename(a)
    (root / "x").rename(b)


@pytest.mark.slow
@pytest.mark.parametrize("change", [added, removed, written_over, exchanged])
@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("stream", [False, True])
def test_a_process_sees_a_folder_as_it_is_now(
    images: Path, tmp_path: Path, change: Callable[[Path], None], cached: bool, stream: bool
) -> None:
    asked, cache = config(images, stream=stream), tmp_path / "cache" if cached else None
    before = load_dataset(asked, cache)
    assert load_dataset(asked, cache) is before
    change(images)
    after = load_dataset(asked, cache)
    assert count(after) == len(list(images.glob("*/*.bmp")))
    assert after.version != before.version
    assert load_dataset(asked, tmp_path / "other").version == after.version


@pytest.mark.parametrize("cached", [False, True])
def test_a_class_folder_without_images_is_refused_whatever_is_cached(images: Path, tmp_path: Path, cached: bool) -> None:
    cache = tmp_path / "cache" if cached else None
    load_dataset(config(images), cache)
    (images / "empty").mkdir()
    with pytest.raises(ConfigError, match=rf"^data\.root={images}/empty: no images in it"):
        load_dataset(config(images), cache)
    (images / "empty").rmdir()
    assert load_dataset(config(images), cache).classes == ("cat", "dog")


def test_files_that_are_passed_over_are_counted_anew_and_decode_nothing_anew(images: Path, tmp_path: Path) -> None:
    first = load_dataset(config(images), tmp_path / "cache")
    (images / "cat" / "photo.heic").write_text("")
    second = load_dataset(config(images), tmp_path / "cache")
    assert (first.skipped, second.skipped) == ("", "1 .heic")
    assert second.version == first.version
    assert len(list((tmp_path / "cache").glob("*/meta.json"))) == 1


# --- signs of life ---


@pytest.mark.parametrize("stream", [False, True])
def test_a_sign_of_life_for_each_file_that_is_listed_and_read(images: Path, stream: bool) -> None:
    signs: list[None] = []
    asked = config(images, stream=stream)
    load_dataset(asked, heartbeat=lambda: signs.append(None))
    listed, read = 10, 10 + (8 if stream else 0)  # streamed: hashed, and a sample of the training images decoded
    assert len(signs) == listed + read


WATCHED = """
import sys
from pathlib import Path
from ablations.engine.trial.watchdog import Watchdog
from resnet_core import load_dataset, preset
print("ready", flush=True)
with Watchdog(1.0, lambda: None) as watchdog:
    print(load_dataset(preset("smoke").data, Path(sys.argv[1]), heartbeat=watchdog.alive).name)
"""


def test_who_waits_for_the_data_of_another_process_is_not_hung(tmp_path: Path) -> None:
    load_dataset(preset("smoke").data, tmp_path)
    (lock,) = tmp_path.glob("*.lock")
    with FileLock(lock):
        waiting = subprocess.Popen([sys.executable, "-c", WATCHED, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        assert waiting.stdout
        assert waiting.stdout.readline() == "ready\n"
        with pytest.raises(subprocess.TimeoutExpired):
            waiting.wait(3)  # several times as long as its watchdog bears
    assert waiting.communicate(timeout=180)[0] == "synthetic\n"
    assert waiting.returncode == 0


def test_a_lock_is_waited_for_with_signs_of_life_and_then_held(tmp_path: Path) -> None:
    signs: list[float] = []
    held = FileLock(tmp_path / "lock", thread_local=False)
    held.acquire()
    release = threading.Timer(1.2, held.release)
    release.start()
    with acquire_lock(tmp_path / "lock", lambda: signs.append(time.monotonic())):
        assert len(signs) >= 2
        with pytest.raises(TimeoutError):
            FileLock(tmp_path / "lock").acquire(timeout=0.05)
    FileLock(tmp_path / "lock").acquire(timeout=0.05).lock.release()
    release.join()


def test_a_trials_data_are_loaded_with_signs_of_life(images: Path, tmp_path: Path) -> None:
    spec = RunSpec(data=config(images))
    version = load_dataset(spec.data).version
    folder = str(tmp_path)
    signs: list[None] = []
    job = Job(
        fingerprint="f",
        spec=spec.flat(),
        data_version=version,
        folder="f",
        storage=folder,
        cache=folder,
        cpus_per_worker=1,
        gpus_per_worker=0,
    )
    assert worker._load(job, IMAGE_CLASSIFICATION, spec, Path(folder), lambda: signs.append(None)).version == version
    assert len(signs) >= 10
