"""What Ray Tune's loop does otherwise here. It has no public door to any of this: the version of Ray is pinned."""

import time
from pathlib import Path
from typing import Any

from ray.air.execution._internal import RayActorManager
from ray.exceptions import RayTaskError
from ray.tune import tune
from ray.tune.execution import tune_controller

from ablations.engine import deaths

IDLE_SECONDS = 0.1
"""How long to wait before a searcher is asked again while nothing runs."""


def install() -> None:
    """From now on, Tune runs with these."""
    tune_controller.RayActorManager = Actors
    tune.TuneController = Controller


class Controller(tune_controller.TuneController):
    """Hears signals at all times, keeps no process that has nothing to do, and is quick to stop."""

    def _update_trial_queue(self, blocking: bool = False, timeout: int = 0) -> bool:
        # Where nothing runs and the searcher has nothing now, Tune's own would ask for ten minutes and hear no signal meanwhile.
        if super()._update_trial_queue():
            return True
        if not self._pending_trials:
            # Tune would keep the last process for the next trial, however late that comes; and the trial would fail if it died.
            self._cleanup_cached_actors(force_all=True)
        if blocking:
            time.sleep(IDLE_SECONDS)
        return False

    def save_to_dir(self) -> None:
        # Nothing restores it, and it takes some milliseconds for each trial there ever was, also before a signal is obeyed.
        # That there is one is asked for.
        path = Path(self.experiment_state_path)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text('{"trial_data": []}')


class Actors(RayActorManager):
    """Tells Tune why processes died.

    Ray's killing for memory is an exception that Tune does not know, which would end all runs; and a lost node is a failure to it
    like any other. Both are decided in methods without a public door, the errors of which go to all others.
    """

    def _actor_start_failed(self, tracked_actor: Any, exception: Exception) -> None:
        super()._actor_start_failed(tracked_actor, _explained(exception))

    def _actor_task_failed(self, tracked_actor_task: Any, exception: Exception) -> None:
        super()._actor_task_failed(tracked_actor_task, _explained(exception))


def _explained(error: Exception) -> Exception:
    actor = getattr(error, "actor_id", None)
    explained: Exception = error if isinstance(error, RayTaskError) else deaths.explain([actor] if actor else [], [error])
    return explained
