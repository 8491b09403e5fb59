"""What Ray Tune's loop does otherwise here. It has no public door to any of this: the version of Ray is pinned."""

import math
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray
from ray.air.execution._internal import RayActorManager
from ray.exceptions import RayTaskError, RpcError
from ray.tune import tune
from ray.tune.execution import class_cache, tune_controller

from ablations.engine.trial import process_failures
from ablations.engine.trial.liveness import START_TIMEOUT_SECONDS, StallDetector, heartbeat_interval

MAX_STARTING = 200
"""How many processes may start at the same time; Tune's own number for grids."""
IDLE_SECONDS = 0.1
"""How long to wait before a searcher is asked again while nothing runs."""


def install(places: Callable[[], int]) -> None:
    """From now on, Tune runs with these, and with as many runs at a time as `places` says, which may change at any time."""
    Controller.places = staticmethod(places)
    tune_controller.RayActorManager = Actors
    tune.TuneController = Controller
    # Tune would put AWS's keys of this process into logs and onto command lines that everybody can read. Nodes have their own.
    class_cache.ENV_VARS_TO_PROPAGATE = {name for name in class_cache.ENV_VARS_TO_PROPAGATE if not name.startswith("AWS_")}


class Controller(tune_controller.TuneController):
    """Hears signals at all times, keeps no more processes than it may have and has something to do for, and is quick to stop."""

    places: Callable[[], int]

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._losses: defaultdict[str, process_failures.NodeLossBudget] = defaultdict(process_failures.NodeLossBudget)
        """Of nodes, by trial."""
        self._silence = StallDetector()

    def _end_hung_processes(self) -> None:
        """Kill the processes of trials that stand still. Tune would wait for them without end."""
        trials = {
            handle._actor_id.hex(): (trial, handle)
            for trial, actor in self._trial_to_actor.items()
            if (handle := self._handle(actor)) is not None
        }
        timeouts = {name: trial.config["job"]["hang_timeout"] for name, (trial, _) in trials.items()}
        if not self._silence.should_poll(heartbeat_interval(min(timeouts.values(), default=math.inf))):
            return
        with suppress(RpcError):  # a head that is busy answers the next time
            beats = {name: process_failures.read_record(name).get("beats") for name in trials}
            silent = self._silence.update(beats)
            for name, (_, handle) in trials.items():
                starts = beats[name] is None
                limit = max(timeouts[name], START_TIMEOUT_SECONDS) if starts else timeouts[name]
                if silent[name] > limit + 2 * heartbeat_interval(limit):
                    process_failures.record_stall(name, silent[name])
                    ray.kill(handle)

    def _handle(self, actor: Any) -> Any:
        """Return Ray's handle of a process that Tune has asked for; None while it waits for resources."""
        return self._actor_manager._live_actors_to_ray_actors_resources.get(actor, (None,))[0]

    @property
    def limit(self) -> int:
        return type(self).places()

    def _process_trial_failure(self, trial: Any, exception: Exception) -> None:
        if isinstance(exception, process_failures.ProcessFailure):
            if trial.status == trial.PENDING:
                # Of a process that dies as it is handed from one trial to the next, Tune tells twice, and the second time would be
                # the trial's end. It waits for its next process already.
                self._resetting_trials.discard(trial)
                return
            # Tune does not count the loss of a node, however often it happens.
            exception = self._losses[trial.trial_id].charge(exception, trial.run_metadata.last_result.get("epoch", 0))
        super()._process_trial_failure(trial, exception)

    def _maybe_update_trial_queue(self) -> None:
        self._end_hung_processes()
        if self.limit:
            # One whose process starts is pending to Tune, but nobody waits with it for room.
            self._max_pending_trials = max(1, min(MAX_STARTING, self.limit - len(self._running_trials)))
            super()._maybe_update_trial_queue()

    def _maybe_add_actors(self) -> None:
        excess = max(0, len(self._trial_to_actor) - self.limit)
        for actor in self._actor_manager.pending_actors[::-1][:excess]:
            self._withdraw(actor)
        # As many as there may be may be asked for at the same time.
        begun = len(self._trial_to_actor) - self._actor_manager.num_pending_actors
        self._max_pending_trials = max(1, min(MAX_STARTING, self.limit - begun))
        if begun >= self.limit:
            self._cleanup_cached_actors(force_all=True)  # another run would be one too many
        elif len(self._trial_to_actor) < self.limit or self._actor_cache.num_cached_objects:
            super()._maybe_add_actors()
        if not self._actor_manager.num_total_actors:
            time.sleep(IDLE_SECONDS)  # Tune does not wait where there is nothing to wait for

    def _maybe_reuse_cached_actor(self, trial: Any) -> bool:
        # Tune gives up the process that starts for a trial as soon as another one is free for it. Where runs end more often than
        # processes start, no further one would ever be there. So trials that have none yet go first.
        if self._starts(trial) and any(other not in self._trial_to_actor for other in self._pending_trials):
            return False
        reused: bool = super()._maybe_reuse_cached_actor(trial)
        return reused

    def _starts(self, trial: Any) -> bool:
        actor = self._trial_to_actor.get(trial)
        return actor is not None and self._actor_manager.is_actor_started(actor)

    def _withdraw(self, actor: Any) -> None:
        """Takes back what was asked of the cluster for a run that waits: it would take what others are to have."""
        trial = self._actor_to_trial.pop(actor)
        del self._trial_to_actor[trial]
        self._unstage_trial_with_resources(trial)
        self._actor_manager.remove_actor(actor)
        self._pending_trials_list.insert(0, trial)

    def _maybe_cache_trial_actor(self, trial: Any) -> bool:
        # One too many is given back instead of getting another run.
        cached: bool = len(self._trial_to_actor) <= self.limit and super()._maybe_cache_trial_actor(trial)
        return cached

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
    explained: Exception = (
        error if isinstance(error, RayTaskError) else process_failures.explain_failure([actor] if actor else [], [error])
    )
    return explained
