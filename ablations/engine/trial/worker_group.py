"""A Ray Train worker group as seen from the process that leads it: its reports, its heartbeat, and how it is aborted.

Ray Train's own bridge to Tune, `TuneReportCallback`, deadlocks: Tune's session stores one report, and the only thread that reads it
also forwards the reports of the group. Here, the thread that trains in the leader forwards them.
"""

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError
from ray.train import UserCallback
from ray.util.queue import Queue
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ablations.engine.trial.liveness import ProcessHeartbeat

CONTROLLER = "controller"
"""Key of the queue item that contains the controller's handle."""
ABORT_TIMEOUT_SECONDS = 10.0
"""Timeout for the controller to end its group, in seconds."""

_controllers: list[Any] = []
"""Handle of the controller of this process's group, if it leads one."""


def make_queue() -> Queue:
    """Return a queue for the reports of a group. It runs on this node, so that the leader depends on no other node."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here})


class QueueReports(UserCallback):
    """Puts each report of rank 0 into a queue. Runs in the controller's process."""

    def __init__(self, queue: Queue) -> None:
        self.queue = queue

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        self.queue.put(metrics[0])


class ControllerHeartbeat:
    """A `TrainObserver` that puts the controller's handle into a queue, and sends a heartbeat for each round of its loop."""

    def __init__(self, queue: Queue, name: str, interval_seconds: float) -> None:
        """
        Args:
            queue: receives the controller's handle.
            name: name of the controller's record.
            interval_seconds: time between two heartbeats.
        """
        self.queue, self.name, self.interval_seconds = queue, name, interval_seconds

    def started(self) -> None:
        self._heartbeat = ProcessHeartbeat(self.name, self.interval_seconds)
        self.queue.put({CONTROLLER: ray.get_runtime_context().current_actor})

    def stepped(self, trains: bool | None) -> None:
        self._heartbeat.step()
        if trains is not None:
            self._heartbeat.record.update(trains=trains)

    def finished(self) -> None:
        self._heartbeat.stop()


def store_controller(item: Mapping[str, Any]) -> bool:
    """Return whether an item of the queue is a controller's handle, and keep the handle for `abort_group`."""
    if CONTROLLER in item:
        _controllers[:] = [item[CONTROLLER]]
    return CONTROLLER in item


def abort_group(timeout_seconds: float = ABORT_TIMEOUT_SECONDS) -> None:
    """Abort the group that this process leads.

    Its processes have ended when this returns, and its resources are free. If its controller does not answer within the timeout, it
    is killed, and the driver's `remove_orphaned_placement_groups` frees the resources a little later.
    """
    if not _controllers:
        return
    with suppress(RayActorError):  # the controller exits as the last step of the abort
        try:
            ray.get(_controllers[0].abort.remote(), timeout=timeout_seconds)
        except GetTimeoutError:
            ray.kill(_controllers[0])
    release_controller()


def release_controller() -> None:
    """Drop the controller's handle. The controller's process ends when nothing refers to it."""
    _controllers.clear()
