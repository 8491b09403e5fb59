"""Between the scheduler and the searches: which job is next, which is to end, and what MLflow hears of it."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ablations.engine.search.optimizer import Decision
from ablations.engine.study.plan import Run
from ablations.engine.submission.progress import Progress
from ablations.engine.submission.run_events import RunEvents
from ablations.engine.submission.search_state import SearchState
from ablations.engine.tracking.tracker import Tracker
from ablations.engine.trial.job import Job
from resnet_core import ConfigError


class TrialSource(RunEvents):
    """A `tune_adapters.RunSource` and `tune_adapters.RunListener`.

    Args:
        claim: holds runs for this process, and no others; returns those that another process holds.
        job_of: the job of a run, which may start from the state of another run after some epochs.
    """

    def __init__(
        self,
        searches: SearchState,
        tracker: Tracker,
        progress: Progress,
        *,
        claim: Callable[[Iterable[str]], Mapping[str, str]],
        job_of: Callable[[Run, Run | None], Job],
    ) -> None:
        super().__init__((), tracker, progress)
        self.searches, self.claim, self.job_of = searches, claim, job_of
        self._decisions: dict[str, Decision] = {}
        """Of runs that are to end."""
        self._paused: set[str] = set()

    def next(self) -> Job | None:
        for run in self.searches.dropped():
            self._end(run, "pruned", "its place in the population went to a copy of a better one")
        following = self.searches.next(self._is_free)
        if following is None:
            return None
        self.runs[following.fingerprint] = following
        self.left.add(following.fingerprint)
        return self.job_of(following, self.searches.parent(following))

    @property
    def finished(self) -> bool:
        return self.searches.finished

    def stops(self, fingerprint: str, report: Mapping[str, Any]) -> bool:
        decision = self.searches.report(self.runs[fingerprint], report["epoch"], report["metrics"])
        if decision is Decision.CONTINUE:
            return False
        self._decisions[fingerprint] = decision
        return True

    def started(self, fingerprint: str) -> None:
        if fingerprint in self._paused:  # to MLflow it has run all the time
            self._paused.remove(fingerprint)
            self.progress.started(self.runs[fingerprint])
        else:
            super().started(fingerprint)

    def reported(self, fingerprint: str, report: Mapping[str, Any]) -> None:
        super().reported(fingerprint, report)
        run, decision = self.runs[fingerprint], self._decisions.pop(fingerprint, Decision.CONTINUE)
        if decision is Decision.PRUNE:
            self._end(run, "pruned", f"ended early, after epoch {report['epoch']}")
        elif decision is Decision.PAUSE:
            self._paused.add(fingerprint)
            self.progress.paused(run)

    def _is_free(self, run: Run) -> bool:
        try:
            return run.fingerprint not in self.claim({*self.left, run.fingerprint})
        except ConfigError:  # a full disk: others cannot be told now, and a study goes on
            return True

    def _end(self, run: Run, outcome: str, message: str, traceback: str = "") -> None:
        super()._end(run, outcome, message, traceback)
        if outcome != "stopped":
            self.searches.end(run, outcome)
