"""`ablations clean` removes what nothing needs, and never what a running study holds."""

import io
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from ablations.engine.cli import commands
from ablations.engine.cli.studies import clean_command, disk_usage
from ablations.engine.cli.studies.disk_usage import format_size
from ablations.engine.environment import paths
from tests.helpers.object_store import object_store
from tests.helpers.stored_study import RUNS
from tests.helpers.submission import Submitted, meanwhile

HOUR = 3600.0
LONG = ("--levels", "shortcut=A", "--set", "optim.epochs=20", "optim.lr=0.01")


class Storage:
    """A storage with a checkpoint of each run of a copied database."""

    def __init__(self, folder: Path, stored_uri: str) -> None:
        shutil.copy(stored_uri.removeprefix("sqlite:///"), folder / "mlflow.db")
        self.uri, self.path = f"sqlite:///{folder}/mlflow.db", folder / "checkpoints"
        self.client = MlflowClient(self.uri)
        experiments = [each.experiment_id for each in self.client.search_experiments()]
        self.runs = [run for run in self.client.search_runs(experiments) if "fingerprint" in run.data.tags]
        for run in self.runs:
            self.add(run.data.tags["fingerprint"])

    def add(self, name: str, *, age: float = 0.0) -> Path:
        folder = self.path / name
        folder.mkdir(parents=True)
        file = folder / "epoch-000002-0123456789abcdef.pt"
        file.write_bytes(bytes(20_000))
        os.utime(file, (time.time() - age, time.time() - age))
        return folder

    def clean(self, *words: str) -> int:
        return commands.main(["clean", *words, "--tracking-uri", self.uri, "--storage", str(self.path)])

    def document(self, capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
        capsys.readouterr()
        assert self.clean(*words, "--json") == 0
        found: dict[str, Any] = json.loads(capsys.readouterr().out)
        return found

    def left(self) -> set[str]:
        return {folder.name for folder in self.path.iterdir()}


@pytest.fixture
def storage(tmp_path: Path, stored_uri: str, monkeypatch: pytest.MonkeyPatch) -> Storage:
    monkeypatch.setenv("RESNET_ABLATIONS_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path)[:40])
    return Storage(tmp_path, stored_uri)


@pytest.fixture(autouse=True)
def no_ray_folders(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other tests' folders of Ray are none of these tests' business."""
    from ablations.engine.cli.studies import disk_usage

    monkeypatch.setattr(disk_usage, "removable_state", list)


def test_a_dry_run_says_what_would_be_freed_and_frees_nothing(storage: Storage, capsys: pytest.CaptureFixture[str]) -> None:
    before = storage.left()
    found = storage.document(capsys, "--dry-run")
    assert len(found["checkpoints"]) == len(storage.runs) == RUNS
    assert {each["state"] for each in found["checkpoints"]} == {"finished"}
    assert found["bytes"] >= RUNS * 20_000
    assert found["freed"] == 0
    assert storage.left() == before
    assert storage.clean("--dry-run") == 0
    out = capsys.readouterr().out
    assert f"{RUNS} checkpoint folders: runs with a result, whose networks can then no longer be loaded (stored)" in out
    assert f"{format_size(found['bytes'])} in all." in out


def test_it_asks_and_only_yes_removes(
    storage: Storage, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for answer in ("n\n", "\n", "", "what?\n"):
        monkeypatch.setattr(sys, "stdin", io.StringIO(answer))
        assert storage.clean() == 0
        assert len(storage.left()) == RUNS
    assert "--yes removes without asking" in capsys.readouterr().out
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))
    assert storage.clean() == 0
    assert storage.left() == set()
    assert " freed." in capsys.readouterr().out


def test_a_folder_that_cannot_be_removed_is_not_counted_as_freed(storage: Storage, capsys: pytest.CaptureFixture[str]) -> None:
    name = storage.runs[0].data.tags["fingerprint"]
    (storage.path / name).rename(storage.path / "elsewhere")
    (storage.path / name).symlink_to("elsewhere")  # which also root cannot remove as a folder
    assert storage.clean("--yes", "--json") == 1
    out, err = capsys.readouterr()
    found = json.loads(out)
    (size,) = [each["bytes"] for each in found["checkpoints"] if each["folder"] == name]
    assert found["freed"] == found["bytes"] - size
    assert [each["folder"] for each in found["failed"]] == [name]
    assert f"{storage.path}/{name} cannot be removed: " in err
    assert storage.left() == {name, "elsewhere"}


def test_unfinished_runs_keep_their_checkpoints_unless_they_are_old_enough(
    storage: Storage, capsys: pytest.CaptureFixture[str]
) -> None:
    first = storage.runs[0]
    name = first.data.tags["fingerprint"]
    storage.client.update_run(first.info.run_id, status="FAILED")
    assert name not in {each["folder"] for each in storage.document(capsys, "--dry-run")["checkpoints"]}
    assert name not in {each["folder"] for each in storage.document(capsys, "--dry-run", "--older-than", "1h")["checkpoints"]}
    shutil.rmtree(storage.path / name)
    storage.add(name, age=2 * HOUR)
    found = storage.document(capsys, "--dry-run", "--older-than", "1h")
    assert [each["state"] for each in found["checkpoints"] if each["folder"] == name] == ["unfinished"]


def test_orphans_are_removed_a_day_after_their_last_change_and_other_folders_never(
    storage: Storage, capsys: pytest.CaptureFixture[str]
) -> None:
    new, old, replay = storage.add("a" * 20), storage.add("b" * 20, age=25 * HOUR), storage.add(f"replay-{'c' * 32}", age=25 * HOUR)
    mine = storage.add("my-own-folder", age=999 * HOUR)
    found = storage.document(capsys, "--yes", "--older-than", "1h")
    orphans = {each["folder"] for each in found["checkpoints"] if each["state"] == "orphaned"}
    assert orphans == {old.name, replay.name}
    assert storage.left() == {new.name, mine.name}
    assert found["freed"] == found["bytes"] > 0


@pytest.mark.parametrize(
    ("days", "older", "shared", "removable"),
    [(2, None, False, True), (2, None, True, False), (2, 1, True, True), (2, 3, True, False), (0.5, 0, True, False)],
)
def test_an_orphan_of_an_object_store_may_be_a_run_of_another_mlflow(
    days: float, older: float | None, shared: bool, removable: bool
) -> None:
    texts = dict.fromkeys(("study", "run_id", "parent"), "")
    usage = disk_usage.CheckpointUsage(
        name="a" * 20,
        fingerprint="a" * 20,
        bytes=1,
        modified=time.time() - days * 24 * HOUR,
        state="orphaned",
        searches=(),
        **texts,
    )
    assert clean_command._is_removable(usage, older and older * 24 * HOUR, shared=shared) is removable


def test_a_run_of_the_homes_own_database_is_no_orphan_of_another_mlflow(
    storage: Storage, tmp_path: Path, empty: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths.home().mkdir()
    shutil.copy(storage.uri.removeprefix("sqlite:///"), paths.home() / "mlflow.db")
    for folder in storage.left():
        os.utime(storage.path / folder / "epoch-000002-0123456789abcdef.pt", (0, 0))
    shutil.copy(empty, tmp_path / "mlflow.db")
    words = ("--dry-run", "--older-than", "1h")
    assert storage.document(capsys, *words)["checkpoints"] == []
    (paths.home() / "mlflow.db").unlink()
    assert len(storage.document(capsys, *words)["checkpoints"]) == RUNS


def test_with_names_only_these_studies_are_cleaned(storage: Storage, capsys: pytest.CaptureFixture[str]) -> None:
    storage.client.set_tag(storage.runs[0].info.run_id, "study", "another")
    orphan = storage.add("b" * 20, age=25 * HOUR)
    found = storage.document(capsys, "stored", "--yes")
    assert len(found["checkpoints"]) == RUNS - 1
    assert storage.left() == {orphan.name, storage.runs[0].data.tags["fingerprint"]}


def test_a_study_held_by_a_living_process_keeps_everything_and_one_whose_process_ended_nothing(
    storage: Storage, capsys: pytest.CaptureFixture[str]
) -> None:
    import psutil

    from ablations.engine.environment.provenance import machine_id
    from ablations.engine.tracking.holder import HEARTBEAT_TAG, HOLDER_TAG, heartbeat

    (study,) = storage.client.search_runs([storage.runs[0].info.experiment_id], "tags.preset LIKE '%'")
    here = {"name": "process", "machine": machine_id(), "pid": os.getpid(), "born": psutil.Process().create_time(), "token": "t"}
    there = here | {"machine": "elsewhere"}
    for holder, held in ((here, True), (here | {"born": 1.0}, False), (there, True), (here | {"ended": True}, False)):
        storage.client.set_tag(study.info.run_id, HOLDER_TAG, json.dumps(holder))
        storage.client.set_tag(study.info.run_id, HEARTBEAT_TAG, heartbeat("t", 1))
        found = storage.document(capsys, "--dry-run")
        assert (len(found["held"]), len(found["checkpoints"])) == ((RUNS, 0) if held else (0, RUNS)), holder
    storage.client.set_tag(study.info.run_id, HOLDER_TAG, json.dumps(there))
    storage.client.set_tag(study.info.run_id, HEARTBEAT_TAG, f"t-1-{int(time.time() - 25 * HOUR)}")
    assert len(storage.document(capsys, "--dry-run")["held"]) == 0


@pytest.mark.slow
@pytest.mark.usefixtures("cluster", "few_figures")
def test_cleaning_beside_a_real_study_takes_nothing_from_it(home: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    finished = Submitted(home, "--levels", "shortcut=A")
    other_home = tmp_path_factory.mktemp("another-home")
    found: list[dict[str, Any]] = []

    def clean(client: MlflowClient, runs: Sequence[Any]) -> bool:
        """Clean as hard as possible while a run trains: from its home, and from one that shares only MLflow and the storage."""
        if not any(run.info.status == "RUNNING" and "test/error" in run.data.metrics for run in runs):
            return False
        for where in (str(paths.home()), str(other_home)):
            words = ["clean", "--yes", "--older-than", "0s", "--json", "--storage", f"{home}/checkpoints"]
            command = [sys.executable, "-m", "ablations", *words, "--tracking-uri", f"sqlite:///{home}/mlflow.db"]
            environment = {**os.environ, "RESNET_ABLATIONS_HOME": where, "RAY_TMPDIR": "/var/tmp"}
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr
            found.append(json.loads(done.stdout))
        return True

    with meanwhile(home, clean, slowly=3):
        running = Submitted(home, *LONG)
    assert len(found) == 2
    fingerprint = running.plan.runs[0].fingerprint
    for document in found:
        assert fingerprint in {each["folder"] for each in document["held"]}
        assert fingerprint not in {each["folder"] for each in document["checkpoints"]}
    assert [each["folder"] for each in found[0]["checkpoints"]] == [finished.plan.runs[0].fingerprint]
    assert (running.code, running.outcomes(), running.entry().tags["attempts"]) == (0, ["completed"], "1")
    assert running.steps() == list(range(1, 21))


@pytest.mark.slow
@pytest.mark.parametrize("command", ["du", "clean"])
def test_a_bucket_that_does_not_exist_and_a_store_that_hangs_are_errors(
    command: str, stored_uri: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    words = [command, "--tracking-uri", stored_uri, *(["--yes"] if command == "clean" else [])]
    with object_store() as line:
        address = line.store("checkpoints").replace("s3://bucket/", "s3://misspelt/")
        assert commands.main([*words, "--storage", address]) == 2
    assert "--storage=s3://misspelt/checkpoints: cannot be used (the bucket does not exist)" in capsys.readouterr().err
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"s3://bucket/x?scheme=http&endpoint_override=127.0.0.1:{silent.getsockname()[1]}"
        assert commands.main([*words, "--storage", address]) == 2
    assert "--storage=s3://bucket/x: cannot be used (no answer within 12 s)" in capsys.readouterr().err
