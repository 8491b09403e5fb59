"""Private parts of Ray Tune: its loop, its actors, and the session of a trial."""

import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ablations.engine.scheduling.ray_internals.compatibility import Feature, Part, is_available, needs

if TYPE_CHECKING:
    from ray.air.execution._internal import RayActorManager as _ActorManager
    from ray.tune.execution.tune_controller import TuneController as _Controller
    from ray.tune.search import BasicVariantGenerator, ConcurrencyLimiter
else:
    _ActorManager = _Controller = object  # `install_tune_policy` puts the mixins below in front of Tune's own classes

IDLE_SECONDS = 0.1
"""Pause before Tune asks its searcher again while nothing runs, in seconds."""
MAX_STARTING = 200
"""Maximum number of processes that start at the same time. Tune has the same limit for grids."""

_TUNE = "ray.tune.execution.tune_controller:TuneController"
_ACTORS = "ray.air.execution._internal:RayActorManager"
_TRIAL = "ray.tune.experiment.trial:Trial"

HUNG_TRIALS = Feature(
    "early stop of hung trials",
    (
        Part("ray.tune.tune:TuneController", caller="ray.tune.tune:run"),
        Part(f"{_TUNE}._maybe_update_trial_queue", "self", caller=f"{_TUNE}.step"),
        Part(_TUNE, attributes="_trial_to_actor _actor_manager"),
        Part(_ACTORS, attributes="_live_actors_to_ray_actors_resources"),
        Part("ray.actor:ActorHandle", attributes="_actor_id"),
    ),
)

CONCURRENCY = Feature(
    "a number of runs that follows the cluster's size",
    (
        Part("ray.tune.tune:TuneController", caller="ray.tune.tune:run"),
        Part(f"{_TUNE}._maybe_update_trial_queue", "self", caller=f"{_TUNE}.step"),
        Part(f"{_TUNE}._maybe_add_actors", "self", caller=f"{_TUNE}.step"),
        Part(f"{_TUNE}._maybe_reuse_cached_actor", "self, trial", caller=f"{_TUNE}._maybe_add_actors"),
        Part(f"{_TUNE}._maybe_cache_trial_actor", "self, trial", caller=f"{_TUNE}._schedule_trial_stop"),
        Part(f"{_TUNE}._cleanup_cached_actors", "self, force_all=False"),
        Part(f"{_TUNE}._unstage_trial_with_resources", "self, trial"),
        Part(
            _TUNE,
            attributes="_trial_to_actor _actor_to_trial _actor_manager _actor_cache _pending_trials _pending_trials_list "
            "_max_pending_trials _running_trials",
        ),
        Part(f"{_ACTORS}.remove_actor", "self, tracked_actor, kill=False, stop_future=None"),
        Part(f"{_ACTORS}.is_actor_started", "self, tracked_actor"),
        Part(_ACTORS, attributes="pending_actors num_pending_actors num_total_actors"),
    ),
)

IDLE_SEARCH = Feature(
    "prompt reaction to Ctrl-C while a search has nothing to run",
    (
        Part("ray.tune.tune:TuneController", caller="ray.tune.tune:run"),
        Part(f"{_TUNE}._update_trial_queue", "self, blocking=False, timeout=600", caller=f"{_TUNE}._maybe_update_trial_queue"),
        Part(f"{_TUNE}._cleanup_cached_actors", "self, force_all=False"),
        Part(_TUNE, attributes="_pending_trials"),
    ),
)

TRIAL_FAILURES = Feature(
    "the limit of lost nodes for each run",
    (
        Part("ray.tune.tune:TuneController", caller="ray.tune.tune:run"),
        Part(f"{_TUNE}._process_trial_failure", "self, trial, exception", caller=f"{_TUNE}._trial_task_failure"),
        Part(_TUNE, attributes="_resetting_trials"),
    ),
)

NO_SNAPSHOTS = Feature(
    "a quick end of Tune (it saves the state of all trials)",
    (
        Part("ray.tune.tune:TuneController", caller="ray.tune.tune:run"),
        Part(f"{_TUNE}.save_to_dir", "self", caller=f"{_TUNE}.checkpoint"),
        Part(_TUNE, attributes="experiment_state_path"),
    ),
)

CRASH_CAUSES = Feature(
    "causes of crashes, and retries after a kill for memory",
    (
        Part("ray.tune.execution.tune_controller:RayActorManager", caller=f"{_TUNE}.__init__"),
        Part(f"{_ACTORS}._actor_start_failed", "self, tracked_actor, exception", caller=f"{_ACTORS}._try_start_actors"),
        Part(
            f"{_ACTORS}._actor_task_failed", "self, tracked_actor_task, exception", caller=f"{_ACTORS}._schedule_tracked_actor_task"
        ),
    ),
)

PARALLEL_RUNS = Feature(
    "training several runs at a time",
    (
        Part("ray.tune.search:BasicVariantGenerator", attributes="max_concurrent"),
        Part("ray.tune.search:ConcurrencyLimiter", attributes="max_concurrent"),
    ),
)

LAST_REPORTS = Feature(
    "telling runs that train from those that wait (each run may lose a limited number of nodes in all, not per epoch)",
    (
        Part(_TRIAL, attributes="run_metadata"),
        Part("ray.tune.experiment.trial:_TrainingRunMetadata", attributes="last_result"),
    ),
)

FAILURE_CAUSES = Feature("causes of failures of runs", (Part(f"{_TRIAL}.pickled_error_file"),))


class TunePolicy(Protocol):
    """Decisions that Tune's loop leaves to this program. Called in the driver, by one thread."""

    def max_runs(self) -> int:
        """Return the number of runs that may hold resources of the cluster now."""

    def hung_trials(self, trials: Mapping[str, Any]) -> Iterable[str]:
        """Return the IDs of the actors to kill, because they hang. `trials` has Tune's trials by actor ID."""

    def judge_failure(self, trial: Any, error: Exception) -> Exception | None:
        """Return the failure to count for a trial; None if Tune has reported the same failure before."""

    def explain(self, error: Exception) -> Exception:
        """Return the cause of an actor's crash; return errors other than crashes unchanged."""


def install_tune_policy(policy: TunePolicy) -> None:
    """Make Tune follow a policy from now on. A feature whose private parts have changed stays off."""
    from ray.air.execution._internal import RayActorManager
    from ray.tune import tune
    from ray.tune.execution import tune_controller

    mixins: Sequence[tuple[Feature, type]] = (
        (HUNG_TRIALS, KillHungTrials),
        (CONCURRENCY, LimitRuns),
        (IDLE_SEARCH, WaitBriefly),
        (TRIAL_FAILURES, JudgeFailures),
        (NO_SNAPSHOTS, SaveNothing),
    )
    chosen = [mixin for feature, mixin in mixins if is_available(feature)]
    tune.TuneController = type("Controller", (*chosen, tune_controller.TuneController), {"policy": policy})
    if is_available(CRASH_CAUSES):
        tune_controller.RayActorManager = type("Actors", (ExplainCrashes, RayActorManager), {"policy": policy})


class _WithPolicy(_Controller):
    policy: TunePolicy


class KillHungTrials(_WithPolicy):
    """Kills processes of trials that hang. Tune would wait for them forever."""

    def _maybe_update_trial_queue(self) -> None:
        live = self._actor_manager._live_actors_to_ray_actors_resources  # without actors that wait for resources
        handles = {trial: live[actor][0] for trial, actor in self._trial_to_actor.items() if actor in live}
        trials = {handle._actor_id.hex(): (trial, handle) for trial, handle in handles.items()}
        for actor_id in self.policy.hung_trials({actor_id: trial for actor_id, (trial, _) in trials.items()}):
            import ray

            ray.kill(trials[actor_id][1])
        super()._maybe_update_trial_queue()


class LimitRuns(_WithPolicy):
    """Keeps at most `max_runs` processes of trials, including those that are starting."""

    def _maybe_update_trial_queue(self) -> None:
        if limit := self.policy.max_runs():
            # Tune counts a trial as pending while its process starts, although it already takes one of the slots.
            self._max_pending_trials = max(1, min(MAX_STARTING, limit - len(self._running_trials)))
            super()._maybe_update_trial_queue()

    def _maybe_add_actors(self) -> None:
        limit = self.policy.max_runs()
        excess = max(0, len(self._trial_to_actor) - limit)
        for actor in self._actor_manager.pending_actors[::-1][:excess]:
            self._withdraw(actor)
        # Tune may request all free slots at the same time.
        begun = len(self._trial_to_actor) - self._actor_manager.num_pending_actors
        self._max_pending_trials = max(1, min(MAX_STARTING, limit - begun))
        if begun >= limit:
            self._cleanup_cached_actors(force_all=True)  # another run would be one too many
        elif len(self._trial_to_actor) < limit or self._actor_cache.num_cached_objects:
            super()._maybe_add_actors()
        if not self._actor_manager.num_total_actors:
            time.sleep(IDLE_SECONDS)  # with no actor to wait for, Tune's loop would spin

    def _withdraw(self, actor: Any) -> None:
        """Cancel the request for a waiting run's resources, so that other studies can have them."""
        trial = self._actor_to_trial.pop(actor)
        del self._trial_to_actor[trial]
        self._unstage_trial_with_resources(trial)
        self._actor_manager.remove_actor(actor)
        self._pending_trials_list.insert(0, trial)

    def _maybe_reuse_cached_actor(self, trial: Any) -> bool:
        # Tune drops the process that starts for a trial as soon as another one is free for it. Where runs end more often than
        # processes start, the number of processes would never grow. So trials without any process go first.
        actor = self._trial_to_actor.get(trial)
        starting = actor is not None and self._actor_manager.is_actor_started(actor)
        if starting and any(other not in self._trial_to_actor for other in self._pending_trials):
            return False
        reused: bool = super()._maybe_reuse_cached_actor(trial)
        return reused

    def _maybe_cache_trial_actor(self, trial: Any) -> bool:
        # A process above the limit ends instead of getting another run.
        cached: bool = len(self._trial_to_actor) <= self.policy.max_runs() and super()._maybe_cache_trial_actor(trial)
        return cached


class WaitBriefly(_WithPolicy):
    """Returns to Tune's loop soon if the searcher has nothing to run. Tune would keep asking for ten minutes and ignore signals."""

    def _update_trial_queue(self, blocking: bool = False, timeout: int = 600) -> bool:
        if super()._update_trial_queue():
            return True
        if not self._pending_trials:
            # Tune would keep the last process for the next trial, however late that comes. If the process crashed meanwhile, the
            # trial would fail.
            self._cleanup_cached_actors(force_all=True)
        if blocking:
            time.sleep(IDLE_SECONDS)
        return False


class JudgeFailures(_WithPolicy):
    """Lets the policy judge each failure of a trial. Tune itself never counts a lost node, so it would retry without limit."""

    def _process_trial_failure(self, trial: Any, exception: Exception) -> None:
        judged = self.policy.judge_failure(trial, exception)
        if judged is None:
            self._resetting_trials.discard(trial)  # the trial already waits for its next process
        else:
            super()._process_trial_failure(trial, judged)


class SaveNothing(_WithPolicy):
    """Writes an empty state of the experiment. Nothing restores it, and saving takes milliseconds for each trial so far."""

    def save_to_dir(self) -> None:
        path = Path(self.experiment_state_path)  # Tune checks that the file exists
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text('{"trial_data": []}')


class ExplainCrashes(_ActorManager):
    """Adds causes to crashes of actors.

    Tune does not handle Ray's OutOfMemoryError, which would end all runs, and treats a lost node like any crash.
    """

    policy: TunePolicy

    def _actor_start_failed(self, tracked_actor: Any, exception: Exception) -> None:
        super()._actor_start_failed(tracked_actor, self.policy.explain(exception))

    def _actor_task_failed(self, tracked_actor_task: Any, exception: Exception) -> None:
        super()._actor_task_failed(tracked_actor_task, self.policy.explain(exception))


@needs(PARALLEL_RUNS, otherwise=None)
def set_max_trials(searcher: "BasicVariantGenerator | ConcurrencyLimiter", limit: int) -> None:
    """Set the maximum number of trials that a searcher may have in progress."""
    searcher.max_concurrent = limit


@needs(LAST_REPORTS, otherwise={})
def last_report(trial: Any) -> Mapping[str, Any]:
    """Return the last report of a trial; empty before the first one.

    Tune's own `Trial.last_result` would then wait for the trial's process.
    """
    report: Mapping[str, Any] = trial.run_metadata.last_result
    return report


@needs(FAILURE_CAUSES, otherwise=None)
def last_error(trial: Any) -> Exception | None:
    """Return the error that ended a trial's process last; None if it is unknown.

    The file is on this machine. `Trial.get_pickled_error` reads the copy that Tune uploads only when all trials have ended.
    """
    from ray import cloudpickle

    error: Exception = cloudpickle.loads(Path(trial.pickled_error_file).read_bytes())
    return error
