"""Training jobs on a test's own Ray cluster: create, run, disturb and observe them."""

import os
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ray
from ray.util.state import list_actors, list_placement_groups

from ablations.engine.scheduling import tune_runner
from ablations.engine.scheduling.capacity import RunResources
from ablations.engine.trial.job import Job
from resnet_core import RunSpec, load_dataset, override, preset
from resnet_core.data.datasets import resolve

SPARE_BYTES = 3_000_000_000
"""Memory that processes may allocate before Ray's memory monitor kills one, in the test of that monitor, in bytes."""


class RecordingListener:
    """A run listener that records all events, and calls `on_restart` when a worker group restarts."""

    def __init__(self, on_restart: Callable[["RecordingListener"], None]) -> None:
        self.on_restart = on_restart
        self.epochs: dict[str, list[int]] = {}
        self.pids: dict[str, int] = {}
        self.deaths: dict[str, list[tuple[str, str | None]]] = {}
        self.restarts: list[str] = []
        self.ended: dict[str, tuple[str, str]] = {}

    halted = False

    def must_stop(self, fingerprint: str, report: Mapping[str, Any]) -> bool:
        return False

    def started(self, fingerprint: str) -> None:
        self.epochs.setdefault(fingerprint, [])

    def reported(self, fingerprint: str, report: Mapping[str, Any]) -> None:
        self.pids[fingerprint] = report["pid"]
        if "outcome" in report:
            self.ended[fingerprint] = report["outcome"], report.get("message", "")
        elif "restart" in report:
            self.restarts.append(report["restart"])
            self.on_restart(self)
        else:
            self.epochs[fingerprint].append(report["epoch"])

    def crashed(self, fingerprint: str, reason: str, *, outcome: str | None) -> None:
        self.deaths.setdefault(fingerprint, []).append((reason, outcome))
        if outcome:
            self.ended[fingerprint] = outcome, reason


def smoke_spec(**settings: Any) -> RunSpec:
    return override(preset("smoke"), {name.replace("__", "."): value for name, value in settings.items()})


def make_job(folder: Path, name: str, *, max_failures: int = 3, hang_timeout: float = 600, **settings: Any) -> Job:
    spec = smoke_spec(**settings)
    dataset = load_dataset(spec.data)
    (folder / "checkpoints").mkdir(exist_ok=True)
    return Job(
        fingerprint=name,
        spec=resolve(spec, dataset).flat(),
        data_version=dataset.version,
        folder=name,
        storage=str(folder / "checkpoints"),
        cache=str(folder / "data"),
        cpus_per_worker=1,
        gpus_per_worker=0,
        max_failures=max_failures,
        hang_timeout=hang_timeout,
    )


def run_jobs(
    folder: Path,
    jobs: list[Job],
    *disturb: Callable[[RecordingListener], None],
    on_restart: Callable[[RecordingListener], None] = lambda _: None,
    max_concurrent: int | None = None,
    gpus: float = 0,
    heard: RecordingListener | None = None,
) -> RecordingListener:
    """Run jobs to their end while other threads disturb them; check that all resources of the cluster are free afterwards.

    Args:
        folder: folder for Tune's files.
        jobs: the jobs.
        disturb: functions to run in threads meanwhile, each with the listener.
        on_restart: called when a worker group restarts, unless `heard` is given.
        max_concurrent: maximum number of jobs at a time.
        gpus: GPUs that Ray reserves for each run, which trains on the CPU nevertheless. For runs with one worker only: Ray Train
            would check the GPUs of a group.
        heard: listener to use instead of a new one.
    """
    heard = heard or RecordingListener(on_restart)
    threads = [threading.Thread(target=act, args=[heard], daemon=True) for act in disturb]
    for thread in threads:
        thread.start()
    needs = RunResources(workers=jobs[0].spec["world_size"], gpus_per_worker=gpus)
    tune_runner.train_runs(jobs, needs, max_concurrent=max_concurrent, listener=heard, scratch=folder / "tune")
    for thread in threads:
        thread.join(1)
        assert not thread.is_alive(), f"it was over before it was disturbed: {vars(heard)}"
    assert_free()
    return heard


def resources_in_use() -> dict[str, Any]:
    """Return the actors, placement groups, CPUs and GPUs in use; empty if there are none. Ray's own permanent actor is left out."""
    address = ray.get_runtime_context().gcs_address  # another Ray may run on this machine
    alive = [(actor.class_name, actor.state) for actor in list_actors(address, limit=10_000) if actor.state != "DEAD"]
    actors = [actor for actor in alive if actor[0] != "_AutoscalingCoordinatorActor"]
    reserved = list_placement_groups(address, limit=10_000)
    groups = [(group.bundles, group.state) for group in reserved if group.state != "REMOVED"]
    there, free = ray.cluster_resources(), ray.available_resources()
    used = {name: there.get(name, 0) - free.get(name, 0) for name in ("CPU", "GPU")}
    return {name: what for name, what in {"actors": actors, "groups": groups, **used}.items() if what}


def assert_free(seconds: float = 30) -> float:
    """Wait until no resources are in use; return the time that this took, in seconds. Fail after `seconds`."""
    began = time.monotonic()
    while (left := resources_in_use()) and time.monotonic() < began + seconds:
        time.sleep(0.2)
    assert not left
    return time.monotonic() - began


def wait_until(true: Callable[[], object], seconds: float = 300) -> None:
    """Wait until a condition holds. The limit only bounds a failure; it allows for other tests on the same two cores."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def epochs_saved(folder: Path, name: str) -> int:
    return max((int(p.name[6:12]) for p in (folder / "checkpoints" / name).glob("epoch-*.pt")), default=0)


def unreadable_checkpoint(folder: Path, name: str) -> Path:
    """Create a checkpoint that is newer than all others and blocks every reader forever: a named pipe. Return its path."""
    path = folder / "checkpoints" / name / "epoch-009999-0123456789abcdef.pt"
    path.parent.mkdir(parents=True, exist_ok=True)
    os.mkfifo(path)
    return path
