"""Checkpoints in an object store, and studies whose storage fails: against a local server of Amazon's S3 protocol."""

import math
import os
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from pyarrow import fs

from ablations.engine.trial.checkpoints import CheckpointFolder
from tests.helpers.checkpoints import epoch_of, small_disk, state
from tests.helpers.object_store import Line, object_store
from tests.helpers.submission import Submitted

pytestmark = pytest.mark.slow

LARGE = 2_000_000
"""Numbers in a state of 8 MB, which goes up in more than one piece."""


@pytest.fixture(scope="module")
def line() -> Iterator[Line]:
    with object_store() as line:
        yield line


@pytest.fixture
def store(line: Line, tmp_path: Path) -> str:
    line.left = math.inf
    return line.store(tmp_path.name)


def objects(folder: CheckpointFolder) -> list[str]:
    return sorted(found.base_name[:12] for found in folder.files.get_file_info(fs.FileSelector(folder.folder)))


def test_an_object_store_serves_as_a_folder_does(store: str) -> None:
    folder = CheckpointFolder(store, "run")
    assert epoch_of(folder) is None
    for epoch in (1, 2, 3):
        folder.save(state(epoch, LARGE), epoch)
    assert objects(folder) == ["epoch-000002", "epoch-000003"]
    assert epoch_of(CheckpointFolder(store, "run")) == 3


def test_a_truncated_object_is_ignored_and_removed(store: str, caplog: pytest.LogCaptureFixture) -> None:
    folder = CheckpointFolder(store, "run")
    for epoch in (1, 2):
        folder.save(state(epoch), epoch)
    name = folder._names()[0]
    # An exception here, such as Ctrl-C, makes a whole object of what has been written.
    with suppress(KeyboardInterrupt), folder.files.open_output_stream(f"{folder.folder}/{name}") as stream:
        stream.write(b"half of")
        raise KeyboardInterrupt
    assert epoch_of(folder) == 1
    assert f"{folder.where}/{name} is damaged" in caplog.text
    folder.save(state(3), 3)
    assert objects(folder) == ["epoch-000001", "epoch-000003"]


def test_an_upload_that_breaks_off_leaves_no_object_and_names_the_storage_without_its_keys(store: str, line: Line) -> None:
    folder = CheckpointFolder(store.replace("bucket", "name:secret@bucket", 1), "run")
    for epoch in (1, 2):
        folder.save(state(epoch, LARGE), epoch)
    line.left = 4_000_000
    with pytest.raises(OSError, match=rf"^checkpoint of epoch 3 not saved in s3://{folder.folder}: .*UploadPart") as error:
        folder.save(state(3, LARGE), 3)
    assert "secret" not in str(error.value)
    with pytest.raises(OSError, match=rf"^checkpoints in s3://{folder.folder} cannot be read: .*NETWORK_CONNECTION"):
        folder.latest()
    line.left = math.inf
    assert objects(folder) == ["epoch-000001", "epoch-000002"]
    assert epoch_of(folder) == 2
    folder.save(state(3, LARGE), 3)
    assert epoch_of(folder) == 3


def test_a_connection_that_comes_back_within_a_second_is_no_failure(store: str, line: Line) -> None:
    folder = CheckpointFolder(store, "run")
    line.left = 4_000_000
    mended = threading.Timer(1, setattr, (line, "left", math.inf))
    mended.start()
    folder.save(state(1, LARGE), 1)
    assert not mended.is_alive()
    assert epoch_of(folder) == 1


@pytest.mark.usefixtures("cluster")
@pytest.mark.nightly
def test_a_study_whose_object_store_was_gone_for_a_while_goes_on_from_there(home: Path, store: str, line: Line) -> None:
    arguments = ["--storage", store, "--levels", "shortcut=A", "--set", "optim.epochs=6"]
    line.left = 600_000  # a checkpoint has 0.17 MB
    broken = Submitted(home, *arguments)
    assert (broken.code, broken.entry().outcome) == (1, "failed")
    assert "not saved in s3://bucket/" in broken.entry().tags["message"]
    line.left = math.inf
    before = broken.checkpoint()["history"]

    mended = Submitted(home, *arguments)
    after = mended.checkpoint()["history"]
    assert mended.code == 0
    assert mended.steps() == [1, 2, 3, 4, 5, 6]
    assert mended.run_ids() == broken.run_ids()
    assert 0 < len(before) < len(after) == 6
    assert after[: len(before)] == before  # to the nanosecond: not trained again


@pytest.mark.usefixtures("cluster")
def test_a_study_whose_disk_is_full_fails_for_that_reason_and_leaves_healthy_storage_alone(home: Path) -> None:
    disk = home / "disk"
    with small_disk(disk, "256k"):  # room for one checkpoint
        full = Submitted(home, "--levels", "shortcut=A", "--storage", str(disk))
        assert (full.code, full.entry().outcome) == (1, "failed")
        folder = CheckpointFolder(str(disk), full.plan.runs[0].fingerprint)
        reason = f"checkpoint of epoch 2 not saved in {folder.folder}: [Errno 28] No space left on device"
        assert full.entry().tags["message"] == f"OSError: {reason}"
        assert epoch_of(folder) == 1
        assert os.listdir(folder.folder) == folder._names()

        healthy = Submitted(home, "--levels", "shortcut=A,B")
        assert healthy.code == 0
        assert healthy.count_mlflow_runs() == 1 + 2
