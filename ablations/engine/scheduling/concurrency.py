"""The number of runs that a study keeps on the cluster, as its capacity and its other users change."""

import math
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from ray import tune
from ray.exceptions import RpcError
from ray.tune.search import BasicVariantGenerator, ConcurrencyLimiter

from ablations.engine.scheduling.capacity import RunResources
from ablations.engine.scheduling.fair_share import (
    ClaimRegistry,
    ResourceClaim,
    current_quota,
    must_release_last_slot,
    quota_of,
    should_yield,
)
from ablations.engine.scheduling.ray_internals.cluster import has_autoscaler
from ablations.engine.scheduling.ray_internals.tune import last_report, set_max_trials
from ablations.engine.scheduling.tune_adapters import NotPickled

CAPACITY_INTERVAL_SECONDS = 2.0
"""Time between two readings of the cluster's capacity, in seconds."""
MIN_TURN_SECONDS = 60.0
"""Minimum time for which a study keeps its only slot while another study waits for it, in seconds. A process takes seconds to
start."""
MIN_TURN_WHILE_SCALING_SECONDS = 600.0
"""Value of `MIN_TURN_SECONDS` while an autoscaler may add nodes for the other study, in seconds. Adding a node takes minutes, and
may fail."""
HANDOVER_SECONDS = 15.0
"""Time for which a study that released its last slot does not claim it again, in seconds."""


class ConcurrencyController(NotPickled, tune.Callback):
    """Keeps as many runs as this study's share of the cluster holds, and some waiting, so that an autoscaler sees the demand.

    Args:
        searcher: Tune's source of trials. Its limit follows the number of slots.
        needs: resources of one run.
        claims: demand of all studies on the cluster.
        max_runs: maximum number of runs at a time.
        max_waiting: number of runs that may wait for nodes of an autoscaler.
        runs_left: returns the number of runs that have not ended, given all of Tune's trials.
    """

    def __init__(
        self,
        searcher: BasicVariantGenerator | ConcurrencyLimiter,
        needs: RunResources,
        claims: ClaimRegistry,
        max_runs: int,
        max_waiting: int,
        runs_left: Callable[[Sequence[Any]], float],
    ) -> None:
        self.searcher, self.needs, self.claims = searcher, needs, claims
        self.max_runs, self.max_waiting, self.runs_left = max_runs, max_waiting, runs_left
        self.slots = 1
        """Number of runs that may hold or ask for resources now."""
        self._checked = -CAPACITY_INTERVAL_SECONDS
        self._turn = TimeSlice()

    def on_step_begin(self, *, trials: Sequence[Any], **_: Any) -> None:
        if time.monotonic() > self._checked + CAPACITY_INTERVAL_SECONDS:
            self._checked = time.monotonic()
            with suppress(RpcError):  # the head is busy and answers the next time
                self.slots = self._count_slots(trials)
                set_max_trials(self.searcher, max(1, self.slots))  # to Tune, 0 means no limit

    def _count_slots(self, trials: Sequence[Any]) -> int:
        running = [trial for trial in trials if trial.status == trial.RUNNING]
        if self.needs.workers > 1:  # the leader of a group runs before there is room for its workers
            running = [trial for trial in running if "epoch" in last_report(trial)]
        runs = self._turn.smooth(len(running))
        own = ResourceClaim(
            capacity=self.needs.current_capacity(), wants=int(min(self.max_runs, self.runs_left(trials))), runs=runs
        )
        name, claims = self.claims.name, self.claims.publish(own)
        autoscaled = has_autoscaler()
        max_capacity = self.needs.max_capacity() if autoscaled else own.capacity
        fully_scaled = max_capacity is not None and max_capacity <= own.capacity
        min_turn = MIN_TURN_SECONDS if fully_scaled else MIN_TURN_WHILE_SCALING_SECONDS
        if must_release_last_slot(name, claims) and self._turn.has_expired(min_turn):
            return 0
        slots = current_quota(name, claims)
        if autoscaled and not should_yield(name, claims):
            requested = slots + (self.max_waiting if max_capacity or len(claims) == 1 else 1)
            slots = min(requested, quota_of(name, claims, max_capacity)) if max_capacity else requested
        return max(1, min(self.max_runs, slots))


class TimeSlice:
    """Tracks how long a study has been running or idle.

    Gaps shorter than one poll interval are ignored, so that the time between two runs does not count as idle.
    """

    def __init__(self) -> None:
        self._began: float | None = None
        self._ended = -math.inf
        self._polls_without_runs = 0

    def smooth(self, runs: int) -> int:
        """Record the number of runs at a poll; return it, or 1 if it is 0 for the first time after runs."""
        self._polls_without_runs = 0 if runs else self._polls_without_runs + 1
        if runs and self._began is None:
            self._began = time.monotonic()
        if self._polls_without_runs > 1 and self._began is not None:
            self._began, self._ended = None, time.monotonic()
        return runs or int(self._began is not None)

    def has_expired(self, seconds: float) -> bool:
        """Return whether the study has been running for longer than this, or released its last slot a moment ago."""
        now = time.monotonic()
        return now < self._ended + HANDOVER_SECONDS if self._began is None else now > self._began + seconds
