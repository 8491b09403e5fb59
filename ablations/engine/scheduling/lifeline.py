"""Whether there is still a cluster that can go on with a study."""

import sys
import time
from typing import Any

import ray
from ray import tune
from ray.exceptions import RpcError

from ablations.engine.environment.network import accepts_connections
from ablations.engine.scheduling.capacity import RunResources, has_autoscaler, is_own_node_lost
from ablations.engine.scheduling.tune_adapters import NotPickled

LOOK_SECONDS = 2.0


class ClusterLost(Exception):  # noqa: N818 - it is an event, and stops a study as a signal does
    """There is no cluster any more that could go on with a study."""


class ClusterMonitor(NotPickled, tune.Callback):
    """Stops a study whose cluster has gone, or has had no node for its runs for longer than the hang timeout."""

    def __init__(self, needs: RunResources, timeout: float) -> None:
        self.needs, self.timeout = needs, timeout
        self.checked = self.held = time.monotonic()
        self.told = False

    def on_step_begin(self, **_: Any) -> None:
        """Raises ClusterLost."""
        now = time.monotonic()
        if now < self.checked + LOOK_SECONDS:
            return
        self.checked = now
        while not accepts_connections(ray.get_runtime_context().gcs_address):  # whatever is asked of Ray now waits for the head
            if not self.told:
                print(
                    "Ray: the head of the cluster does not answer. Ray ends this program unless it is back within a minute; "
                    "the same command goes on then",
                    file=sys.stderr,
                    flush=True,
                )
            self.told = True
            time.sleep(1)
        try:
            lost, holds = is_own_node_lost(), self.needs.current_capacity() > 0 or has_autoscaler()
        except RpcError:
            return  # a head that is busy answers the next time
        if lost:
            raise ClusterLost("this machine has left the cluster: its Ray has ended")
        if holds:
            self.held = now
        elif now > self.held + self.timeout:
            raise ClusterLost(f"no node of the cluster has had room for a run for {now - self.held:.0f} s")
