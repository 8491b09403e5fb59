"""The number of runs that a study keeps on the cluster, as its capacity and its other users change."""

import math
import time
from contextlib import suppress

from ray.exceptions import RpcError

from ablations.engine.scheduling.capacity import RunResources, has_autoscaler
from ablations.engine.scheduling.fair_share import (
    ClaimRegistry,
    ResourceClaim,
    current_quota,
    must_release_last_slot,
    quota_of,
    should_yield,
)
from ablations.engine.scheduling.run_queue import RunQueue

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


class ConcurrencyController:
    """Decides how many runs this study may have: its share of the cluster, and some that wait so that an autoscaler sees demand.

    Args:
        needs: resources of one run.
        claims: demand of all studies on the cluster.
        max_runs: maximum number of runs at a time.
        max_waiting: number of runs that may wait for nodes of an autoscaler.
    """

    def __init__(self, needs: RunResources, claims: ClaimRegistry, max_runs: int, max_waiting: int) -> None:
        self.needs, self.claims = needs, claims
        self.max_runs, self.max_waiting = max_runs, max_waiting
        self._checked = -CAPACITY_INTERVAL_SECONDS
        self._turn = TimeSlice()

    def update(self, queue: RunQueue) -> None:
        """Set the number of slots of a queue. Cheap between two looks at the cluster."""
        if time.monotonic() > self._checked + CAPACITY_INTERVAL_SECONDS:
            self._checked = time.monotonic()
            with suppress(RpcError):  # the head is busy and answers the next time
                queue.slots = self._count_slots(queue)

    def _count_slots(self, queue: RunQueue) -> int:
        runs = self._turn.smooth(sum(run.started for run in queue.active.values()))
        own = ResourceClaim(capacity=self.needs.current_capacity(), wants=int(min(self.max_runs, queue.left)), runs=runs)
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
