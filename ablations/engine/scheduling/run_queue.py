"""The runs of a study while they train: which one starts next, and which one is retried after a crash."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence, Sized
from dataclasses import dataclass
from typing import Any, Protocol

from ablations.engine.trial.job import Job
from ablations.engine.trial.process_failures import NodeLossBudget, ProcessFailure


class RunListener(Protocol):
    """Receives events of runs, and may end them early. Called in the driver, by one thread; must return quickly."""

    @property
    def halted(self) -> bool:
        """True if all runs are to end now."""

    def must_stop(self, fingerprint: str, report: Mapping[str, Any]) -> bool:
        """Return whether a run stops after this report of an epoch. `reported` follows with it, and no outcome."""

    def started(self, fingerprint: str) -> None:
        """Handle the start of a process that trains a run."""

    def reported(self, fingerprint: str, report: Mapping[str, Any]) -> None:
        """Handle a report from a run's process: an epoch, a restart of its group, or the run's outcome."""

    def crashed(self, fingerprint: str, reason: str, *, outcome: str | None) -> None:
        """Handle the crash of a run's process. `outcome` is the run's outcome; None if the run is retried from its checkpoint."""


class RunSource(Protocol):
    """Decides which run starts next and which is stopped early. Called in the driver, by one thread; must return quickly."""

    def next(self) -> Job | None:
        """Return the next run; None if there is none now. Called when there is room, after each event, and ten times a second.

        A run that was stopped may be returned again: it continues from its last checkpoint.
        """

    @property
    def finished(self) -> bool:
        """True if there will be no more runs. Read when `next` has returned None."""

    def stops(self, fingerprint: str, report: Mapping[str, Any]) -> bool:
        """Return whether a run stops after this report of an epoch. The listener then gets the report, but no outcome."""


class RunList:
    """A `RunSource` with a fixed list of runs, each of which trains to its end."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        self._left = list(reversed(jobs))

    def __len__(self) -> int:
        return len(self._left)

    def next(self) -> Job | None:
        return self._left.pop() if self._left else None

    @property
    def finished(self) -> bool:
        return not self._left

    def stops(self, fingerprint: str, report: Mapping[str, Any]) -> bool:
        return False


@dataclass
class ActiveRun:
    """A run that Tune has in progress."""

    job: Job
    trial: Any = None
    """Tune's trial, once it exists."""
    started: bool = False
    """True if a process for it has started."""


class RetryBudget:
    """Decides whether a run is retried after a crash."""

    def __init__(self) -> None:
        self.epoch = 0
        """Latest epoch that the run has reported."""
        self._crashes = 0
        self._node_losses = NodeLossBudget()

    def charge(self, failure: ProcessFailure, max_failures: int) -> tuple[str, str | None]:
        """Count a crash; return its reason, and the outcome of the run if this crash ends it."""
        failure = self._node_losses.charge(failure, self.epoch)
        self._crashes += failure.cause != "node"
        return failure.reason, failure.outcome if self._crashes > max_failures else None


class NotPickled:
    """An object that is pickled as an empty one. Tune pickles its parts to restore experiments; studies never do so."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


class RunQueue(NotPickled):
    """The runs in progress, and the runs that start next as long as there are slots.

    Tune retries nothing and keeps no trial that waits for long: a run whose process crashed, or that was withdrawn before it had
    one, starts again as another trial.
    """

    def __init__(self, source: RunSource, listener: RunListener) -> None:
        self.slots = 0
        """Number of runs that may hold or ask for resources now."""
        self.active: dict[str, ActiveRun] = {}
        """Runs in progress, by Tune's trial ID."""
        self.source, self._listener = source, listener
        self._next: Job | None = None
        self._returned: list[Job] = []
        self._exhausted = False
        """True if the source had no run when last asked."""
        self._ask = True
        """True if the source may have a run since then."""
        self._error: Exception | None = None
        self._budgets: defaultdict[str, RetryBudget] = defaultdict(RetryBudget)

    @property
    def left(self) -> float:
        """Upper bound on the number of runs that have not ended. Infinite while a source of unknown length returns runs."""
        known = len(self.active) + len(self._returned) + (self._next is not None)
        if isinstance(self.source, Sized):
            return known + len(self.source)
        return known + (not self.source.finished) if self._exhausted else math.inf

    @property
    def finished(self) -> bool:
        """True if all runs have ended and the source will return no more."""
        if self.has_next() or self._error or self.active or self._returned or self._next:
            return False
        return self._exhausted and self.source.finished

    def has_next(self) -> bool:
        """Return whether a run may start now. Errors of the source are kept for `refresh`: Tune would attribute them to a trial."""
        if len(self.active) >= self.slots or self._error:
            return False
        if self._next is None and self._returned:
            self._next = self._returned.pop(0)
        if self._next is None and self._ask:  # Tune asks several times in each round of its loop
            try:
                self._next = self.source.next()
            except Exception as error:
                self._error = error
            self._exhausted = self._next is None
            self._ask = not self._exhausted
        return self._next is not None

    def refresh(self) -> None:
        """Let the next `has_next` ask the source again. Raise the error that the source has raised, if any."""
        if self._error:
            raise self._error
        self._ask = True

    def start(self, trial_id: str) -> Job | None:
        """Return the run that starts now; None if there is none."""
        if not self.has_next():
            return None
        job, self._next = self._next, None
        assert job is not None
        self.active[trial_id] = ActiveRun(job)
        return job

    def withdraw_excess(self) -> list[ActiveRun]:
        """Take back the latest runs above the number of slots that have no process yet; return them."""
        excess = len(self.active) - self.slots
        waiting = [trial_id for trial_id, run in self.active.items() if run.trial and not run.started] if excess > 0 else []
        withdrawn = [self.active.pop(trial_id) for trial_id in waiting[::-1][: max(0, excess)]]
        self._returned = [run.job for run in withdrawn[::-1]] + self._returned
        return withdrawn

    def started(self, trial_id: str) -> None:
        """Note that a process for a run has started."""
        run = self.active[trial_id]
        run.started = True
        self._listener.started(run.job.fingerprint)

    def reported(self, trial_id: str, report: Mapping[str, Any]) -> None:
        """Pass a report on."""
        run, self._ask = self.active[trial_id], True
        if "epoch" in report:
            self._budgets[run.job.fingerprint].epoch = report["epoch"]
        self._listener.reported(run.job.fingerprint, report)

    def stops(self, trial_id: str, report: Mapping[str, Any]) -> bool:
        """Return whether the source or the listener stops a run after this report."""
        if "epoch" not in report:
            return False
        fingerprint = self.active[trial_id].job.fingerprint
        return self.source.stops(fingerprint, report) or self._listener.must_stop(fingerprint, report)

    @property
    def halted(self) -> bool:
        """True if all runs are to end now."""
        return self._listener.halted

    def ended(self, trial_id: str) -> None:
        """Note that a run has ended or was stopped. Does nothing for a run that was withdrawn."""
        self._ask = True
        if run := self.active.pop(trial_id, None):
            self._budgets.pop(run.job.fingerprint, None)

    def crashed(self, trial_id: str, failure: ProcessFailure) -> None:
        """Handle the crash of a run's process: the run starts again unless it has crashed too often."""
        job, self._ask = self.active.pop(trial_id).job, True
        reason, outcome = self._budgets[job.fingerprint].charge(failure, job.max_failures)
        if outcome:
            del self._budgets[job.fingerprint]
        else:
            self._returned.append(job)
        self._listener.crashed(job.fingerprint, reason, outcome=outcome)
