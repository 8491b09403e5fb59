"""Tests of liveness: the kill or hang of any process of a run is detected, and the run continues from its checkpoint."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest

from ablations.engine.scheduling import tune_runner
from ablations.engine.scheduling.capacity import RunResources
from ablations.engine.trial import ddp_group
from ablations.engine.trial.liveness import PeerMonitor, StallDetector
from tests.helpers.project import PROJECT
from tests.helpers.ray_jobs import RecordingListener, epochs_saved, make_job, run_jobs, wait_until

TRAINABLE = "ray::ImplicitFunc"
CONTROLLER = "ray::TrainController"
QUEUE = "ray::_QueueActor"
CLEANER = "ray::PlacementGroupCleaner"


# Looking


def test_a_stall_counts_only_time_between_regular_polls(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("ablations.engine.trial.liveness.time.monotonic", lambda: now)
    silence = StallDetector()
    assert not silence.should_poll(2)
    now = 102
    assert silence.should_poll(2)
    assert silence.update({"a": 1, "b": None}) == {"a": 0, "b": 0}
    now = 105
    assert silence.update({"a": 2, "b": None}) == {"a": 0, "b": 3}
    now = 999  # the observer was suspended: whether the others were is not known
    assert silence.should_poll(2)
    assert silence.update({"a": 2, "b": None, "c": None}) == {"a": 4, "b": 7, "c": 0}
    now = 1001
    assert silence.update({"c": 5}) == {"c": 0}


def test_a_process_that_waits_for_its_driver_neither_exits_nor_sends_heartbeats() -> None:
    code = """
import time
from types import SimpleNamespace
from ablations.engine.trial.liveness import ProcessMonitor
from ablations.engine.trial.watchdog import Watchdog
heartbeat = SimpleNamespace(paused=False, step=lambda: None)
with Watchdog(1.0, lambda: print("hung", flush=True)) as watchdog:
    with ProcessMonitor(heartbeat, watchdog).waiting():
        print(heartbeat.paused)
        time.sleep(2.5)
    print(heartbeat.paused, flush=True)
    time.sleep(30)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=False, timeout=180)
    assert (done.returncode, done.stdout) == (1, "True\nFalse\nhung\n")


def test_a_waiting_worker_stays_alive_while_a_peer_makes_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    now, steps, signs = 0.0, {"peer": 7}, list[float]()
    monkeypatch.setattr("ablations.engine.trial.liveness.time.monotonic", lambda: now)
    monkeypatch.setattr("ablations.engine.trial.liveness.process_failures.read_record", lambda name: {"steps": steps[name]})
    peers = PeerMonitor(["peer"], 20, lambda: signs.append(now))
    for now in (1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0):  # it looks every 2 s
        if now == 5:
            steps["peer"] += 1
        peers.check_progress()
    assert signs == [2, 6]


def test_a_group_that_started_slowly_has_the_whole_timeout_for_its_first_step(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    now, records = 0.0, dict[str, dict[str, Any]]()
    monkeypatch.setattr("ablations.engine.trial.liveness.time.monotonic", lambda: now)
    monkeypatch.setattr("ablations.engine.trial.process_failures.read_record", lambda name: records.get(name, {}))
    monkeypatch.setattr(ddp_group, "worker_names", lambda _: ["worker"])
    monkeypatch.setattr(ddp_group, "controller_name", lambda: "controller")
    stalls = ddp_group._GroupStallDetector(make_job(tmp_path, "group", world_size=2))
    verdicts = {}
    for now in range(6, 240, 6):
        if now == 102:
            records |= {"controller": {"trains": True}, "worker": {"node": "here"}}
        records.get("controller", {})["steps"] = now
        verdicts[now] = stalls.failure()
    hung = [second for second, verdict in verdicts.items() if verdict]
    assert hung[0] == 102 + 60 + ddp_group.GRACE_SECONDS + 3, "the first look after that"
    assert str(verdicts[hung[0]]).startswith("its workers made no step for ")


# On a Ray of two CPUs


def process(title: str) -> psutil.Process:
    """Return the process of this program's Ray that has this title, once it is there."""
    found: list[psutil.Process] = []

    def look() -> bool:
        for candidate in psutil.Process().children(recursive=True):
            try:
                if " ".join(candidate.cmdline()).startswith(title):
                    found.append(candidate)
            except psutil.Error:  # gone, or a zombie
                continue
        return bool(found)

    wait_until(look)
    return found[0]


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_a_group_that_ends_delivers_its_last_reports(tmp_path: Path) -> None:
    """A driver that takes its time leaves them in the group's queue when the leader has the outcome."""

    class Slow(RecordingListener):
        def reported(self, fingerprint: str, report: Mapping[str, Any]) -> None:
            time.sleep(0.7)
            super().reported(fingerprint, report)

    heard = Slow(lambda _: None)
    jobs = [make_job(tmp_path, "group", world_size=2, optim__epochs=6)]
    tune_runner.train_runs(jobs, RunResources(workers=2), max_concurrent=None, listener=heard, scratch=tmp_path / "tune")
    assert heard.ended == {"group": ("completed", "")}
    assert heard.epochs == {"group": [1, 2, 3, 4, 5, 6]}


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_a_run_whose_process_hangs_continues_in_another_process(tmp_path: Path) -> None:
    def stop(heard: RecordingListener) -> None:
        wait_until(lambda: epochs_saved(tmp_path, "stopped") >= 3)
        psutil.Process(heard.pids["stopped"]).suspend()

    heard = run_jobs(tmp_path, [make_job(tmp_path, "stopped", hang_timeout=12, max_failures=1, optim__epochs=300)], stop)
    ((reason, outcome),) = heard.deaths["stopped"]
    assert re.fullmatch(r"its process stood still for \d+ s", reason)
    assert outcome is None
    assert heard.ended["stopped"] == ("completed", "")
    assert set(heard.epochs["stopped"]) == set(range(1, 301))


class Interrupted(RecordingListener):
    """A listener to a group whose processes are killed or stopped one after another, each once the run has gone on."""

    def __init__(self, folder: Path) -> None:
        super().__init__(lambda _: None)
        self.folder = folder

    def goes_on(self) -> None:
        reached = epochs_saved(self.folder, "group")
        wait_until(lambda: epochs_saved(self.folder, "group") > reached + 2)

    def taken_up(self) -> int:
        """Return how often the run was taken up again."""
        return len(self.restarts) + len(self.deaths.get("group", []))

    def after(self, disturb: Callable[[], object]) -> str:
        """Disturb the group and wait until it goes on; return the reason that was given."""
        self.goes_on()
        before = len(self.restarts), len(self.deaths.get("group", []))
        disturb()
        wait_until(lambda: self.taken_up() > sum(before))
        deaths = [reason for reason, _ in self.deaths.get("group", [])]
        return [*self.restarts[before[0] :], *deaths[before[1] :]][0]

    def stop_leader(self) -> None:
        process(CLEANER).kill()  # else Ray Train might free what the group had reserved; without a dashboard it does not
        psutil.Process(self.pids["group"]).suspend()


DISTURBANCES: dict[str, Callable[[Interrupted], object]] = {
    "controller killed": lambda _: process(CONTROLLER).kill(),
    "controller stopped": lambda _: process(CONTROLLER).suspend(),
    "queue killed": lambda _: process(QUEUE).kill(),
    "queue stopped": lambda _: process(QUEUE).suspend(),
    "leader stopped": Interrupted.stop_leader,
}
"""How a group is disturbed, in this order."""


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
                    told[what] = heard.after(lambda act=act: act(heard))  # type: ignore[misc]
            heard.goes_on()
        finally:
            os.kill(os.getpid(), signal.SIGINT)  # the run would train to its end

    job = make_job(folder, "group", max_failures=9, hang_timeout=12, world_size=2, optim__epochs=5000)
    run_jobs(folder, [job], disturb, heard=heard)
    return told


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "reason"),
    [
        pytest.param("controller killed", "its process was killed", marks=pytest.mark.nightly),
        ("controller stopped", "the controller of its workers stood still for |made no step for 12 s"),
        pytest.param("queue killed", "its process was killed", marks=pytest.mark.nightly),
        pytest.param(
            "queue stopped", "made no step for 12 s|the controller of its workers stood still for ", marks=pytest.mark.nightly
        ),
        pytest.param("leader stopped", "its process stood still for ", marks=pytest.mark.nightly),
    ],
)
def test_a_group_recovers_from_the_kill_or_hang_of_any_of_its_processes(reasons: Mapping[str, str], what: str, reason: str) -> None:
    assert re.match(reason, reasons[what])


# A study whose Ray goes


@pytest.mark.slow
@pytest.mark.ray
def test_a_study_whose_ray_ends_stops_and_prints_how_to_resume(tmp_path: Path) -> None:
    command = [sys.executable, "ablations/shortcuts.py", "--preset", "smoke", "--seeds", "1"]
    asked = ["--levels", "shortcut=A", "depth=8", "--set", "optim.epochs=5000"]
    environment = {**os.environ, "RAY_ADDRESS": "local", "RESNET_ABLATIONS_HOME": str(tmp_path)}
    pipe = subprocess.PIPE
    with subprocess.Popen([*command, *asked], cwd=PROJECT, env=environment, stdout=pipe, stderr=pipe, text=True) as study:
        wait_until(lambda: list(tmp_path.glob("checkpoints/*/epoch-*")))
        next(child for child in psutil.Process(study.pid).children(recursive=True) if child.name() == "raylet").terminate()
        text, error = study.communicate(timeout=300)
    assert study.returncode == 1
    assert "Ray: this machine has left the cluster: its Ray has ended" in error
    assert "To train only this run: python ablations/shortcuts.py --preset smoke --seeds 1" in text


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_a_study_stops_when_no_node_has_had_room_for_its_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    needs = RunResources(cpus_per_worker=16)  # as on a cluster whose larger node has gone
    heard = RecordingListener(lambda _: None)
    tune_runner.train_runs(
        [make_job(tmp_path, "never", hang_timeout=3)], needs, max_concurrent=None, listener=heard, scratch=tmp_path / "tune"
    )
    assert re.search(r"Ray: no node of the cluster has had room for a run for \d+ s", capsys.readouterr().err)
    assert not heard.ended


@pytest.mark.slow
@pytest.mark.nightly
@pytest.mark.ray
def test_groups_train_whichever_version_of_ray_train_the_shell_selects(tmp_path: Path) -> None:
    command = [sys.executable, "ablations/shortcuts.py", "--preset", "smoke", "--seeds", "1", "--workers", "2"]
    state = {"RAY_ADDRESS": "local", "RESNET_ABLATIONS_HOME": str(tmp_path), "RAY_TRAIN_V2_ENABLED": "0"}
    done = subprocess.run(
        [*command, "--levels", "shortcut=A", "depth=8"],
        cwd=PROJECT,
        env={**os.environ, **state},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
