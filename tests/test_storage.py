"""Checkpoints in an object store, and studies whose storage fails: against a local server of Amazon's S3 protocol."""

import math
import os
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import ray
from pyarrow import fs
from test_checkpoints import epoch_of, small_disk, state
from test_study_runs import Submitted

from ablations.engine.checkpoints import CheckpointFolder

pytestmark = pytest.mark.slow

LARGE = 2_000_000
"""Numbers in a state of 8 MB, which goes up in more than one piece."""


class Line:
    """The way to the server. It breaks when `left` bytes have gone up, and stays broken until there is more left."""

    def __init__(self, server: int) -> None:
        self.server = server
        self.left = math.inf
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self.listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):  # closed
            while True:
                client, _ = self.listener.accept()
                server = socket.create_connection(("127.0.0.1", self.server))
                threading.Thread(target=self._carry, args=(client, server, True), daemon=True).start()
                threading.Thread(target=self._carry, args=(server, client, False), daemon=True).start()

    def _carry(self, source: socket.socket, sink: socket.socket, up: bool) -> None:
        with suppress(OSError), source:
            while self.left > 0 and (data := source.recv(65536)):
                self.left -= len(data) if up else 0
                if self.left > 0:
                    sink.sendall(data)
            for end in (source, sink):
                end.shutdown(socket.SHUT_RDWR)


@pytest.fixture(scope="module")
def line() -> Iterator[Line]:
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"]
    with pytest.MonkeyPatch.context() as environment, subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        try:
            for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
                environment.setenv(name, "anything")
            assert server.stderr
            port = next(int(text.rsplit(":", 1)[1]) for text in server.stderr if "Running on" in text)
            threading.Thread(target=server.stderr.read, daemon=True).start()  # its log must not fill the pipe
            with urllib.request.urlopen(urllib.request.Request(f"http://127.0.0.1:{port}/bucket", method="PUT")):
                pass
            line = Line(port)
            yield line
            line.listener.close()
        finally:
            server.kill()


@pytest.fixture
def store(line: Line, tmp_path: Path) -> str:
    line.left = math.inf
    return f"s3://bucket/{tmp_path.name}?scheme=http&endpoint_override=127.0.0.1:{line.port}"


def objects(folder: CheckpointFolder) -> list[str]:
    return sorted(found.base_name[:12] for found in folder.files.get_file_info(fs.FileSelector(folder.folder)))


def test_an_object_store_serves_as_a_folder_does(store: str) -> None:
    folder = CheckpointFolder(store, "run")
    assert epoch_of(folder) is None
    for epoch in (1, 2, 3):
        folder.save(state(epoch, LARGE), epoch)
    assert objects(folder) == ["epoch-000002", "epoch-000003"]
    assert epoch_of(CheckpointFolder(store, "run")) == 3


def test_a_truncated_object_is_passed_over_and_gives_way(store: str, caplog: pytest.LogCaptureFixture) -> None:
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


@pytest.fixture(scope="module")
def cluster(line: Line) -> Iterator[None]:
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_study_whose_object_store_was_gone_for_a_while_goes_on_from_there(
    tmp_path: Path, store: str, line: Line, workers: str
) -> None:
    arguments = ["--storage", store, "--levels", "shortcut=A", "--workers", workers, "--set", "optim.epochs=6"]
    line.left = 600_000  # a checkpoint has 0.16 MB
    broken = Submitted(tmp_path, *arguments)
    (entry,) = broken.entries.values()
    assert (broken.code, entry.outcome) == (1, "failed")
    assert "not saved in s3://bucket/" in entry.tags["message"]
    line.left = math.inf
    folder = CheckpointFolder(store, broken.plan.runs[0].fingerprint)
    before = folder.latest()
    assert before is not None

    mended = Submitted(tmp_path, *arguments)
    after = folder.latest()
    assert after is not None
    assert mended.code == 0
    assert mended.steps() == [1, 2, 3, 4, 5, 6]
    assert mended.entries[mended.plan.runs[0].fingerprint].run_id == entry.run_id
    assert 0 < len(before["history"]) < len(after["history"]) == 6
    assert after["history"][: len(before["history"])] == before["history"]  # to the nanosecond: not trained again


@pytest.mark.usefixtures("cluster")
def test_a_study_whose_disk_is_full_fails_for_that_reason_and_leaves_healthy_storage_alone(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    with small_disk(disk, "256k"):  # room for one checkpoint
        full = Submitted(tmp_path, "--levels", "shortcut=A", "--storage", str(disk))
        (entry,) = full.entries.values()
        assert (full.code, entry.outcome) == (1, "failed")
        folder = CheckpointFolder(str(disk), full.plan.runs[0].fingerprint)
        assert (
            entry.tags["message"]
            == f"OSError: checkpoint of epoch 2 not saved in {folder.folder}: [Errno 28] No space left on device"
        )
        assert epoch_of(folder) == 1
        assert os.listdir(folder.folder) == folder._names()

        healthy = Submitted(tmp_path, "--levels", "shortcut=A,B")
        assert healthy.code == 0
        assert healthy.count_mlflow_runs() == 1 + 2
