"""Training of a study's runs on a Ray cluster through Ray Tune, with retries."""

import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import ray
from ray import tune

from ablations.engine.environment import scratch_folders, signals
from ablations.engine.environment.aws_keys import keys_in_memory
from ablations.engine.scheduling.capacity import HEAD_RESOURCE, RunResources
from ablations.engine.scheduling.cluster_monitor import ClusterLost, ClusterMonitor
from ablations.engine.scheduling.concurrency import ConcurrencyController
from ablations.engine.scheduling.fair_share import ClaimRegistry
from ablations.engine.scheduling.hang_monitor import HangMonitor
from ablations.engine.scheduling.ray_internals.tune import install_crash_handler
from ablations.engine.scheduling.run_queue import RunList, RunListener, RunQueue, RunSource
from ablations.engine.scheduling.tune_adapters import NothingToRun, RunScheduler, RunSearch, TuneCallback, explain
from ablations.engine.trial.job import Job
from ablations.engine.trial.trainable import RunTrainable

UNLIMITED = 10**9
"""Number of runs that stands for no limit."""
MAX_WAITING = 200
"""Maximum number of runs of a grid that wait for nodes."""
MAX_WAITING_GROUPS = 8
"""Maximum number of runs with several workers that wait for nodes. None of them has a process yet."""
IDLE_SECONDS = 0.1
"""Pause before the source is asked again while no run is in progress, in seconds."""
TUNE_ENVIRONMENT = {
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # `_train` handles signals, also while Tune does not run
    "TUNE_MAX_PENDING_TRIALS_PG": str(MAX_WAITING),  # trials without a process; by default, one at a time
}
"""Documented environment variables of Tune."""
LEADER_SHARE = 0.001
"""Amount of `HEAD_RESOURCE` that the leader of a worker group takes: almost none, since it only waits."""


def train_runs(
    jobs: Sequence[Job],
    needs: RunResources,
    *,
    max_concurrent: int | None,
    listener: RunListener,
    scratch: Path,
    workload: bytes = b"",
) -> None:
    """Train a fixed list of runs to their end. Ctrl-C and SIGTERM stop them, and the function returns.

    Args:
        jobs: the runs, in the order in which to start them.
        needs: resources of each run.
        max_concurrent: number of runs at a time, at most. None: as many as this study's share of the cluster holds.
        listener: receives starts, reports and crashes.
        scratch: folder for Tune's own files, removed at the end.
        workload: the study's trainings, as in `Job.workload`.
    """
    queue = RunQueue(RunList(jobs), listener)
    with ClaimRegistry() as claims:
        controller = ConcurrencyController(needs, claims, min(max_concurrent or len(jobs), len(jobs)), max_waiting(needs))
        _train(queue, controller, jobs[0].hang_timeout, scratch, workload)


def max_waiting(needs: RunResources) -> int:
    """Return how many runs may wait for nodes that an autoscaler adds."""
    return MAX_WAITING if needs.workers == 1 else MAX_WAITING_GROUPS


def train_trials(
    source: RunSource,
    needs: RunResources,
    *,
    max_concurrent: int | None,
    listener: RunListener,
    scratch: Path,
    max_waiting: int = 1,
    hang_timeout: float = Job.hang_timeout,
    workload: bytes = b"",
) -> None:
    """Train the runs that a source returns until it has no more. Ctrl-C and SIGTERM stop them, and the function returns.

    Args:
        source: asked for a run only when there is room for it, so that it decides with all results so far.
        needs: resources of each run.
        max_concurrent: number of runs at a time, at most. None: as many as this study's share of the cluster holds.
        listener: receives starts, reports and crashes.
        scratch: folder for Tune's own files, removed at the end.
        max_waiting: with an autoscaler, number of further runs that wait for nodes if `max_concurrent` is None, and otherwise up to
            that number. With 1, nodes join one by one.
        hang_timeout: time without a node that is large enough for a run after which the study stops, and time without a heartbeat
            after which a process is killed, in seconds.
        workload: the study's trainings, as in `Job.workload`.
    """
    queue = RunQueue(source, listener)
    with ClaimRegistry() as claims:
        controller = ConcurrencyController(needs, claims, max_concurrent or UNLIMITED, max_concurrent or max_waiting)
        _train(queue, controller, hang_timeout, scratch, workload)


class Interrupted(Exception):  # noqa: N818 - an event that stops a study
    """A signal has asked this program to stop, or its listener ends all runs."""


def _train(queue: RunQueue, controller: ConcurrencyController, hang_timeout: float, scratch: Path, workload: bytes) -> None:
    """Train the runs of a queue until it has no more, the first signal, or the loss of the cluster.

    Tune runs only while runs do. In between, this function waits, and the study holds nothing.
    """
    install_crash_handler(explain)
    cluster_monitor, hang_monitor = ClusterMonitor(controller.needs, hang_timeout), HangMonitor(hang_timeout)
    # One name for each driver: Tune keeps the trainables of all drivers on a cluster in one table, and several clusters may share
    # the scratch folder.
    name = scratch_folders.owned_folder_name(f"train-{ray.get_runtime_context().get_job_id()}")
    scratch_folders.remove_abandoned_folders(scratch)
    # All runs share the workload, so it is stored once instead of in the configuration of each trial.
    trainable = tune.with_parameters(RunTrainable, workload=workload) if workload else RunTrainable
    tune.register_trainable(name, tune.with_resources(trainable, _placement(controller.needs)))

    def supervise() -> None:
        if is_interrupted() or queue.halted:
            raise Interrupted
        cluster_monitor.check()
        hang_monitor.check()
        queue.refresh()
        controller.update(queue)

    try:
        with keys_in_memory(), signals.first_signal_noted() as is_interrupted:
            supervise()
            while not queue.finished:
                if queue.has_next():
                    _run_tune(name, queue, supervise, scratch)
                time.sleep(IDLE_SECONDS)
                supervise()
    except (Interrupted, KeyboardInterrupt):
        pass  # KeyboardInterrupt at the second signal
    except ClusterLost as lost:
        print(f"Ray: {lost}", file=sys.stderr)
    finally:
        shutil.rmtree(scratch / name, ignore_errors=True)


def _run_tune(name: str, queue: RunQueue, supervise: Callable[[], None], scratch: Path) -> None:
    """Run Tune until no run is in progress and none may start now."""
    tuner = tune.Tuner(
        name,
        tune_config=tune.TuneConfig(
            search_alg=RunSearch(queue),
            scheduler=RunScheduler(queue),
            num_samples=-1,
            reuse_actors=True,
            trial_dirname_creator=_trial_folder,
        ),
        run_config=tune.RunConfig(
            name=name,
            storage_path=str(scratch),
            callbacks=[TuneCallback(queue, supervise)],
            failure_config=tune.FailureConfig(max_failures=0),  # the queue starts crashed runs again
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),  # runs write their own
            stop=queue.stops,
            verbose=0,
        ),
    )
    with _tune_environment(), suppress(NothingToRun):
        tuner.fit()
        raise Interrupted  # Tune ends by itself only after SIGUSR1


@contextmanager
def _tune_environment() -> Iterator[None]:
    """Set environment variables that configure Tune, in this block only: the user's program may use Tune, too."""
    before = {name: os.environ.get(name) for name in TUNE_ENVIRONMENT}
    os.environ.update(TUNE_ENVIRONMENT)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _placement(needs: RunResources) -> tune.PlacementGroupFactory:
    """Return what Tune reserves for a trial.

    A run of one worker trains in the trial's process. With more workers, that process only leads: it stays on the head, which an
    autoscaler never removes, and takes no CPU from the workers.
    """
    worker = {"CPU": needs.cpus_per_worker, "GPU": needs.gpus_per_worker}
    if needs.workers == 1:
        return tune.PlacementGroupFactory([worker])
    return tune.PlacementGroupFactory([{HEAD_RESOURCE: LEADER_SHARE}, *[worker] * needs.workers], strategy=needs.placement.upper())


def _trial_folder(trial: Any) -> str:
    return str(trial.trial_id)
