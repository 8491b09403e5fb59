"""Tests of checkpoints: writes are atomic, damage is detected, and a failed save leaves earlier checkpoints untouched."""

import hashlib
import os
import pickle
import random
import re
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from pyarrow import fs

from ablations.engine.environment.storage import make_storage
from ablations.engine.trial.checkpoints import CheckpointFolder
from ablations.engine.trial.job import Job
from ablations.engine.trial.worker import train_epochs
from resnet_core import RunSpec, build_model, fit, override, preset
from resnet_core.overrides import from_flat
from resnet_core.training.loop import init_state
from tests.helpers.checkpoints import epoch_of, small_disk, state
from tests.helpers.project import PROJECT
from tests.helpers.ray_jobs import make_job
from tests.helpers.training_runs import paper_network


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
def test_a_damaged_checkpoint_is_ignored_with_a_warning(tmp_path: Path, how: str, caplog: pytest.LogCaptureFixture) -> None:
    folder = saved(tmp_path, 1, 2)
    newest = max(tmp_path.glob("run/*.pt"))
    damage(newest, how)
    assert epoch_of(folder) == 1
    assert newest.name in caplog.text


def test_damaged_checkpoints_are_removed_at_the_next_save(tmp_path: Path) -> None:
    saved(tmp_path, 5, 6)
    for file in tmp_path.glob("run/*.pt"):
        damage(file, "altered")
    folder = CheckpointFolder(str(tmp_path), "run")
    assert epoch_of(folder) is None
    folder.save(state(1), 1)
    assert files(tmp_path) == ["epoch-000001"]
    assert epoch_of(folder) == 1


def test_an_unfinished_file_is_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = CheckpointFolder(str(tmp_path), "run")
    folder.save(state(1), 1)
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError("the machine dies here")))
    with pytest.raises(OSError, match="dies"):
        folder.save(state(2), 2)
    assert epoch_of(folder) == 1


@pytest.mark.parametrize("how", ["truncated", "altered", "empty"])
def test_a_file_that_storage_corrupts_is_detected_before_an_older_one_is_removed(
    tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = saved(tmp_path, 1, 2)

    def replace_and_spoil(self: Path, target: Path) -> None:
        self.rename(target)
        damage(target, how)

    with monkeypatch.context() as spoilt:
        spoilt.setattr(Path, "replace", replace_and_spoil)
        with pytest.raises(OSError, match=rf"epoch 3 not saved in {tmp_path}/run: the file read back differs"):
            folder.save(state(3), 3)
    assert files(tmp_path) == ["epoch-000001", "epoch-000002"]
    folder.save(state(3), 3)
    assert epoch_of(folder) == 3


@contextmanager
def small_files(path: Path, size: str) -> Iterator[None]:
    """Limit the size of files of this process; this takes no rights."""
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
def test_storage_that_is_gone_is_not_recreated(tmp_path: Path, resumed: bool) -> None:
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


def test_storage_that_is_gone_before_a_run_starts_is_not_recreated(tmp_path: Path) -> None:
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


def test_partial_files_of_a_crashed_writer_are_removed_and_those_of_a_running_writer_kept(tmp_path: Path) -> None:
    saved(tmp_path, 1)
    (tmp_path / "run/epoch-000002-0123456789abcdef.dead.partial").write_bytes(b"half of")
    folder = CheckpointFolder(str(tmp_path), "run")
    assert epoch_of(folder) == 1
    (tmp_path / "run/epoch-000003-0123456789abcdef.live.partial").write_bytes(b"more and more of")
    folder.save(state(2), 2)
    assert files(tmp_path) == ["epoch-000001", "epoch-000002", "epoch-000003-0123456789abcdef.live.partial"]


class Watched(fs.LocalFileSystem):
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


@pytest.mark.slow
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


PLAIN_PYTORCH = (PROJECT / "docs" / "plain-pytorch.md").read_text()


def trained(storage: Path, spec: RunSpec) -> Path:
    """The newest checkpoint file of a training."""
    storage.mkdir(exist_ok=True)
    folder = CheckpointFolder(str(storage), "run")
    for result in fit(spec):
        folder.save(result.checkpoint(), result.epoch)
    return max(storage.glob("run/*.pt"))


@pytest.mark.slow
def test_two_lines_of_the_documentation_open_a_checkpoint_with_torch_alone(tmp_path: Path) -> None:
    spec = override(preset("smoke"), {"epochs": 2})
    file, net = trained(tmp_path, spec), build_model(paper_network(spec))
    lines = re.search(r"^saved = torch\.load\(file, .*\nnet\.load_state_dict\(.*\n", PLAIN_PYTORCH, re.MULTILINE)
    assert lines
    exec(lines[0], {"torch": torch, "file": str(file), "net": net})
    *_, last = fit(spec)
    learned = last.state.net.state_dict()
    assert all(torch.equal(tensor, learned[name]) for name, tensor in net.state_dict().items())


@pytest.mark.parametrize("channels_last", [False, True])
def test_a_state_comes_back_whole_each_tensor_with_its_strides_in_memory_of_its_own(tmp_path: Path, channels_last: bool) -> None:
    trained_state = init_state(override(preset("smoke"), {"channels_last": channels_last}), torch.device("cpu"))
    for parameter in trained_state.net.parameters():
        parameter.grad = torch.randn_like(parameter)
    trained_state.optimizer.step()
    wanted = {**trained_state.save(), "probes": [{"epoch": 1, "layer": "conv1", "std": 0.5}], "history": [{"lr": 0.1}, {}]}
    folder = saved(tmp_path)
    folder.save(wanted, 1)
    found = folder.latest()
    assert found
    tensors = {**wanted.pop("model"), **_momentum(wanted)}
    read = {**found.pop("model"), **_momentum(found)}
    assert found == wanted  # plain values
    assert tensors.keys() == read.keys()
    assert len(_momentum({"optimizer": trained_state.optimizer.state_dict()})) > 10
    for name, tensor in tensors.items():
        assert torch.equal(tensor, read[name])
        assert tensor.stride() == read[name].stride()
        assert read[name].untyped_storage().nbytes() == read[name].nbytes
    assert any(not tensor.is_contiguous() for tensor in read.values()) is channels_last


def _momentum(state: dict[str, Any]) -> dict[Any, torch.Tensor]:
    """Takes the momentum of each parameter out of a state."""
    optimizer = state["optimizer"]
    state["optimizer"] = {name: value for name, value in optimizer.items() if name != "state"}
    return {number: each["momentum_buffer"] for number, each in optimizer.get("state", {}).items()}


GROUP = 54_321


@contextmanager
def another_user(user: int, umask: int = 0o022) -> Iterator[None]:
    """Be another user of this machine, who is in `GROUP`."""
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    groups, before = os.getgroups(), os.umask(umask)
    os.setgroups([GROUP])
    os.setegid(user)
    os.seteuid(user)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(groups)
        os.umask(before)


@pytest.fixture
def reachable(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that other users reach, unlike pytest's own, with a home that they can write."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        home = folder / "home"
        home.mkdir()
        home.chmod(0o777)
        monkeypatch.setenv("RESNET_ABLATIONS_HOME", str(home))
        yield folder


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_in_a_folder_with_the_setgid_bit_users_of_a_group_go_on_from_each_others_checkpoints(reachable: Path, umask: int) -> None:
    shared = reachable / "shared"
    shared.mkdir()
    os.chown(shared, -1, GROUP if os.geteuid() == 0 else -1)
    shared.chmod(0o2770)
    storage = shared / "made" / "checkpoints"
    for epoch, user in enumerate((1001, 1002, 1001), 1):
        with another_user(user, umask):
            make_storage(str(storage))
            folder = CheckpointFolder(str(storage), "run")
            assert (epoch_of(folder) or 0) == epoch - 1
            folder.check_writable()
            folder.save(state(epoch), epoch)
    assert files(storage) == ["epoch-000002", "epoch-000003"]
    assert {path.stat().st_mode & 0o2770 for path in (storage, storage / "run")} == {0o2770}
    assert {path.stat().st_mode & 0o070 for path in storage.glob("run/*")} == {0o060}


def test_elsewhere_what_is_made_has_the_rights_that_the_umask_leaves(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store").chmod(0o770)
    before = os.umask(0o077)
    try:
        saved(tmp_path / "store", 1)
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.glob("store/*")} == {0o700}
    assert {path.stat().st_mode & 0o777 for path in tmp_path.glob("store/run/*")} == {0o600}


def begun(reachable: Path, epochs: int, mode: int) -> Job:
    """A run of which this user trained an epoch, in a folder that others may use as `mode` says."""
    job = make_job(reachable, "run", optim__epochs=epochs)
    CheckpointFolder(job.storage, "run").save(next(iter(fit(from_flat(job.spec)))).checkpoint(), 1)
    Path(job.storage, "run").chmod(mode)
    return job


@pytest.mark.parametrize(
    ("mode", "reason", "told"),
    [
        (0o755, r"^no checkpoint can be saved in {folder}: \[Errno 13\] Permission denied", [1]),
        (0o700, r"^checkpoints in {folder} cannot be read: .*Permission denied", []),
    ],
)
def test_a_user_without_write_access_to_a_run_gets_an_error_before_an_epoch_is_trained(
    reachable: Path, mode: int, reason: str, told: list[int]
) -> None:
    job, reports, signs = begun(reachable, 3, mode), list[dict[str, Any]](), list[None]()
    with another_user(1001), pytest.raises(OSError, match=reason.format(folder=f"{job.storage}/run")) as error:
        reports.extend(train_epochs(job, "cpu", alive=lambda: signs.append(None)))
    assert "\n" not in str(error.value)
    assert [report["epoch"] for report in reports] == told
    assert len(signs) <= 3  # data, checkpoint, and the epoch that is told again, but no step


def test_a_run_in_read_only_storage_does_not_start(reachable: Path) -> None:
    job, signs = make_job(reachable, "run"), list[None]()
    with (
        another_user(1001),
        pytest.raises(OSError, match=rf"^no checkpoint can be saved in {job.storage}/run: .*Permission denied"),
    ):
        next(train_epochs(job, "cpu", alive=lambda: signs.append(None)))
    assert len(signs) <= 2


def test_a_user_with_read_access_only_reports_the_epochs_of_a_completed_run(reachable: Path) -> None:
    job = begun(reachable, 1, 0o755)
    with another_user(1001):
        reports = list(train_epochs(job, "cpu"))
    assert [report["epoch"] for report in reports] == [1]


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
from ablations.engine.trial.checkpoints import CheckpointFolder

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


@pytest.mark.slow
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
