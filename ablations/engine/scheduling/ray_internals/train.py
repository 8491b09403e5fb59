"""Private parts of Ray Train: the environment, the controller and the placement groups of a worker group."""

import os
from typing import TYPE_CHECKING, Any, Protocol

from ablations.engine.scheduling.ray_internals.compatibility import Feature, Part, is_available, needs

if TYPE_CHECKING:
    from ray.train.v2._internal.execution.callback import ControllerCallback

TRAIN_ENVIRONMENT = {
    # Each report waits for the controller's next poll. Epochs here can be shorter than Train's default of 2 s.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    # In every trial, the watcher costs a process, and the metrics exporter an import of opencensus.
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
}
"""Undocumented environment variables for the process that leads a worker group."""

_CALLBACKS = "ray.train.v2._internal.execution.callback"
_CONTROLLER = "ray.train.v2._internal.execution.controller.controller:TrainController"
_GROUP = "ray.train.v2._internal.execution.worker_group.worker_group:WorkerGroup"

TRAIN_ADDRESS = Feature(
    "clean-up of worker groups on a machine with several clusters",
    (
        Part(
            "ray.train.v2._internal.constants:ENV_VARS_TO_PROPAGATE",
            caller="ray.train.v2._internal.constants:get_env_vars_to_propagate",
        ),
    ),
)

TRAIN_CONTROLLER = Feature(
    "early stop of hung worker groups",
    (
        Part(f"{_CALLBACKS}:ControllerCallback.after_controller_start", "self, train_run_context", f"{_CONTROLLER}._start"),
        Part(
            f"{_CALLBACKS}:ControllerCallback.after_controller_state_update",
            "self, previous_state, current_state",
            f"{_CONTROLLER}._set_state",
        ),
        Part(f"{_CALLBACKS}:ControllerCallback.after_controller_finish", "self, result", f"{_CONTROLLER}.run"),
        Part(
            f"{_CALLBACKS}:WorkerGroupCallback.after_worker_group_poll_status",
            "self, worker_group_status",
            f"{_GROUP}.poll_status",
        ),
        Part("ray.train.v2._internal.execution.controller.state:RunningState", caller=f"{_CONTROLLER}._step"),
        Part(f"{_CONTROLLER}.abort", "self"),
    ),
)

TRAIN_ERRORS = Feature(
    "telling errors of Ray Train from those of a run", (Part("ray.train.v2._internal.exceptions:RayTrainError"),)
)

GROUP_FAILURES = Feature(
    "causes of crashes of workers, and waiting for replacements of lost nodes (a shortage of nodes counts as a failure of the run)",
    (
        Part("ray.train.v2._internal.exceptions:WorkerHealthCheckFailedError", attributes="health_check_failure"),
        Part(
            "ray.train.v2._internal.exceptions:InsufficientClusterResourcesError",
            caller=f"{_GROUP}._check_cluster_resources_and_raise_if_insufficient",
        ),
    ),
)

ORPHANED_GROUPS = Feature(
    "freeing what a crashed worker group had reserved",
    (
        Part("ray._private.state:state._connect_and_get_accessor", ""),
        Part("ray._raylet:GlobalStateAccessor", attributes="get_placement_group_table"),
        Part("ray._raylet:ActorID", attributes="is_nil"),
        Part("ray._raylet:PlacementGroupID"),
        Part(
            "ray.core.generated.gcs_pb2:PlacementGroupTableData",
            attributes="CREATOR_JOB_ID_FIELD_NUMBER CREATOR_ACTOR_ID_FIELD_NUMBER CREATOR_ACTOR_DEAD_FIELD_NUMBER "
            "STATE_FIELD_NUMBER PLACEMENT_GROUP_ID_FIELD_NUMBER REMOVED",
        ),
    ),
)


@needs(TRAIN_ADDRESS, otherwise=None)
def propagate_cluster_address() -> None:
    """Pass this process's cluster on to the processes of its worker group.

    Ray Train's clean-up process searches for a cluster on its machine. If several run there, it finds none or the wrong one.
    """
    import ray
    from ray.train.v2._internal.constants import ENV_VARS_TO_PROPAGATE

    os.environ["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address
    ENV_VARS_TO_PROPAGATE.add("RAY_ADDRESS")


class TrainObserver(Protocol):
    """Observes the loop of a worker group's controller, in the controller's process."""

    def started(self) -> None:
        """Handle the start of the loop."""

    def stepped(self, trains: bool | None) -> None:
        """Handle a round of the loop. `trains` tells whether the group trains now; None if the controller's state is unchanged."""

    def finished(self) -> None:
        """Handle the end of the loop."""


@needs(TRAIN_CONTROLLER, otherwise=[])
def controller_callbacks(observer: TrainObserver) -> "list[ControllerCallback]":
    """Return callbacks for `RunConfig` that report the controller's loop to an observer; empty if the feature is off."""
    from ray.train.v2._internal.execution.callback import ControllerCallback, WorkerGroupCallback
    from ray.train.v2._internal.execution.controller.state import RunningState

    class ObserveController(ControllerCallback, WorkerGroupCallback):
        """Callback with the observer as an attribute.

        Train pickles callbacks twice. If the methods captured the observer, all copies of this class would share it.
        """

        def __init__(self, observer: TrainObserver) -> None:
            self.observer = observer

        def after_controller_start(self, train_run_context: Any) -> None:
            self.observer.started()

        def after_controller_state_update(self, previous_state: Any, current_state: Any) -> None:
            self.observer.stepped(isinstance(current_state, RunningState))

        def after_worker_group_poll_status(self, worker_group_status: Any) -> None:
            self.observer.stepped(None)

        def after_controller_finish(self, result: Any) -> None:
            self.observer.finished()

    return [ObserveController(observer)]


@needs(TRAIN_ERRORS, otherwise=False)
def is_train_error(error: BaseException) -> bool:
    """Return whether Ray Train itself raised this error, rather than the code of a run."""
    from ray.train.v2._internal.exceptions import RayTrainError

    return isinstance(error, RayTrainError)


@needs(GROUP_FAILURES, otherwise=False)
def is_resource_shortage(error: BaseException) -> bool:
    """Return whether Train did not start a group because the cluster has too few resources for it."""
    from ray.train.v2._internal.exceptions import InsufficientClusterResourcesError

    return isinstance(getattr(error, "controller_failure", None), InsufficientClusterResourcesError)


def crash_of_worker(failure: Exception) -> Exception:
    """Return the error that Train received from a crashed worker; the failure itself if Train wraps none or the feature is off."""
    if not is_available(GROUP_FAILURES):
        return failure
    from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError

    return failure.health_check_failure if isinstance(failure, WorkerHealthCheckFailedError) else failure


@needs(ORPHANED_GROUPS, otherwise=None)
def remove_orphaned_placement_groups() -> None:
    """Remove the placement groups of this program's worker groups whose controllers have crashed.

    Ray itself removes a placement group only when both its creator and the whole job have ended. Ray Train removes it earlier by
    an actor that needs the cluster's dashboard, which may be missing.
    """
    import ray
    from ray._private.state import state
    from ray._raylet import ActorID, PlacementGroupID
    from ray.core.generated.gcs_pb2 import PlacementGroupTableData
    from ray.util.placement_group import PlacementGroup, remove_placement_group

    job = ray.get_runtime_context().get_job_id()
    for data in map(PlacementGroupTableData.FromString, state._connect_and_get_accessor().get_placement_group_table()):
        of_actor = data.creator_job_id.hex() == job and not ActorID(data.creator_actor_id).is_nil()
        if of_actor and data.creator_actor_dead and data.state != PlacementGroupTableData.REMOVED:
            remove_placement_group(PlacementGroup(PlacementGroupID(data.placement_group_id)))
