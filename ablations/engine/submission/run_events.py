"""Events of runs, passed on from the scheduler to MLflow and to the terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

from ablations.engine.study.plan import Run
from ablations.engine.submission import progress
from ablations.engine.tracking.tracker import Tracker

MAX_SILENT_WAIT_SHARE = 0.1
"""Maximum share of an epoch spent waiting for images. Above it, the terminal suggests more CPUs."""


class RunEvents:
    """A `run_queue.RunListener` that passes events on to a tracker and to the terminal."""

    def __init__(self, runs: Sequence[Run], tracker: Tracker, progress: progress.Progress) -> None:
        self.runs = {run.fingerprint: run for run in runs}
        self.tracker, self.progress = tracker, progress
        self.active: dict[str, Run] = {}
        self.unfinished = set(self.runs)
        """Fingerprints of runs that have not ended."""
        self.reasons: dict[str, str] = {}
        """Reasons why the latest processes of runs ended, by fingerprint."""
        self.mentioned: set[str] = set()

    def started(self, fingerprint: str) -> None:
        run = self.active[fingerprint] = self.runs[fingerprint]
        self.tracker.started(run, self.reasons.pop(fingerprint, ""))
        self.progress.started(run)

    def reported(self, fingerprint: str, report: Mapping[str, Any]) -> None:
        run = self.runs[fingerprint]
        if "outcome" in report:
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
        for run in list(self.active.values()):
            self._end(run, "stopped", "another process has taken the study over" if lost_to else "the study was interrupted")
        return not self.unfinished

    def _end(self, run: Run, outcome: str, message: str, traceback: str = "") -> None:
        self.active.pop(run.fingerprint, None)
        if outcome != "stopped":
            self.unfinished.discard(run.fingerprint)
        self.tracker.ended(run, outcome, message, traceback)
        self.progress.ended(run, outcome, message)
