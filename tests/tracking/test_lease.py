"""Concurrent submissions: one holds a study or a run; others are rejected, wait, or take over."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from mlflow import MlflowClient

from ablations.engine.environment import provenance
from ablations.engine.tracking import lease
from ablations.engine.tracking.connection import connect
from ablations.engine.tracking.holder import HEARTBEAT_TAG, HOLDER_TAG
from ablations.engine.tracking.lease import StudyLease
from resnet_core import ConfigError
from tests.helpers.project import PROJECT
from tests.helpers.slow_epochs import slow_study

pytestmark = pytest.mark.slow

EPOCHS = 60


class Command:
    """A study submitted in its own process."""

    def __init__(self, cluster: str, home: Path, program: str | Path, *levels: str) -> None:
        command = [sys.executable, str(program), "--preset", "smoke", "--levels", *levels]
        environment = {**os.environ, "RESNET_ABLATIONS_HOME": str(home), "RAY_ADDRESS": cluster}
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, cwd=PROJECT, env=environment, stdout=pipe, stderr=pipe, text=True)

    def end(self) -> tuple[int, str, str]:
        """Wait for the end; return exit code, output and errors."""
        out, error = self.process.communicate(timeout=300)
        return self.process.returncode, out, error

    def __enter__(self) -> "Command":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.end()


def children(home: Path) -> list[dict[str, str]]:
    """Return the tags of all runs that have a fingerprint."""
    client = MlflowClient(f"sqlite:///{home}/mlflow.db")
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    return [run.data.tags for run in client.search_runs(experiments, "tags.fingerprint != ''")]


class PassedOn:
    """A study submitted again while it runs. Its first holder is killed, the second interrupted, the third completes."""

    asked = ("shortcut=A", "depth=8", "--seeds", "1", "--set", f"optim.epochs={EPOCHS}")

    def __init__(self, cluster: str, home: Path) -> None:
        self.home, self.client = home, MlflowClient(f"sqlite:///{home}/mlflow.db")
        slow = slow_study(home, "shortcuts", seconds=1)
        with Command(cluster, home, slow, *self.asked) as first:
            self.wait_for(first, lambda: self.newest() > 0)
            self.refused = Command(cluster, home, "ablations/shortcuts.py", *self.asked).end()
            self.first, self.still_ran = first.process.pid, first.process.poll() is None
        with Command(cluster, home, slow, *self.asked) as second:
            self.wait_for(second, lambda: children(home)[0]["attempts"] == "2")
            reached = self.newest()
            self.wait_for(second, lambda: self.newest() > reached)
            second.process.send_signal(signal.SIGINT)
            self.interrupted = second.end()
        self.statuses = sorted(run.info.status for run in self.client.search_runs(["1"]))
        self.ended = Command(cluster, home, "ablations/shortcuts.py", *self.asked).end()

    def newest(self) -> int:
        """Return the epoch of the latest checkpoint."""
        return max((int(path.name[6:12]) for path in self.home.glob("checkpoints/*/epoch-*.pt")), default=0)

    def wait_for(self, command: Command, true: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 300
        while not true():
            assert time.monotonic() < deadline
            assert command.process.poll() is None, command.end()
            time.sleep(0.05)


@pytest.fixture(scope="module")
def passed_on(cluster: str, empty: Path, tmp_path_factory: pytest.TempPathFactory) -> PassedOn:
    home = tmp_path_factory.mktemp("passed-on")
    shutil.copy(empty, home / "mlflow.db")
    return PassedOn(cluster, home)


def test_a_study_that_runs_is_refused(passed_on: PassedOn) -> None:
    who = f"process {passed_on.first} on {socket.gethostname()}"
    error = f"error: study=shortcuts: is running already: {who} holds it; wait until it ends, or stop it\n"
    assert passed_on.refused == (5, "", error)
    assert passed_on.still_ran


def test_an_interrupted_study_says_so(passed_on: PassedOn) -> None:
    code, out, error = passed_on.interrupted
    assert code == 1
    assert "stopped, the study was interrupted" in out
    assert "Traceback" not in out + error
    assert passed_on.statuses == ["KILLED", "KILLED"]  # the study's own run, and the one that it trained


def test_a_study_whose_holder_was_killed_or_interrupted_is_taken_over(passed_on: PassedOn) -> None:
    code, out, error = passed_on.ended
    assert code == 0, out + error
    (tags,) = children(passed_on.home)
    assert (tags["outcome"], tags["attempts"]) == ("completed", "3")
    (run,) = passed_on.client.search_runs(["1"], "tags.fingerprint != ''")
    steps = [metric.step for metric in passed_on.client.get_metric_history(run.info.run_id, "test/error")]
    assert steps == list(range(1, EPOCHS + 1))
    assert not [p for p in psutil.Process().children(recursive=True) if "shortcuts.py" in " ".join(p.cmdline())]


def test_two_studies_at_the_same_time_train_a_run_that_both_want_once(cluster: str, home: Path) -> None:
    common = ("depth=8", "--seeds", "1", "--set", "optim.epochs=30")
    with (
        Command(cluster, home, "ablations/shortcuts.py", "shortcut=none,A", *common) as first,
        Command(cluster, home, "ablations/degradation.py", "shortcut=none,A", *common) as second,
    ):
        ends = {first: first.end(), second: second.end()}
    assert [code for code, *_ in ends.values()] == [0, 0], ends
    (told,) = {study for study, (_, out, _) in ends.items() if "waiting for 2 runs that " in out}
    holder = second if told is first else first
    assert f", process {holder.process.pid} on {socket.gethostname()} trains" in ends[told][1]
    runs = children(home)
    assert sorted(tags["cell"].split()[0] for tags in runs) == ["shortcut=A", "shortcut=none"]
    assert {(tags["outcome"], tags["attempts"]) for tags in runs} == {("completed", "1")}


class Elsewhere:
    """A holder on a machine that shares only MLflow."""

    def __init__(self, client: MlflowClient, machine: str = "elsewhere") -> None:
        self.client, self.run_id = client, client.create_run("0").info.run_id
        self.beat, self.stopped = 0, threading.Event()
        name = {"name": "process 7 on elsewhere", "machine": machine, "pid": os.getpid(), "born": 0.0}
        client.set_tag(self.run_id, HOLDER_TAG, json.dumps(name))
        self.thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self.stopped.wait(0.2):
            self.beat += 1
            self.client.set_tag(self.run_id, HEARTBEAT_TAG, f"7-{self.beat}")

    def __enter__(self) -> "Elsewhere":
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopped.set()
        self.thread.join()


@pytest.fixture(scope="module")
def client(empty: Path, tmp_path_factory: pytest.TempPathFactory) -> MlflowClient:
    return connect(f"sqlite:///{shutil.copy(empty, tmp_path_factory.mktemp('mlflow'))}")


def get_holder(client: MlflowClient, run_id: str) -> str:
    holder = lease.get_holder(client, run_id)
    return "nobody" if not holder or holder.get("ended") else str(holder["name"])


@pytest.mark.parametrize(
    "differs", ["all", *(pytest.param(part, marks=pytest.mark.nightly) for part in ("name", "boot", "process numbers"))]
)
def test_a_holder_on_another_machine_that_beats_is_not_succeeded(
    client: MlflowClient, monkeypatch: pytest.MonkeyPatch, differs: str
) -> None:
    monkeypatch.setattr(lease, "LEASE_TIMEOUT_SECONDS", 10.0)
    machine = provenance.machine_id().split()
    if differs == "all":
        machine = ["elsewhere"]
    else:  # containers of one name, on two machines or on this one
        machine[["name", "boot", "process numbers"].index(differs)] = "another"
    with (
        Elsewhere(client, " ".join(machine)) as elsewhere,
        pytest.raises(ConfigError, match="is running already: process 7 on elsewhere holds it"),
    ):
        StudyLease(client, elsewhere.run_id, "small")
    assert get_holder(client, elsewhere.run_id) == "process 7 on elsewhere"


def test_a_holder_on_another_machine_that_stands_still_is_succeeded(client: MlflowClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "LEASE_TIMEOUT_SECONDS", 1.0)
    with Elsewhere(client) as elsewhere:
        time.sleep(0.5)
    began = time.monotonic()
    beat = StudyLease(client, elsewhere.run_id, "small")
    assert 1.0 <= time.monotonic() - began < 10
    assert f"process {os.getpid()} on" in get_holder(client, elsewhere.run_id)
    beat.release()
    assert get_holder(client, elsewhere.run_id) == "nobody"


def test_a_holder_beats_in_less_than_half_the_time_after_which_it_counts_as_dead(
    client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert lease.RENEW_INTERVAL_SECONDS < lease.LEASE_TIMEOUT_SECONDS / 2
    monkeypatch.setattr(lease, "RENEW_INTERVAL_SECONDS", 0.1)
    run_id = client.create_run("0").info.run_id
    beat = StudyLease(client, run_id, "small")
    deadline, seen = time.monotonic() + 20, set[str]()
    while len(seen) < 3:
        assert time.monotonic() < deadline
        seen.add(client.get_run(run_id).data.tags.get(HEARTBEAT_TAG, ""))
        time.sleep(0.02)
    beat.release()


def test_a_holder_beats_while_a_look_of_another_thread_waits_for_an_answer(
    client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "RENEW_INTERVAL_SECONDS", 0.1)
    run_id = client.create_run("0").info.run_id
    beat = StudyLease(client, run_id, "small")
    with beat._lock:  # as `check` has it until MLflow answers
        deadline, seen = time.monotonic() + 10, set[str]()
        while len(seen) < 4:
            assert time.monotonic() < deadline, seen
            seen.add(client.get_run(run_id).data.tags.get(HEARTBEAT_TAG, ""))
            time.sleep(0.02)
    beat.release()


def test_a_holder_on_this_machine_is_looked_up_and_one_that_was_killed_is_succeeded_at_once(client: MlflowClient) -> None:
    run_id = client.create_run("0").info.run_id
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(100)"]) as process:
        born = psutil.Process(process.pid).create_time()
        holder = {"name": "process 7", "machine": provenance.machine_id(), "pid": process.pid, "born": born}
        client.set_tag(run_id, HOLDER_TAG, json.dumps(holder))
        with pytest.raises(ConfigError, match="is running already: process 7 holds it"):
            StudyLease(client, run_id, "small")
        process.kill()
        while psutil.Process(process.pid).status() != psutil.STATUS_ZOMBIE:  # whoever started it may never ask how it ended
            time.sleep(0.01)
        began = time.monotonic()
        StudyLease(client, run_id, "small").release()
        assert time.monotonic() - began < lease.LEASE_TIMEOUT_SECONDS / 2
