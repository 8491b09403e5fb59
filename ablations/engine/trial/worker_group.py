"""A Ray Train worker group as the process that leads it sees it: its reports, its signs of life, and its end at once.

Ray Train's own way to Tune, `TuneReportCallback`, deadlocks: Tune's session has room for one report, and the only thread that reads
it also forwards the reports of the group. Here the leader's own thread forwards them.
"""

import os
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import ray
from ray._private.state import state
from ray._raylet import ActorID, PlacementGroupID
from ray.core.generated.gcs_pb2 import PlacementGroupTableData
from ray.exceptions import GetTimeoutError, RayActorError
from ray.train import UserCallback
from ray.train._internal.session import get_session
from ray.train.v2._internal.constants import ENV_VARS_TO_PROPAGATE
from ray.train.v2._internal.execution.callback import ControllerCallback, WorkerGroupCallback
from ray.util.placement_group import PlacementGroup, remove_placement_group
from ray.util.queue import Queue
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ablations.engine.trial.liveness import ProcessHeartbeat

CONTROLLER = "controller"
ABORT_TIMEOUT_SECONDS = 10.0


def propagate_cluster_address() -> None:
    """Tell the processes of a group which cluster is theirs. Ray Train's cleaner asks that of the machine, and finds no answer, or
    the wrong one, where there is another cluster on it."""
    os.environ["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address
    ENV_VARS_TO_PROPAGATE.add("RAY_ADDRESS")


def make_queue() -> Queue:
    """Return a queue for the reports of a group, on this node: the leader does not depend on another one."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here})


class QueueReports(UserCallback):
    """Puts each report of rank 0 into a queue, in the controller's process."""

    def __init__(self, queue: Queue) -> None:
        self.queue = queue

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        self.queue.put(metrics[0])


class ShareControllerHandle(ControllerCallback, WorkerGroupCallback):
    """Puts the controller's handle into a queue when it starts, and then beats as long as its loop goes round."""

    def __init__(self, queue: Queue, name: str, seconds: float) -> None:
        """Beat under a name, every so many seconds."""
        self.queue, self.name, self.seconds = queue, name, seconds

    def after_controller_start(self, train_run_context: Any) -> None:
        self.heartbeat = ProcessHeartbeat(self.name, self.seconds)
        self.queue.put({CONTROLLER: ray.get_runtime_context().current_actor})

    def after_controller_state_update(self, previous_state: Any, current_state: Any) -> None:
        self.heartbeat.step()
        self.heartbeat.record.update(trains=type(current_state).__name__ == "RunningState")

    def after_worker_group_poll_status(self, worker_group_status: Any) -> None:
        self.heartbeat.step()

    def after_controller_finish(self, result: Any) -> None:
        self.heartbeat.stop()


def store_controller(report: Mapping[str, Any]) -> bool:
    """Return whether this item of a queue is a controller's handle; `abort` ends the group of the last one."""
    if CONTROLLER in report:
        get_session().set_state(CONTROLLER, report[CONTROLLER])
    return CONTROLLER in report


def abort_group(timeout: float = ABORT_TIMEOUT_SECONDS) -> None:
    """End the group of this process's trial. Its processes are dead when this returns, and what it had reserved of the cluster is
    free. If its controller does not answer in time, `remove_orphaned_placement_groups` frees it a little later."""
    controller = get_session().get_state(CONTROLLER)
    if controller is None:
        return
    with suppress(RayActorError):  # the last that it does is to end its own process
        try:
            ray.get(controller.abort.remote(), timeout=timeout)
        except GetTimeoutError:
            ray.kill(controller)
    release_controller()


def release_controller() -> None:
    """Let go of the controller, whose process ends when nobody has its handle."""
    get_session().set_state(CONTROLLER, None)


def remove_orphaned_placement_groups() -> None:
    """Free what groups of this program's job had reserved whose controller has died.

    Ray frees a placement group when its creator and the whole job have ended. Ray Train leaves the rest to an actor of its own,
    which needs the cluster's dashboard.
    """
    context = ray.get_runtime_context()
    table = state._connect_and_get_accessor().get_placement_group_table()
    for data in map(PlacementGroupTableData.FromString, table):
        of_actor = data.creator_job_id.hex() == context.get_job_id() and not ActorID(data.creator_actor_id).is_nil()
        if of_actor and data.creator_actor_dead and data.state != PlacementGroupTableData.REMOVED:
            remove_placement_group(PlacementGroup(PlacementGroupID(data.placement_group_id)))
