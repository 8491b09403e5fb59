"""Training of a study's runs on a Ray cluster through Ray Tune, with retries."""

import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.search import BasicVariantGenerator, ConcurrencyLimiter

from ablations.engine.environment import scratch_folders, signals
from ablations.engine.scheduling.capacity import RunResources
from ablations.engine.scheduling.cluster_monitor import ClusterLost, ClusterMonitor
from ablations.engine.scheduling.concurrency import ConcurrencyController
from ablations.engine.scheduling.fair_share import ClaimRegistry
from ablations.engine.scheduling.ray_internals.cluster import HEAD_RESOURCE
from ablations.engine.scheduling.ray_internals.tune import install_tune_policy
from ablations.engine.scheduling.tune_adapters import (
    RunListener,
    RunSource,
    TuneCallbackAdapter,
    TuneSearcherAdapter,
)
from ablations.engine.scheduling.tune_policy import RunPolicy
from ablations.engine.trial.job import Job
from ablations.engine.trial.trainable import RunTrainable

UNLIMITED = 10**9
"""Number of runs that stands for no limit."""
MAX_WAITING = 200
"""Maximum number of runs of a grid that wait for nodes. Tune has the same limit."""
MAX_WAITING_GROUPS = 8
"""Maximum number of runs with several workers that wait for nodes. The leader of each is a process of about 0.3 GB on the head."""
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
    grid = BasicVariantGenerator(max_concurrent=1)
    space = {"job": tune.grid_search([asdict(job) for job in jobs])}
    with ClaimRegistry() as claims:
        max_runs = min(max_concurrent or len(jobs), len(jobs))
        controller = ConcurrencyController(
            grid,
            needs,
            claims,
            max_runs,
            max_waiting(needs),
            lambda trials: len(jobs) - sum(trial.is_finished() for trial in trials),
        )
        _fit(
            needs,
            tune.TuneConfig(search_alg=grid, reuse_actors=True, trial_dirname_creator=_trial_folder),
            space,
            controller,
            [ClusterMonitor(needs, jobs[0].hang_timeout), controller, TuneCallbackAdapter(listener)],
            scratch,
            max_failures=jobs[0].max_failures,
            workload=workload,
        )


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
        hang_timeout: time without a node that is large enough for a run, in seconds, after which the study stops.
        workload: the study's trainings, as in `Job.workload`.
    """
    searcher = TuneSearcherAdapter(source)
    limiter = ConcurrencyLimiter(searcher, max_concurrent=1)
    with ClaimRegistry() as claims:
        controller = ConcurrencyController(
            limiter, needs, claims, max_concurrent or UNLIMITED, max_concurrent or max_waiting, lambda _: searcher.left
        )
        _fit(
            needs,
            tune.TuneConfig(search_alg=limiter, num_samples=-1, reuse_actors=True, trial_dirname_creator=_trial_folder),
            {},
            controller,
            [ClusterMonitor(needs, hang_timeout), controller, TuneCallbackAdapter(listener)],
            scratch,
            max_failures=Job.max_failures,
            stop=searcher.stops,
            workload=workload,
        )


def _fit(
    needs: RunResources,
    config: tune.TuneConfig,
    space: Mapping[str, Any],
    controller: ConcurrencyController,
    callbacks: Sequence[tune.Callback],
    scratch: Path,
    *,
    max_failures: int,
    workload: bytes,
    stop: Callable[[str, Mapping[str, Any]], bool] | None = None,
) -> None:
    """Run Tune until all trials have ended, the first signal, or the loss of the cluster."""
    # One name for each driver: Tune keeps the trainables of all drivers on a cluster in one table, and several clusters may share
    # the scratch folder.
    name = scratch_folders.owned_folder_name(f"train-{ray.get_runtime_context().get_job_id()}")
    scratch_folders.remove_abandoned_folders(scratch)
    # All runs share the workload, so it is stored once instead of in the configuration of each trial.
    trainable = tune.with_parameters(RunTrainable, workload=workload) if workload else RunTrainable
    tune.register_trainable(name, tune.with_resources(trainable, _placement(needs)))
    tuner = tune.Tuner(
        name,
        param_space=space,
        tune_config=config,
        run_config=tune.RunConfig(
            name=name,
            storage_path=str(scratch),
            callbacks=list(callbacks),
            failure_config=tune.FailureConfig(max_failures=max_failures),
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),  # runs write their own
            stop=stop,
            verbose=0,
        ),
    )
    install_tune_policy(RunPolicy(lambda: controller.slots))
    try:
        with signals.sigterm_as_sigint():  # Tune stops at SIGINT only, and leaves its own handler installed
            tuner.fit()
    except KeyboardInterrupt:
        pass  # a second signal, or one before Tune had installed its handler
    except ClusterLost as lost:
        print(f"Ray: {lost}", file=sys.stderr)
    finally:
        shutil.rmtree(scratch / name, ignore_errors=True)


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
