"""Adapters between the queue of runs and Ray Tune: its search algorithm, scheduler and callback."""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ray import cloudpickle, tune
from ray.exceptions import RayTaskError
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import Searcher
from ray.tune.search.search_generator import SearchGenerator

from ablations.engine.scheduling.ray_internals.tune import end_cached_processes
from ablations.engine.scheduling.run_queue import NotPickled, RunQueue
from ablations.engine.trial import process_failures
from ablations.engine.trial.process_failures import ProcessFailure


class NextRun(NotPickled, Searcher):
    """A Tune searcher that suggests the next run of a queue."""

    def __init__(self, queue: RunQueue) -> None:
        super().__init__()
        self.queue = queue

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        job = self.queue.start(trial_id)
        return {"job": asdict(job)} if job else None

    def on_trial_complete(self, trial_id: str, result: Mapping[str, Any] | None = None, error: bool = False) -> None:
        if not error:  # `TuneCallback.on_trial_error` handles errors, and knows the reason
            self.queue.ended(trial_id)


class RunSearch(NotPickled, SearchGenerator):
    """A Tune search algorithm that is finished whenever no run may start, even if more follow later.

    Tune then ends each process whose run has ended, instead of keeping it for a run that may come.
    """

    def __init__(self, queue: RunQueue) -> None:
        super().__init__(NextRun(queue))
        self.queue = queue

    def is_finished(self) -> bool:
        # Without a run in progress, `TuneCallback` ends Tune by an exception: by itself, Tune would first write all trials' state.
        return bool(self.queue.active) and not self.queue.has_next()

    def save_to_dir(self, dirpath: str, session_str: str) -> None:
        """Save nothing."""


class RunScheduler(NotPickled, FIFOScheduler):
    """A Tune scheduler that withdraws runs that wait for resources when the study has fewer slots than before."""

    def __init__(self, queue: RunQueue) -> None:
        super().__init__()
        self.queue = queue
        self._controller: Any = None
        """Tune's controller, once a run was withdrawn."""

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        self.queue.active[trial.trial_id].trial = trial

    def on_trial_remove(self, tune_controller: Any, trial: Any) -> None:
        self._controller = tune_controller

    def choose_trial_to_run(self, tune_controller: Any) -> None:
        """Withdraw runs, and choose none: Tune then starts all trials, and gives free processes to trials without one first."""
        for run in self.queue.withdraw_excess():
            tune_controller.stop_trial(run.trial)
        # To Tune, a trial that was stopped before it started needs a process forever, so it keeps one more.
        waits = any(not run.started for run in self.queue.active.values())
        if self._controller and not waits and not self.queue.has_next():
            end_cached_processes(self._controller)


class NothingToRun(Exception):  # noqa: N818 - an event that ends Tune
    """No run is in progress and none may start now."""


class TuneCallback(NotPickled, tune.Callback):
    """Passes events of Tune's trials on to a queue, and calls a function in each round of Tune's loop.

    Args:
        queue: the runs.
        supervise: called about ten times a second. An exception that it raises ends Tune, with all of its processes.
    """

    def __init__(self, queue: RunQueue, supervise: Callable[[], None]) -> None:
        self.queue, self.supervise = queue, supervise

    def on_step_begin(self, **_: Any) -> None:
        """Raise NothingToRun if Tune has nothing to do. It would wait for ten minutes and ignore signals."""
        self.supervise()
        if not self.queue.active and not self.queue.has_next():
            raise NothingToRun

    def on_trial_start(self, *, trial: Any, **_: Any) -> None:
        self.queue.started(trial.trial_id)

    def on_trial_result(self, *, trial: Any, result: Mapping[str, Any], **_: Any) -> None:
        self.queue.reported(trial.trial_id, result)

    def on_trial_error(self, *, trial: Any, **_: Any) -> None:
        self.queue.crashed(trial.trial_id, last_failure(trial))


def explain(error: Exception) -> Exception:
    """Return the cause of an actor's crash; return errors that a task raised unchanged."""
    if isinstance(error, RayTaskError | ProcessFailure):
        return error
    actor = getattr(error, "actor_id", None)
    return process_failures.explain_failure([actor] if actor else [], [error])


def last_failure(trial: Any) -> ProcessFailure:
    """Return the failure that ended a trial. An error other than a process crash comes from Tune itself and counts as a crash."""
    if not trial.pickled_error_file:  # on this machine; Tune uploads a copy only when all trials have ended
        return ProcessFailure("its process ended for an unknown reason", "process")
    error = explain(cloudpickle.loads(Path(trial.pickled_error_file).read_bytes()))
    if isinstance(error, ProcessFailure):
        return error
    return ProcessFailure(f"{type(error).__name__}: {error}".splitlines()[0], "process")
