"""Stops a study whose cluster can no longer run it."""

import sys
import time

import ray
from ray.exceptions import RpcError

from ablations.engine.environment.network import accepts_connections
from ablations.engine.scheduling.capacity import RunResources, has_autoscaler, is_own_node_lost

CHECK_INTERVAL_SECONDS = 2.0
"""Minimum time between two checks, in seconds."""
RECONNECT_INTERVAL_SECONDS = 1.0
"""Time between two attempts to reach the head, in seconds."""


class ClusterLost(Exception):  # noqa: N818 - an event that stops a study as a signal does
    """The cluster can no longer run a study."""


class ClusterMonitor:
    """Stops a study if its node has left the cluster, or if for some time no node has been large enough for one of its runs.

    Args:
        needs: resources of one run.
        timeout: time without a node that is large enough for a run, in seconds, after which the study stops.
    """

    def __init__(self, needs: RunResources, timeout: float) -> None:
        self.needs, self.timeout = needs, timeout
        self._checked = self._last_capacity = time.monotonic()
        self._outage_announced = False

    def check(self) -> None:
        """Raise ClusterLost if the study cannot continue. Cheap between two looks."""
        now = time.monotonic()
        if now < self._checked + CHECK_INTERVAL_SECONDS:
            return
        self._checked = now
        self._wait_for_head()
        try:
            lost, holds = is_own_node_lost(), self.needs.current_capacity() > 0 or has_autoscaler()
        except RpcError:
            return  # the head is busy and answers the next time
        if lost:
            raise ClusterLost("this machine has left the cluster: its Ray has ended")
        if holds:
            self._last_capacity = now
        elif now > self._last_capacity + self.timeout:
            raise ClusterLost(f"no node of the cluster has had room for a run for {now - self._last_capacity:.0f} s")

    def _wait_for_head(self) -> None:
        """Wait until the head accepts connections. Otherwise, every call of Ray would block without a message."""
        while not accepts_connections(ray.get_runtime_context().gcs_address):
            if not self._outage_announced:
                print(
                    "Ray: the head of the cluster does not answer. If it does not return within a minute, Ray ends this program; "
                    "the same command then continues the study.",
                    file=sys.stderr,
                    flush=True,
                )
            self._outage_announced = True
            time.sleep(RECONNECT_INTERVAL_SECONDS)
