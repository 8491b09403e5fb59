"""Tests of groups of workers on Ray: they train one run after another, and neither an error nor a crash reaches the next run."""

import hashlib
import os
import re
import signal
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from ablations.engine.scheduling import tune_runner
from ablations.engine.scheduling.capacity import HEAD_RESOURCE, RunResources
from ablations.engine.trial import worker_group
from ablations.engine.trial.checkpoints import CheckpointFolder
from ablations.engine.trial.job import Job
from ablations.engine.trial.worker_group import WorkerGroup
from tests.helpers.ray_jobs import RecordingListener, epochs_saved, make_job, run_jobs, wait_until

LEADER = "ray::RunTrainable"
WORKER = "ray::GroupWorker"


def test_a_group_that_started_slowly_has_the_whole_timeout_for_its_first_step(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    now, placed, records = 0.0, False, dict[str, dict[str, Any]]()
    monkeypatch.setattr("ablations.engine.trial.liveness.time.monotonic", lambda: now)
    monkeypatch.setattr("ablations.engine.trial.process_failures.read_record", lambda name: records.get(name, {}))
    group = WorkerGroup()
    group.names = ["worker"]
    monkeypatch.setattr(group, "is_placed", lambda: placed)
    stalls = worker_group._StallDetector(make_job(tmp_path, "group", world_size=2, hang_timeout=60), group)
    verdicts = {}
    for now in range(6, 3000, 6):
        if now == 2400:  # the node that it lacked has come
            placed = True
        if now == 2502:
            records["worker"] = {"node": "here"}
        verdicts[now] = stalls.failure()
    hung = [second for second, verdict in verdicts.items() if verdict]
    assert hung[0] == 2502 + 60 + worker_group.GRACE_SECONDS + 3, "the first look after that"
    assert str(verdicts[hung[0]]).startswith("its workers made no step for ")


def test_the_resources_of_a_group_are_reserved_with_those_of_its_leader() -> None:
    place = tune_runner._placement(RunResources(workers=2, cpus_per_worker=3, gpus_per_worker=0.5, placement="spread"))
    assert place.bundles == [{HEAD_RESOURCE: tune_runner.LEADER_SHARE}, *[{"CPU": 3, "GPU": 0.5}] * 2]
    assert place.strategy == "SPREAD"


# On a Ray of two CPUs


def processes(title: str) -> list[psutil.Process]:
    """Return the processes of this program's Ray with this title."""
    found = []
    for candidate in psutil.Process().children(recursive=True):
        try:
            if " ".join(candidate.cmdline()).startswith(title):
                found.append(candidate)
        except psutil.Error:  # gone, or a zombie
            continue
    return found


class Warm(RecordingListener):
    """A listener that also writes down which processes trained a run."""

    def __init__(self) -> None:
        super().__init__(lambda _: None)
        self.workers: dict[str, set[int]] = {}

    def reported(self, fingerprint: str, report: Mapping[str, Any]) -> None:
        super().reported(fingerprint, report)
        self.workers[fingerprint] = {worker.pid for worker in processes(WORKER)}


def digest(job: Job) -> str:
    """Return a digest of the last weights of a run."""
    saved = CheckpointFolder(job.storage, job.folder).latest()
    assert saved
    return hashlib.sha256(b"".join(value.numpy().tobytes() for value in saved["model"].values())).hexdigest()


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_a_group_trains_one_run_after_another_as_a_new_one_would_whatever_becomes_of_some(tmp_path: Path) -> None:
    alike = [make_job(tmp_path, name, world_size=2, optim__epochs=3) for name in ("first", "second", "third")]
    diverged = make_job(tmp_path, "diverged", world_size=2, seed=7, optim__lr=1e30)
    other_data = replace(make_job(tmp_path, "other data", world_size=2), data_version="other")
    # Its first worker fails while the second waits for it in a collective operation.
    nowhere = replace(make_job(tmp_path, "nowhere", world_size=2), storage=str(tmp_path / "gone"))
    heard = Warm()
    run_jobs(tmp_path, [alike[0], diverged, other_data, alike[1], nowhere, alike[2]], heard=heard)
    outcomes = {name: outcome for name, (outcome, _) in heard.ended.items()}
    assert outcomes == {
        **dict.fromkeys(("first", "second", "third"), "completed"),
        "diverged": "diverged",
        **dict.fromkeys(("other data", "nowhere"), "failed"),
    }
    assert "no checkpoint can be saved" in heard.ended["nowhere"][1]
    assert not (tmp_path / "gone").exists()
    assert not heard.deaths
    assert not heard.restarts
    assert len(set(heard.pids.values())) == 1
    assert heard.workers["first"] == heard.workers["diverged"] == heard.workers["other data"] == heard.workers["second"]
    assert not heard.workers["second"] & heard.workers["third"]
    assert len({digest(job) for job in alike}) == 1


class Interrupted(RecordingListener):
    """A listener to a run of two workers whose processes are killed or stopped one after another, each once the run has gone on."""

    def __init__(self, folder: Path) -> None:
        super().__init__(lambda _: None)
        self.folder = folder

    def goes_on(self) -> None:
        reached = epochs_saved(self.folder, "group")
        wait_until(lambda: epochs_saved(self.folder, "group") > reached + 2)

    def reasons(self) -> list[str]:
        """Return why the run was taken up again, each time."""
        return [*self.restarts, *(reason for reason, _ in self.deaths.get("group", []))]

    def after(self, disturb: Callable[[], object]) -> str:
        """Disturb the group and wait until it goes on; return the reason that was given."""
        self.goes_on()
        before = self.reasons()
        disturb()
        wait_until(lambda: len(self.reasons()) > len(before))
        return next(
            reason for reason in self.reasons() if reason not in before or self.reasons().count(reason) > before.count(reason)
        )


def stop_all() -> None:
    for worker in processes(WORKER):
        worker.suspend()


DISTURBANCES: dict[str, Callable[[], object]] = {
    "worker killed": lambda: processes(WORKER)[0].kill(),
    "worker stopped": lambda: processes(WORKER)[1].suspend(),
    "workers stopped": stop_all,
    "leader killed": lambda: processes(LEADER)[0].kill(),
    "leader stopped": lambda: processes(LEADER)[0].suspend(),
}
"""Disturbances of a group, in this order."""


@pytest.fixture(scope="module")
def reasons(cluster: str, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The reason that a run of two workers was given after each disturbance that one of the selected tests is about."""
    folder = tmp_path_factory.mktemp("group")
    heard = Interrupted(folder)
    users = [item for item in request.session.items if isinstance(item, pytest.Function) and "reasons" in item.fixturenames]
    selected = {item.callspec.params["what"] for item in users}
    told: dict[str, str] = {}

    def disturb(_: RecordingListener) -> None:
        try:
            for what, act in DISTURBANCES.items():
                if what in selected:
                    told[what] = heard.after(act)
            heard.goes_on()
        finally:
            os.kill(os.getpid(), signal.SIGINT)  # the run would train to its end

    # A machine that is too busy for steps of 12 s would seem to hang.
    hang_timeout = 12 if any("stopped" in str(what) for what in selected) else 600
    job = make_job(folder, "group", max_failures=9, hang_timeout=hang_timeout, world_size=2, optim__epochs=5000)
    run_jobs(folder, [job], disturb, heard=heard)
    return told


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ("worker killed", "its process was killed"),
        pytest.param("worker stopped", "made no step for 12 s", marks=pytest.mark.nightly),
        pytest.param("workers stopped", r"its workers made no step for \d+ s", marks=pytest.mark.nightly),
        pytest.param("leader killed", "its process was killed", marks=pytest.mark.nightly),
        pytest.param("leader stopped", "its process stood still for ", marks=pytest.mark.nightly),
    ],
)
def test_a_group_recovers_from_the_kill_or_hang_of_any_of_its_processes(reasons: Mapping[str, str], what: str, reason: str) -> None:
    assert re.match(reason, reasons[what])


@pytest.mark.slow
@pytest.mark.nightly
@pytest.mark.usefixtures("cluster")
def test_a_worker_that_is_killed_between_two_runs_costs_neither_of_them_a_retry(tmp_path: Path) -> None:
    class Killing(RecordingListener):
        def reported(self, fingerprint: str, report: Mapping[str, Any]) -> None:
            super().reported(fingerprint, report)
            if "first" in self.ended and fingerprint == "first":
                worker = processes(WORKER)[0]
                worker.kill()
                worker.wait()

    heard = Killing(lambda _: None)
    run_jobs(tmp_path, [make_job(tmp_path, name, world_size=2, max_failures=0) for name in ("first", "second")], heard=heard)
    assert heard.ended == {"first": ("completed", ""), "second": ("completed", "")}
    assert not heard.restarts
