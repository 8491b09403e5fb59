"""Runs on a Ray cluster through Ray Tune: concurrency, retries, reports."""

import math
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.exceptions import RpcError
from ray.tune.search import BasicVariantGenerator, ConcurrencyLimiter

from ablations.engine.environment import scratch_folders, signals
from ablations.engine.scheduling import tune_controller
from ablations.engine.scheduling.capacity import RunResources, has_autoscaler
from ablations.engine.scheduling.connection import CAPACITY_INTERVAL_SECONDS, check_reachable, connect
from ablations.engine.scheduling.fair_share import (
    ClaimRegistry,
    ResourceClaim,
    current_quota,
    must_release_last_slot,
    quota_of,
    should_yield,
)
from ablations.engine.scheduling.lifeline import ClusterLost, ClusterMonitor
from ablations.engine.scheduling.tune_adapters import (
    NotPickled,
    RunListener,
    RunSource,
    StopTrainingOnCompletion,
    TuneCallbackAdapter,
    TuneSearcherAdapter,
)
from ablations.engine.trial.job import Job
from ablations.engine.trial.trainable import train
from ablations.engine.trial.worker_group import remove_orphaned_placement_groups

__all__ = ["RunListener", "RunResources", "RunSource", "check_reachable", "connect", "has_autoscaler", "train_runs", "train_trials"]
MIN_TURN_SECONDS = 60.0
"""How long a study keeps its only place, at least, where another waits for it. A process takes seconds to start."""
MIN_TURN_WHILE_SCALING_SECONDS = 600.0
"""The same where nodes may come for the other. They take minutes, or there are none to be had."""
HANDOVER_SECONDS = 15.0
"""How long the other has to take it."""
ENDLESS = 10**9
MAX_WAITING = 200
"""How many runs of a grid may wait for nodes; Tune's own number."""
MAX_WAITING_GROUPS = 8
"""The same of groups: each that waits is a process on the head, of about 0.3 GB."""


def train_runs(
    jobs: Sequence[Job], needs: RunResources, *, max_concurrent: int | None, listener: RunListener, scratch: Path
) -> None:
    """Runs all jobs to their end. Ctrl-C and SIGTERM stop them and return.

    Args:
        jobs: in the order in which to start them.
        needs: what each takes.
        max_concurrent: how many at a time. None: as many as this study's part of the cluster holds, more when it grows.
        listener: is told of starts, reports and deaths.
        scratch: folder for Tune's own files, removed at the end.
    """
    grid = BasicVariantGenerator(max_concurrent=1)
    space = {"job": tune.grid_search([asdict(job) for job in jobs])}
    config = tune.TuneConfig(search_alg=grid, reuse_actors=True, trial_dirname_creator=_trial_folder)
    waiting = MAX_WAITING if needs.workers == 1 else MAX_WAITING_GROUPS
    with ClaimRegistry() as shares:
        most = min(max_concurrent or len(jobs), len(jobs))
        lifeline = ClusterMonitor(needs, jobs[0].hang_timeout)
        room = _ConcurrencyController(
            grid, needs, shares, most, waiting, lambda trials: len(jobs) - sum(trial.is_finished() for trial in trials)
        )
        _fit(
            needs, config, space, room, [lifeline, room, TuneCallbackAdapter(listener)], scratch, max_failures=jobs[0].max_failures
        )


def train_trials(
    source: RunSource,
    needs: RunResources,
    *,
    max_concurrent: int | None,
    listener: RunListener,
    scratch: Path,
    hang_timeout: float = Job.hang_timeout,
) -> None:
    """Runs what `source` gives until it has no more. Ctrl-C and SIGTERM stop what runs and return.

    Args:
        source: is asked for a run when there is room for it, and not before, so that it knows as much as it can.
        needs: what each run takes.
        max_concurrent: how many at a time. None: as many as this study's part of the cluster holds. For a cluster that grows, one
            more is asked for, or all of `max_concurrent`: nodes come for runs that wait, one after another or all together.
        listener: is told of starts, reports and deaths.
        scratch: folder for Tune's own files, removed at the end.
        hang_timeout: how long there may be no node that could hold a run, in seconds.
    """
    proposals = TuneSearcherAdapter(source)
    limiter = ConcurrencyLimiter(proposals, max_concurrent=1)
    config = tune.TuneConfig(search_alg=limiter, num_samples=-1, reuse_actors=True, trial_dirname_creator=_trial_folder)
    with ClaimRegistry() as shares:
        room = _ConcurrencyController(
            limiter, needs, shares, max_concurrent or ENDLESS, max_concurrent or 1, lambda _: proposals.left
        )
        lifeline = ClusterMonitor(needs, hang_timeout)
        _fit(
            needs,
            config,
            {},
            room,
            [lifeline, room, TuneCallbackAdapter(listener), StopTrainingOnCompletion()],
            scratch,
            max_failures=Job.max_failures,
            stop=proposals.stops,
        )


def _fit(
    needs: RunResources,
    config: tune.TuneConfig,
    space: Mapping[str, Any],
    room: "_ConcurrencyController",
    callbacks: Sequence[tune.Callback],
    scratch: Path,
    *,
    max_failures: int,
    stop: Callable[[str, Mapping[str, Any]], bool] | None = None,
) -> None:
    """Lets Tune run to the end, or to the first signal."""
    # One name for each program: Tune keeps trainables of all programs on a cluster in one table, and several clusters may
    # share the scratch folder.
    name = scratch_folders.owned_folder_name(f"train-{ray.get_runtime_context().get_job_id()}")
    scratch_folders.remove_abandoned_folders(scratch)
    tune.register_trainable(name, tune.with_resources(train, _placement(needs)))
    tuner = tune.Tuner(
        name,
        param_space=space,
        tune_config=config,
        run_config=tune.RunConfig(
            name=name,
            storage_path=str(scratch),
            callbacks=list(callbacks),
            failure_config=tune.FailureConfig(max_failures=max_failures),
            stop=stop,
            verbose=0,
        ),
    )
    tune_controller.install(lambda: room.places)
    try:
        with signals.sigterm_as_sigint():  # Tune stops at SIGINT only, and leaves its own handler installed
            tuner.fit()
    except KeyboardInterrupt:
        pass  # a second signal, or one before Tune listened
    except ClusterLost as lost:
        print(f"Ray: {lost}", file=sys.stderr)
    finally:
        shutil.rmtree(scratch / name, ignore_errors=True)


def _placement(needs: RunResources) -> tune.PlacementGroupFactory:
    """One worker is the trial itself. With more, the trial only leads: it stays on the head, which is never scaled away,
    and takes no CPU from the workers that it waits for."""
    if needs.workers > 1:
        return tune.PlacementGroupFactory([{"node:__internal_head__": 0.001}])
    return tune.PlacementGroupFactory([{"CPU": needs.cpus_per_worker, "GPU": needs.gpus_per_worker}])


def _trial_folder(trial: Any) -> str:
    return str(trial.trial_id)


class _ConcurrencyController(NotPickled, tune.Callback):
    """Keeps as many runs alive as this study's part of the cluster holds, and some waiting, so that an autoscaler sees the demand.

    Args:
        limited: what gives Tune its runs.
        needs: what one takes.
        shares: what other studies have and want.
        most: how many at a time, at most.
        waiting: how many may wait for nodes that can come.
        left: how many runs are to come to their end yet.
    """

    def __init__(
        self,
        limited: BasicVariantGenerator | ConcurrencyLimiter,
        needs: RunResources,
        shares: ClaimRegistry,
        most: int,
        waiting: int,
        left: Callable[[Sequence[Any]], float],
    ) -> None:
        self.limited, self.needs, self.shares, self.most, self.waiting, self.left = limited, needs, shares, most, waiting, left
        self.checked = -CAPACITY_INTERVAL_SECONDS
        self.places = 1
        """How many runs there may be at a time."""
        self.turn = TimeSlice()

    def on_step_begin(self, *, trials: Sequence[Any], **_: Any) -> None:
        if time.monotonic() > self.checked + CAPACITY_INTERVAL_SECONDS:
            self.checked = time.monotonic()
            with suppress(RpcError):  # a head that is busy answers the next time
                if self.needs.workers > 1:
                    remove_orphaned_placement_groups()
                self.places = self._runs_at_a_time(trials)
                self.limited.max_concurrent = max(1, self.places)  # 0 is no bound to Tune

    def _runs_at_a_time(self, trials: Sequence[Any]) -> int:
        running = [trial for trial in trials if trial.status == trial.RUNNING]
        if self.needs.workers > 1:  # what leads a group runs before there is room for the group
            running = [trial for trial in running if "epoch" in trial.run_metadata.last_result]
        runs = self.turn.smooth(len(running))
        own = ResourceClaim(capacity=self.needs.current_capacity(), wants=int(min(self.most, self.left(trials))), runs=runs)
        name, claims = self.shares.name, self.shares.publish(own)
        grows = has_autoscaler()
        potential = self.needs.max_capacity() if grows else own.capacity
        full = potential is not None and potential <= own.capacity
        if must_release_last_slot(name, claims) and self.turn.has_expired(
            MIN_TURN_SECONDS if full else MIN_TURN_WHILE_SCALING_SECONDS
        ):
            return 0
        part = current_quota(name, claims)
        if grows and not should_yield(name, claims):
            more = part + (self.waiting if potential or len(claims) == 1 else 1)
            part = min(more, quota_of(name, claims, potential)) if potential else more
        return max(1, min(self.most, part))


class TimeSlice:
    """How long a study has had runs, or has had none. A moment between two runs is neither."""

    def __init__(self) -> None:
        self.began: float | None = None
        self.left = -math.inf
        self.without = 0

    def smooth(self, runs: int) -> int:
        """So many runs, as seen every now and then; 1 where there is none, but was one when last looked at."""
        self.without = 0 if runs else self.without + 1
        if runs and self.began is None:
            self.began = time.monotonic()
        if self.without > 1 and self.began is not None:
            self.began, self.left = None, time.monotonic()
        return runs or int(self.began is not None)

    def has_expired(self, seconds: float) -> bool:
        """Whether it has had runs for longer than this, or has just left its place to another study."""
        now = time.monotonic()
        return now < self.left + HANDOVER_SECONDS if self.began is None else now > self.began + seconds
