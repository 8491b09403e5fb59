"""Private parts of Ray Tune: its handling of crashed actors, and the processes that it keeps for the next trial."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ablations.engine.scheduling.ray_internals.compatibility import Feature, Part, is_available, needs

if TYPE_CHECKING:
    from ray.air.execution._internal import RayActorManager as _ActorManager
else:
    _ActorManager = object  # `install_crash_handler` puts `HandleCrashes` in front of Tune's own class

_TUNE = "ray.tune.execution.tune_controller:TuneController"
_ACTORS = "ray.air.execution._internal:RayActorManager"

CRASHES = Feature(
    "retries after Ray has killed a process for memory (such a kill ends the study; the same command continues it)",
    (
        Part("ray.tune.execution.tune_controller:RayActorManager", caller=f"{_TUNE}.__init__"),
        Part(f"{_ACTORS}._actor_start_failed", "self, tracked_actor, exception", caller=f"{_ACTORS}._try_start_actors"),
        Part(
            f"{_ACTORS}._actor_task_failed", "self, tracked_actor_task, exception", caller=f"{_ACTORS}._schedule_tracked_actor_task"
        ),
    ),
)

CACHED_PROCESSES = Feature(
    "giving up the last process of a study that has withdrawn runs for another study",
    (Part(f"{_TUNE}._cleanup_cached_actors", "self, force_all=False"),),
)


def install_crash_handler(explain: Callable[[Exception], Exception]) -> None:
    """Make Tune handle each crash of an actor as the error that `explain` returns for it, from now on."""
    from ray.air.execution._internal import RayActorManager
    from ray.tune.execution import tune_controller

    if is_available(CRASHES):
        tune_controller.RayActorManager = type("Actors", (HandleCrashes, RayActorManager), {"explain": staticmethod(explain)})


class HandleCrashes(_ActorManager):
    """Replaces errors about crashed actors.

    Tune raises an error on Ray's OutOfMemoryError, which would end all runs, and retries a trial forever whose nodes are preempted.
    """

    explain: Callable[[Exception], Exception]

    def _actor_start_failed(self, tracked_actor: Any, exception: Exception) -> None:
        super()._actor_start_failed(tracked_actor, self.explain(exception))

    def _actor_task_failed(self, tracked_actor_task: Any, exception: Exception) -> None:
        super()._actor_task_failed(tracked_actor_task, self.explain(exception))


@needs(CACHED_PROCESSES, otherwise=None)
def end_cached_processes(controller: Any) -> None:
    """End the processes that a `TuneController` keeps for its next trials."""
    controller._cleanup_cached_actors(force_all=True)
