"""Events of runs, passed on from the scheduler to MLflow and to the terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

from ablations.engine.study.plan import Run
from ablations.engine.submission import progress
from ablations.engine.tracking.tracker import Tracker

MAX_SILENT_WAIT_SHARE = 0.1
"""Maximum share of an epoch spent waiting for images. Above it, the terminal suggests more CPUs."""


class Supervision:
    """Supervision that may end a study or its runs early. This one lets everything train to its end."""

    @property
    def halted(self) -> str:
        """Reason why no further run starts; empty if the study goes on."""
        return ""

    @property
    def stop_reason(self) -> str:
        """Reason why the study ends before its runs; empty if it does not, or for another cause, such as Ctrl-C."""
        return ""

    def stop_message(self, fingerprint: str) -> str:
        """Return why a run is to stop at the end of its epoch; empty if it is not."""
        return ""

    def ended(self, run: Run, outcome: str, message: str) -> None:
        """Note the end of a run."""


class RunEvents:
    """A `run_queue.RunListener` that passes events on to a tracker and to the terminal."""

    def __init__(
        self, runs: Sequence[Run], tracker: Tracker, progress: progress.Progress, supervision: Supervision | None = None
    ) -> None:
        self.supervision = supervision or Supervision()
        self.runs = {run.fingerprint: run for run in runs}
        self.tracker, self.progress = tracker, progress
        self.active: dict[str, Run] = {}
        self.unfinished = set(self.runs)
        """Fingerprints of runs that have not ended."""
        self.reasons: dict[str, str] = {}
        """Reasons why the latest processes of runs ended, by fingerprint."""
        self.mentioned: set[str] = set()
        self._stopping: dict[str, str] = {}
        """Reasons of runs whose process has been told to stop, by fingerprint, until its last report has arrived."""

    @property
    def halted(self) -> bool:
        """True if the study ends before its runs have."""
        return bool(self.supervision.halted)

    def must_stop(self, fingerprint: str, report: Mapping[str, Any]) -> bool:
        message, run = self.supervision.stop_message(fingerprint), self.runs[fingerprint]
        if not message or report["epoch"] == self.progress.plan.total_epochs(run):  # a run at its end has a result
            return False
        self._stopping[fingerprint] = message
        return True

    def started(self, fingerprint: str) -> None:
        run = self.active[fingerprint] = self.runs[fingerprint]
        self.tracker.started(run, self.reasons.pop(fingerprint, ""))
        self.progress.started(run)

    def reported(self, fingerprint: str, report: Mapping[str, Any]) -> None:
        run = self.runs[fingerprint]
        if "outcome" in report:
            if conditions := report.get("conditions"):
                self.tracker.conditions(run, conditions)
            self._end(run, report["outcome"], report.get("message", ""), report.get("traceback", ""))
        elif "restart" in report:
            self.tracker.started(run, report["restart"])
            self.progress.note(run, f"{report['restart']}; the run continues from its last checkpoint")
        else:
            if "note" in report:
                self.progress.note(run, report["note"])
            predictions = report.get("predictions", "")
            self.tracker.epoch(run, report["epoch"], report["metrics"], report["conditions"], report["probes"], predictions)
            self.progress.epoch(run, report["epoch"], report["metrics"])
            self._mention_data_wait(run, report["metrics"])
            if message := self._stopping.pop(fingerprint, ""):
                self._end(run, "stopped", message)

    def _mention_data_wait(self, run: Run, metrics: Mapping[str, float]) -> None:
        """Print once per run that decoding images is slower than training."""
        share = metrics.get("data_wait_seconds", 0) / metrics["epoch_seconds"]
        if share > MAX_SILENT_WAIT_SHARE and run.fingerprint not in self.mentioned:
            self.mentioned.add(run.fingerprint)
            self.progress.note(run, f"waited for images {share:.0%} of an epoch: more --cpus-per-worker would decode faster")

    def crashed(self, fingerprint: str, reason: str, *, outcome: str | None) -> None:
        run = self.runs[fingerprint]
        if outcome:
            self._end(run, outcome, reason)
        else:
            self.reasons[fingerprint] = reason
            self.progress.interrupted(run, f"{reason}; the run continues from its last checkpoint")

    def stop_active(self, lost_to: str = "") -> bool:
        """End the runs that are still active; return whether all runs had ended.

        Args:
            lost_to: description of the process that has taken the study over; empty if the study was interrupted.
        """
        message = "another process has taken the study over" if lost_to else "the study was interrupted"
        for run in list(self.active.values()):
            self._end(run, "stopped", self.supervision.stop_reason or message, final=False)
        return not self.unfinished

    def _end(self, run: Run, outcome: str, message: str, traceback: str = "", *, final: bool = True) -> None:
        """Record the end of a run. One that is not final ends because the study does."""
        self.active.pop(run.fingerprint, None)
        self.tracker.ended(run, outcome, message, traceback)
        self.progress.ended(run, outcome, message)
        if final:
            self.unfinished.discard(run.fingerprint)
            self.supervision.ended(run, outcome, message)
