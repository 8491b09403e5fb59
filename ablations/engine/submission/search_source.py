"""Source of a search's trials: connects the scheduler with the state of the search, with MLflow and with the terminal."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ablations.engine.search.optimizer import Decision
from ablations.engine.study.plan import Run
from ablations.engine.submission.progress import Progress
from ablations.engine.submission.run_events import RunEvents, Supervision
from ablations.engine.submission.search_state import SearchState
from ablations.engine.tracking.tracker import Tracker
from ablations.engine.trial.job import Job
from resnet_core import ConfigError


class TrialSource(RunEvents):
    """A `run_queue.RunSource` and `run_queue.RunListener`.

    Args:
        state: state of the study's searches.
        tracker: tracker of the study.
        progress: progress in the terminal.
        claim: claims runs for this process and gives up earlier claims; returns the runs that another process has claimed.
        make_job: returns the job of a run. If its second argument, the parent run, is not None, the run continues from it.
        supervision: what may end the search or its trials early.
    """

    def __init__(
        self,
        state: SearchState,
        tracker: Tracker,
        progress: Progress,
        *,
        claim: Callable[[Iterable[str]], Mapping[str, str]],
        make_job: Callable[[Run, Run | None], Job],
        supervision: Supervision | None = None,
    ) -> None:
        super().__init__((), tracker, progress, supervision)
        self.state, self.claim, self.make_job = state, claim, make_job
        self._decisions: dict[str, Decision] = {}
        """Decisions to stop running trials, by fingerprint, until their process has ended."""
        self._paused: set[str] = set()

    def next(self) -> Job | None:
        for evicted in self.state.evicted_runs():
            self._end(evicted, "pruned", "replaced in the population by a copy of a better trial")
        run = self.state.next_run(self._is_free)
        if run is None:
            return None
        self.runs[run.fingerprint] = run
        self.unfinished.add(run.fingerprint)
        return self.make_job(run, self.state.parent_run(run))

    @property
    def finished(self) -> bool:
        return self.state.is_finished

    def stops(self, fingerprint: str, report: Mapping[str, Any]) -> bool:
        decision = self.state.report_epoch(self.runs[fingerprint], report["epoch"], report["metrics"])
        if decision is Decision.CONTINUE:
            return False
        self._decisions[fingerprint] = decision
        return True

    def started(self, fingerprint: str) -> None:
        if fingerprint in self._paused:  # a paused run has kept the status RUNNING in MLflow
            self._paused.remove(fingerprint)
            self.progress.started(self.runs[fingerprint])
        else:
            super().started(fingerprint)

    def reported(self, fingerprint: str, report: Mapping[str, Any]) -> None:
        super().reported(fingerprint, report)
        run, decision = self.runs[fingerprint], self._decisions.pop(fingerprint, Decision.CONTINUE)
        if decision is Decision.PRUNE:
            self._end(run, "pruned", f"pruned after epoch {report['epoch']}")
        elif decision is Decision.PAUSE:
            self._paused.add(fingerprint)
            self.progress.paused(run)

    def _is_free(self, run: Run) -> bool:
        try:
            return run.fingerprint not in self.claim({*self.unfinished, run.fingerprint})
        except ConfigError:  # a full disk: others do not see the claim, and the study continues
            return True

    def _end(self, run: Run, outcome: str, message: str, traceback: str = "", *, final: bool = True) -> None:
        super()._end(run, outcome, message, traceback, final=final)
        if final:
            self.state.record_end(run, outcome)
