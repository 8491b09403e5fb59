"""Tests of liveness: the kill or hang of any process of a run is detected, and the run continues from its checkpoint."""

import os
import re
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray

from ablations.engine.scheduling import tune_runner
from ablations.engine.scheduling.capacity import RunResources
from ablations.engine.scheduling.hang_monitor import HangMonitor
from ablations.engine.trial import process_failures
from ablations.engine.trial.job import Job
from ablations.engine.trial.liveness import PeerMonitor, StallDetector
from ablations.engine.trial.trainable import RunTrainable
from tests.helpers.project import PROJECT
from tests.helpers.ray_jobs import RecordingListener, epochs_saved, make_job, run_jobs, wait_until
from tests.helpers.slow_epochs import slow_epochs

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


@pytest.mark.parametrize(("beats", "seconds"), [([1, None], 12), ([None, None], 180)], ids=["has beaten before", "starts"])
def test_a_process_has_more_time_only_until_its_first_heartbeat(
    beats: list[int | None], seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, killed = 0.0, list[float]()
    monkeypatch.setattr("ablations.engine.trial.liveness.time.monotonic", lambda: now)
    monkeypatch.setattr(process_failures, "run_records", lambda: {"one": {"beats": beats[now > 5]}})
    monkeypatch.setattr(process_failures, "kill_hung_process", lambda name, silent: killed.append(now))
    monitor = HangMonitor(12)
    while not killed:
        now += 1
        monitor.check()
    assert seconds < killed[0] < 1.3 * seconds + 10


# On a Ray of two CPUs


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_a_process_between_two_runs_has_a_heartbeat(tmp_path: Path) -> None:
    """Tune waits for the answer of such a process without a limit."""

    class Idle:
        def __init__(self, job: Job) -> None:
            self._trainable = RunTrainable({"job": asdict(job)})

        def stop(self) -> None:
            self._trainable.stop()

    idle: Any = ray.remote(Idle).options(num_cpus=0).remote(make_job(tmp_path, "idle", hang_timeout=2))
    ray.get(idle.__ray_ready__.remote())

    def beats() -> list[int]:
        return [int(record.get("beats", 0)) for record in process_failures.run_records().values()]

    wait_until(lambda: beats() and beats()[0] >= 2)
    before = beats()
    wait_until(lambda: beats() > before)
    ray.get(idle.stop.remote())
    assert not beats()
    ray.kill(idle)


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_a_run_whose_process_hangs_continues_in_another_process(tmp_path: Path) -> None:
    def stop(heard: RecordingListener) -> None:
        wait_until(lambda: epochs_saved(tmp_path, "stopped") >= 3)
        psutil.Process(heard.pids["stopped"]).suspend()

    with slow_epochs(0.3):
        heard = run_jobs(tmp_path, [make_job(tmp_path, "stopped", hang_timeout=12, max_failures=9, optim__epochs=20)], stop)
    # On a machine that is too busy for steps of 12 s, the next process may seem to hang as well.
    reasons, outcomes = zip(*heard.deaths["stopped"], strict=True)
    assert re.fullmatch(r"its process stood still for \d+ s", reasons[0])
    assert set(outcomes) == {None}
    assert heard.ended["stopped"] == ("completed", "")
    assert set(heard.epochs["stopped"]) == set(range(1, 21))


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
