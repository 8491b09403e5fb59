"""A checkpoint is there whole or not at all, damage is found out, and what fails leaves those before it alone."""

import hashlib
import os
import pickle
import random
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from pyarrow import fs

from ablations.engine.checkpoints import CheckpointFolder


def state(epoch: int, numbers: int = 3) -> dict[str, object]:
    return {"weights": torch.full((numbers,), float(epoch)), "history": [{"epoch_seconds": 1.0}] * epoch}


def epoch_of(folder: CheckpointFolder) -> int | None:
    latest = folder.latest()
    return None if latest is None else len(latest["history"])


def saved(storage: Path, *epochs: int) -> CheckpointFolder:
    storage.mkdir(exist_ok=True)
    folder = CheckpointFolder(str(storage), "run")
    for epoch in epochs:
        folder.save(state(epoch), epoch)
    return folder


def files(storage: Path) -> list[str]:
    """Names without checksums; whatever is no checkpoint has its whole name."""
    names = sorted(path.name for path in (storage / "run").iterdir())
    return [name[:12] if name.endswith(".pt") else name for name in names]


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_the_newest_of_two_kept_is_read(tmp_path: Path, scheme: str) -> None:
    (tmp_path / "some/where").mkdir(parents=True)
    folder = CheckpointFolder(f"{scheme}{tmp_path}/some/where", "run")
    assert epoch_of(folder) is None
    for epoch in (1, 2, 3):
        folder.save(state(epoch), epoch)
    assert epoch_of(folder) == 3
    assert files(tmp_path / "some/where") == ["epoch-000002", "epoch-000003"]


def damage(file: Path, how: str) -> None:
    content = file.read_bytes()
    altered = content[:100] + bytes([content[100] ^ 1]) + content[101:]
    file.write_bytes({"altered": altered, "truncated": content[:-10], "empty": b""}[how])


@pytest.mark.parametrize("how", ["truncated", "altered", "empty"])
def test_a_damaged_checkpoint_is_passed_over_with_a_warning(tmp_path: Path, how: str, caplog: pytest.LogCaptureFixture) -> None:
    folder = saved(tmp_path, 1, 2)
    newest = max(tmp_path.glob("run/*.pt"))
    damage(newest, how)
    assert epoch_of(folder) == 1
    assert newest.name in caplog.text


def test_damaged_checkpoints_give_way_to_the_next_one_and_never_outlive_it(tmp_path: Path) -> None:
    saved(tmp_path, 5, 6)
    for file in tmp_path.glob("run/*.pt"):
        damage(file, "altered")
    folder = CheckpointFolder(str(tmp_path), "run")
    assert epoch_of(folder) is None
    folder.save(state(1), 1)
    assert files(tmp_path) == ["epoch-000001"]
    assert epoch_of(folder) == 1


def test_a_file_that_was_not_finished_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = CheckpointFolder(str(tmp_path), "run")
    folder.save(state(1), 1)
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError("the machine dies here")))
    with pytest.raises(OSError, match="dies"):
        folder.save(state(2), 2)
    assert epoch_of(folder) == 1


@pytest.mark.parametrize("how", ["truncated", "altered", "empty"])
def test_what_storage_spoils_is_found_out_before_an_older_one_is_removed(
    tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = saved(tmp_path, 1, 2)

    def replace_and_spoil(self: Path, target: Path) -> None:
        self.rename(target)
        damage(target, how)

    with monkeypatch.context() as spoilt:
        spoilt.setattr(Path, "replace", replace_and_spoil)
        with pytest.raises(OSError, match=rf"epoch 3 not saved in {tmp_path}/run: what was read back is not what was written"):
            folder.save(state(3), 3)
    assert files(tmp_path) == ["epoch-000001", "epoch-000002"]
    folder.save(state(3), 3)
    assert epoch_of(folder) == 3


@contextmanager
def small_disk(path: Path, size: str) -> Iterator[None]:
    path.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", path], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"needs the right to mount a small disk: {mounted.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", path], check=True)


@contextmanager
def small_files(path: Path, size: str) -> Iterator[None]:
    """Needs no rights: files of this process end at a size."""
    path.mkdir()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(size.removesuffix("m")) * 2**20, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize(("limit", "reason"), [(small_disk, "No space left on device"), (small_files, "File too large")])
def test_a_full_disk_is_named_and_leaves_the_older_ones_and_nothing_else(tmp_path: Path, limit: Any, reason: str) -> None:
    disk = tmp_path / "disk"
    with limit(disk, "1m"):
        folder = saved(disk, 1, 2)
        with pytest.raises(OSError, match=reason) as error:
            folder.save(state(3, numbers=500_000), 3)
        assert str(error.value).startswith(f"checkpoint of epoch 3 not saved in {disk}/run: ")
        assert files(disk) == ["epoch-000001", "epoch-000002"]
        assert epoch_of(folder) == 2
        folder.save(state(3), 3)  # there is room again
        assert epoch_of(folder) == 3


def test_a_disk_that_becomes_read_only_is_named_and_still_read(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    with small_disk(disk, "1m"):
        folder = saved(disk, 1, 2)
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        with pytest.raises(OSError, match=rf"epoch 3 not saved in {disk}/run: .*Read-only file system"):
            folder.save(state(3), 3)
        assert epoch_of(folder) == 2


@pytest.mark.parametrize("resumed", [False, True])
def test_storage_that_is_gone_is_not_made_anew_elsewhere(tmp_path: Path, resumed: bool) -> None:
    storage = tmp_path / "share"
    folder = saved(storage, 1, 2)
    if resumed:
        folder = CheckpointFolder(str(storage), "run")
        assert epoch_of(folder) == 2
    storage.rename(tmp_path / "away")
    storage.mkdir()  # as the mount point stays when a share is unmounted
    with pytest.raises(OSError, match=rf"epoch 3 not saved in {storage}/run: .*No such file or directory"):
        folder.save(state(3), 3)
    assert not list(storage.iterdir())
    storage.rmdir()
    (tmp_path / "away").rename(storage)
    assert epoch_of(folder) == 2


def test_storage_that_vanished_before_a_run_began_is_not_made_anew(tmp_path: Path) -> None:
    storage = tmp_path / "share"
    folder = CheckpointFolder(str(storage), "run")
    with pytest.raises(OSError, match=rf"^checkpoint of epoch 1 not saved in {storage}/run: .*No such file or directory"):
        folder.save(state(1), 1)
    assert not storage.exists()
    storage.mkdir()
    folder.save(state(1), 1)
    assert epoch_of(folder) == 1


def test_storage_that_cannot_be_read_is_named_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file where a folder should be")
    with pytest.raises(OSError, match=rf"^checkpoints in {tmp_path}/run cannot be read: ") as error:
        CheckpointFolder(str(tmp_path), "run").latest()
    assert "\n" not in str(error.value)


def test_what_a_dead_writer_left_is_removed_and_what_another_still_writes_is_not(tmp_path: Path) -> None:
    saved(tmp_path, 1)
    (tmp_path / "run/epoch-000002-0123456789abcdef.dead.partial").write_bytes(b"half of")
    folder = CheckpointFolder(str(tmp_path), "run")
    assert epoch_of(folder) == 1
    (tmp_path / "run/epoch-000003-0123456789abcdef.live.partial").write_bytes(b"more and more of")
    folder.save(state(2), 2)
    assert files(tmp_path) == ["epoch-000001", "epoch-000002", "epoch-000003-0123456789abcdef.live.partial"]


class Watched(fs.LocalFileSystem):  # type: ignore[misc]
    """Something happens after each listing, and nothing after the last of them."""

    then: Sequence[Callable[[], object]] = ()

    def get_file_info(self, selector: fs.FileSelector) -> Any:
        found = super().get_file_info(selector)
        for happens in self.then[:1]:
            self.then = self.then[1:]
            happens()
        return found


def test_files_may_vanish_between_listing_and_opening_or_removing_them(tmp_path: Path) -> None:
    saved(tmp_path, 1, 2)
    folder = CheckpointFolder(str(tmp_path), "run")
    folder.files = Watched()
    folder.files.then = [lambda: saved(tmp_path, 3, 4), lambda: saved(tmp_path, 5, 6), lambda: saved(tmp_path, 7, 8)]
    assert epoch_of(folder) == 8
    folder.save(state(9), 9)
    folder.files.then = [lambda: saved(tmp_path, 11, 12)]
    folder.save(state(10), 10)
    assert files(tmp_path) == ["epoch-000011", "epoch-000012"]


def test_a_writer_that_is_behind_leaves_newer_checkpoints_alone(tmp_path: Path) -> None:
    behind = saved(tmp_path, 1, 2)
    saved(tmp_path, 4, 5, 6)
    behind.save(state(3), 3)
    assert files(tmp_path) == ["epoch-000003", "epoch-000005", "epoch-000006"]


def test_writers_at_the_same_time_disturb_neither_each_other_nor_a_reader(tmp_path: Path) -> None:
    first = saved(tmp_path, 1)
    errors: list[BaseException] = []

    def write(numbers: int) -> None:
        try:
            folder = CheckpointFolder(str(tmp_path), "run")
            for epoch in range(1, 61):
                folder.save(state(epoch, numbers), epoch)
        except BaseException as error:
            errors.append(error)

    writers = [threading.Thread(target=write, args=(numbers,)) for numbers in (3, 3, 4, 50_000)]
    for writer in writers:
        writer.start()
    seen = []
    while any(writer.is_alive() for writer in writers):
        seen.append(epoch_of(CheckpointFolder(str(tmp_path), "run")))
    assert not errors
    assert None not in seen
    assert epoch_of(first) == 60


class Evil:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


def test_a_checkpoint_that_would_run_code_is_refused(tmp_path: Path) -> None:
    saved(tmp_path, 1)
    torch.save({"history": [], "weights": Evil(tmp_path / "marker")}, tmp_path / "evil")
    content = (tmp_path / "evil").read_bytes()
    name = f"epoch-000002-{hashlib.sha256(content).hexdigest()[:16]}.pt"
    (tmp_path / "run" / name).write_bytes(content)
    with pytest.raises(pickle.UnpicklingError, match=rf"{tmp_path}/run/{name} holds more than tensors and plain values") as error:
        CheckpointFolder(str(tmp_path), "run").latest()
    assert "\n" not in str(error.value)
    assert not (tmp_path / "marker").exists()


WRITERS = """
import os, signal, sys, torch
from ablations.engine.checkpoints import CheckpointFolder

while sys.stdin.readline() == "start\\n":
    child = os.fork()
    if not child:
        folder = CheckpointFolder(sys.argv[1], "run")
        restored = folder.latest()
        epoch = len(restored["history"]) if restored else 0
        while True:
            epoch += 1
            folder.save({"weights": torch.full((250_000,), float(epoch)), "history": [{}] * epoch}, epoch)
            os.write(1, b"%d\\n" % epoch)  # at once: killed within print, an unbuffered one leaves half a line
    sys.stdin.readline()
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    print("killed", flush=True)
"""


def test_a_writer_killed_at_any_moment_loses_nothing_that_was_saved(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", WRITERS, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    ) as writers:
        assert writers.stdin
        assert writers.stdout
        last = 0
        for _ in range(20):
            writers.stdin.write("start\n")
            told = [writers.stdout.readline()]
            assert told == [f"{last + 1}\n"]
            time.sleep(random.uniform(0, 0.03))
            writers.stdin.write("kill\n")
            while told[-1] != "killed\n":
                told.append(writers.stdout.readline())
                assert told[-1], "what starts the writers has died"
            found = epoch_of(CheckpointFolder(str(tmp_path), "run"))
            assert found is not None
            assert found - int(told[-2]) in (0, 1)  # it may have died before it could tell
            last = found
