"""Adapters between this project's listener and source of runs and Ray Tune's callbacks and searchers."""

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Protocol

from ray import tune
from ray.tune.search import Searcher

from ablations.engine.scheduling.ray_internals.tune import last_error
from ablations.engine.trial import process_failures
from ablations.engine.trial.job import Job


class RunListener(Protocol):
    """Receives events of runs. Called in the driver, by one thread; must return quickly."""

    def started(self, fingerprint: str) -> None:
        """Handle the start of a process that trains a run."""

    def reported(self, fingerprint: str, report: Mapping[str, Any]) -> None:
        """Handle a report from a run's process: an epoch, a restart of its group, or the run's outcome."""

    def crashed(self, fingerprint: str, reason: str, *, outcome: str | None) -> None:
        """Handle the crash of a run's process. `outcome` is the run's outcome; None if the run is retried from its checkpoint."""


class RunSource(Protocol):
    """Decides which run starts next and which is stopped early. Called in the driver, by one thread; must return quickly."""

    def next(self) -> Job | None:
        """Return the next run; None if there is none now. Tune asks again after each event, and ten times a second.

        A run that was stopped may be returned again: it continues from its last checkpoint.
        """

    @property
    def finished(self) -> bool:
        """True if there will be no more runs. Tune reads it when `next` has returned None."""

    def stops(self, fingerprint: str, report: Mapping[str, Any]) -> bool:
        """Return whether a run stops after this report of an epoch. The listener then gets the report, but no outcome."""


class NotPickled:
    """A callback or searcher that is pickled as an empty object. Tune pickles both to restore experiments; studies never do so."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


class TuneSearcherAdapter(NotPickled, Searcher):
    """A Tune searcher that gets its runs from a `RunSource`."""

    def __init__(self, source: RunSource) -> None:
        super().__init__()
        self.source = source
        self.fingerprints: dict[str, str] = {}
        """Fingerprints of the runs in progress, by Tune's trial ID."""
        self.exhausted = False
        """True if the source had no run when last asked."""

    @property
    def left(self) -> float:
        """Upper bound on the number of runs that have not ended: the runs in progress plus one that the source may return next.

        Infinite while the source returns runs.
        """
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


class TuneCallbackAdapter(NotPickled, tune.Callback):
    """Passes events of Tune's trials on to a `RunListener`."""

    def __init__(self, listener: RunListener) -> None:
        self.listener = listener

    def on_trial_start(self, *, trial: Any, **_: Any) -> None:
        self.listener.started(trial.config["job"]["fingerprint"])

    def on_trial_result(self, *, trial: Any, result: Mapping[str, Any], **_: Any) -> None:
        self.listener.reported(trial.config["job"]["fingerprint"], result)

    def on_trial_recover(self, *, trial: Any, **_: Any) -> None:
        self.listener.crashed(trial.config["job"]["fingerprint"], _last_failure(trial).reason, outcome=None)

    def on_trial_error(self, *, trial: Any, **_: Any) -> None:
        failure = _last_failure(trial)
        self.listener.crashed(trial.config["job"]["fingerprint"], failure.reason, outcome=failure.outcome)


def _last_failure(trial: Any) -> process_failures.ProcessFailure:
    """Return a trial's last failure. An error other than a process crash comes from Tune itself and counts as a crash."""
    error = last_error(trial)
    if error is None:
        return process_failures.ProcessFailure("its process ended for an unknown reason", "process")
    if isinstance(error, process_failures.ProcessFailure):
        return error
    return process_failures.ProcessFailure(f"{type(error).__name__}: {error}".splitlines()[0], "process")
