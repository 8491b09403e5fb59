"""Ray Tune's callbacks and searchers, in the words of those who listen and decide."""

import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from ray import cloudpickle, tune
from ray.tune.search import Searcher

from ablations.engine.trial import process_failures
from ablations.engine.trial.job import Job
from ablations.engine.trial.trainable import end_training


class RunListener(Protocol):
    """Who wants to know how jobs fare. Called in the driver, by one thread; must return quickly."""

    def started(self, fingerprint: str) -> None: ...
    def reported(self, fingerprint: str, report: Mapping[str, Any]) -> None: ...
    def crashed(self, fingerprint: str, reason: str, *, outcome: str | None) -> None:
        """A run's process died. `outcome` is how that ends the run, None if it goes on from its checkpoint."""


class RunSource(Protocol):
    """Who decides what runs next, and what is not worth going on with. Called in the driver, by one thread; must answer quickly."""

    def next(self) -> Job | None:
        """The next run, or None if there is none now; asked again after every event, and ten times a second without one.

        A run that was stopped may be given again: it goes on from its last checkpoint.
        """

    @property
    def finished(self) -> bool:
        """Whether there will be no more runs; asked where `next` gave None."""

    def stops(self, fingerprint: str, report: Mapping[str, Any]) -> bool:
        """Whether a run ends with this report of an epoch. The listener hears of the epoch afterwards, and of no outcome."""


class NotPickled:
    """What belongs to this process. Tune pickles callbacks and searchers to restore experiments, which nothing here does."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


class TuneSearcherAdapter(NotPickled, Searcher):
    """What a RunSource decides, in Tune's words."""

    def __init__(self, source: RunSource) -> None:
        super().__init__()
        self.source = source
        self.fingerprints: dict[str, str] = {}
        """Of the runs that are under way, by Tune's name for the trial."""
        self.exhausted = False
        """Whether there was no further run when last asked."""

    @property
    def left(self) -> float:
        """How many runs are to come to their end yet, as far as is known; one more than there are keeps it being asked."""
        return len(self.fingerprints) + 1 if self.exhausted else math.inf

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        job = self.source.next()
        self.exhausted = job is None
        if job is None:
            return Searcher.FINISHED if self.source.finished else None
        self.fingerprints[trial_id] = job.fingerprint
        return {"job": asdict(job)}

    def stops(self, trial_id: str, result: Mapping[str, Any]) -> bool:
        return "epoch" in result and self.source.stops(self.fingerprints[trial_id], result)

    def on_trial_complete(self, trial_id: str, result: Mapping[str, Any] | None = None, error: bool = False) -> None:
        del self.fingerprints[trial_id]


class StopTrainingOnCompletion(NotPickled, tune.Callback):
    """Ends the training of a stopped trial at once. Tune lets it wait in its report until its process is wanted again."""

    def on_trial_complete(self, *, trial: Any, **_: Any) -> None:
        if "epoch" in trial.last_result:
            trial.temporary_state.ray_actor.execute.remote(end_training)


class TuneCallbackAdapter(NotPickled, tune.Callback):
    """Tune's callbacks, in the words of a RunListener."""

    def __init__(self, listener: RunListener) -> None:
        self.listener = listener

    def on_trial_start(self, *, trial: Any, **_: Any) -> None:
        self.listener.started(trial.config["job"]["fingerprint"])

    def on_trial_result(self, *, trial: Any, result: Mapping[str, Any], **_: Any) -> None:
        self.listener.reported(trial.config["job"]["fingerprint"], result)

    def on_trial_recover(self, *, trial: Any, **_: Any) -> None:
        self.listener.crashed(trial.config["job"]["fingerprint"], _death(trial).reason, outcome=None)

    def on_trial_error(self, *, trial: Any, **_: Any) -> None:
        death = _death(trial)
        self.listener.crashed(trial.config["job"]["fingerprint"], death.reason, outcome=death.outcome)


def _death(trial: Any) -> process_failures.ProcessFailure:
    """The last death of a trial. What else ends one is an error of Tune's own."""
    # Where Tune puts it; `trial.get_pickled_error()` looks where Tune would upload it to at the end.
    error = cloudpickle.loads(Path(trial.pickled_error_file).read_bytes())
    return (
        error
        if isinstance(error, process_failures.ProcessFailure)
        else process_failures.ProcessFailure(f"{type(error).__name__}: {error}".splitlines()[0], "process")
    )
