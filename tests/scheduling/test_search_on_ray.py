"""Tests of searches on Ray: runs that are stopped early release their resources, and an idle search reacts promptly."""

import os
import signal
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import ray

from ablations.engine.scheduling import concurrency, tune_runner
from ablations.engine.scheduling.capacity import RunResources
from ablations.engine.scheduling.ray_internals.key_value_store import kv_keys
from ablations.engine.scheduling.run_queue import RunQueue, RunSource
from ablations.engine.trial import trainable
from ablations.engine.trial.job import Job
from resnet_core import ConfigError
from tests.helpers.ray_jobs import RecordingListener, make_job, resources_in_use, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("cluster")]

ENDLESS = 5000
"""Epochs of a run that nobody waits for."""


class Listed:
    """A source that gives these jobs, the next where `ready`, and stops runs of these names at their first epoch."""

    def __init__(self, *jobs: Job, stopped: set[str] | None = None, ready: Callable[[], bool] = lambda: True) -> None:
        self.left, self.stopped, self.ready = list(jobs), stopped or set(), ready
        self.decided: dict[str, float] = {}

    def next(self) -> Job | None:
        return self.left.pop(0) if self.left and self.ready() else None

    @property
    def finished(self) -> bool:
        return not self.left

    def stops(self, fingerprint: str, report: Mapping[str, Any]) -> bool:
        if fingerprint not in self.stopped or fingerprint in self.decided:
            return False
        self.decided[fingerprint] = time.monotonic()
        return True


class Noted(RecordingListener):
    """Also writes down when runs started, and in which processes."""

    def __init__(self) -> None:
        super().__init__(lambda _: None)
        self.every_pid: set[int] = set()

    def reported(self, fingerprint: str, report: Mapping[str, Any]) -> None:
        super().reported(fingerprint, report)
        self.every_pid.add(report["pid"])


def search(folder: Path, source: RunSource, *, workers: int = 1) -> Noted:
    heard = Noted()
    tune_runner.train_trials(
        source,
        RunResources(workers=workers),
        max_concurrent=1 if workers == 1 else None,
        listener=heard,
        scratch=folder / "tune",
    )
    wait_until(lambda: not resources_in_use(), 30)
    assert not list((folder / "tune").glob("*"))
    return heard


def words() -> list[str]:
    """Return the keys of records that processes have left with Ray."""
    return kv_keys("ablations/process/")


def test_a_stopped_run_frees_its_process_and_continues_when_the_source_returns_it_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Slow(trainable.RunTrainable):
        def reset_config(self, new_config: dict[str, Any]) -> bool:
            time.sleep(3)
            return super().reset_config(new_config)

    monkeypatch.setattr(tune_runner, "RunTrainable", Slow)
    before = words()
    paused = make_job(tmp_path, "paused", optim__epochs=3)
    source = Listed(paused, make_job(tmp_path, "pruned", optim__epochs=ENDLESS), paused, stopped={"paused", "pruned"})
    heard = search(tmp_path, source)
    assert heard.epochs == {"paused": [1, 1, 2, 3], "pruned": [1]}
    assert heard.ended == {"paused": ("completed", "")}
    assert not heard.deaths
    assert len(heard.every_pid) == 1
    assert words() == before


def test_a_process_killed_while_tune_gives_it_another_run_costs_one_retry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Killed(trainable.RunTrainable):
        def reset_config(self, new_config: dict[str, Any]) -> bool:
            marker = tmp_path / f"killed-{new_config['job']['fingerprint']}"
            if not marker.exists():
                marker.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return super().reset_config(new_config)

    monkeypatch.setattr(tune_runner, "RunTrainable", Killed)
    heard = search(tmp_path, Listed(*(make_job(tmp_path, name, max_failures=1) for name in "ab")))
    assert heard.ended == dict.fromkeys("ab", ("completed", ""))
    assert heard.deaths == {"b": [("its process was killed", None)]}  # one report


def test_an_idle_search_holds_no_resources(tmp_path: Path) -> None:
    ready: list[float] = []

    def nothing_is_taken() -> bool:
        if source.decided and not resources_in_use():
            ready.append(time.monotonic())
        return bool(ready) or not source.decided

    jobs = [make_job(tmp_path, "stopped", optim__epochs=ENDLESS), make_job(tmp_path, "next")]
    source = Listed(*jobs, stopped={"stopped"}, ready=nothing_is_taken)
    heard = search(tmp_path, source)
    assert heard.ended == {"next": ("completed", "")}
    assert not heard.deaths
    assert ready[0] - source.decided["stopped"] < 20


@pytest.mark.parametrize(
    ("grows", "limit", "room"), [(False, None, 2), (False, 9, 2), (False, 1, 1), (True, None, 3), (True, 1, 1), (True, 9, 9)]
)
def test_a_source_is_asked_for_runs_only_when_there_is_room_or_an_autoscaler(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, grows: bool, limit: int | None, room: int
) -> None:
    rooms = []

    def first_step(_: str, queue: RunQueue, *__: object) -> None:
        while queue.start(str(len(queue.active))):
            pass
        rooms.append(len(queue.active))
        raise tune_runner.Interrupted

    monkeypatch.setattr(concurrency, "has_autoscaler", lambda: grows)
    monkeypatch.setattr(tune_runner, "_run_tune", first_step)
    jobs = [make_job(tmp_path, str(index)) for index in range(20)]
    tune_runner.train_trials(Listed(*jobs), RunResources(), max_concurrent=limit, listener=Noted(), scratch=tmp_path)
    assert rooms == [room]


def test_a_signal_stops_an_idle_search_promptly(tmp_path: Path) -> None:
    asked = 0

    def interrupt() -> bool:
        nonlocal asked
        asked += 1
        if asked == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return False

    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    began = time.monotonic()
    assert not search(tmp_path, Listed(make_job(tmp_path, "never"), ready=interrupt)).epochs
    assert time.monotonic() - began < 10
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_an_error_of_a_source_reaches_the_caller_unchanged(tmp_path: Path) -> None:
    class Wrong(Listed):
        def next(self) -> Job | None:
            raise ConfigError("--space: no configuration exists")

    with pytest.raises(ConfigError, match="--space"):
        search(tmp_path, Wrong())


@pytest.mark.nightly
def test_a_stopped_group_frees_its_resources_at_once(tmp_path: Path) -> None:
    source = Listed(make_job(tmp_path, "pruned", world_size=2, optim__epochs=ENDLESS), stopped={"pruned"})
    free, before = list[float](), words()

    def watch() -> None:
        wait_until(lambda: source.decided)
        wait_until(lambda: ray.available_resources().get("CPU") == 2)
        free.append(time.monotonic())

    watching = threading.Thread(target=watch)
    watching.start()
    heard = search(tmp_path, source, workers=2)
    watching.join()
    assert heard.epochs == {"pruned": [1]}
    assert not heard.ended
    assert not heard.deaths
    assert free[0] - source.decided["pruned"] < 15
    assert words() == before
