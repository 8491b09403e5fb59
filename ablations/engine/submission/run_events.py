"""What the scheduler hears of runs, passed on to MLflow and to the terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

from ablations.engine.study.plan import Run
from ablations.engine.submission import progress
from ablations.engine.tracking.tracker import Tracker

MENTIONED_WAIT = 0.1
"""Share of an epoch above which waiting for images is mentioned."""


class RunEvents:
    """A `tune_adapters.RunListener`."""

    def __init__(self, runs: Sequence[Run], tracker: Tracker, progress: progress.Progress) -> None:
        self.runs = {run.fingerprint: run for run in runs}
        self.tracker, self.progress = tracker, progress
        self.open: dict[str, Run] = {}
        self.left = set(self.runs)
        """Fingerprints of runs that have not come to their end."""
        self.reasons: dict[str, str] = {}
        """Why a run's process died."""
        self.waited: set[str] = set()

    def started(self, fingerprint: str) -> None:
        run = self.open[fingerprint] = self.runs[fingerprint]
        self.tracker.started(run, self.reasons.pop(fingerprint, ""))
        self.progress.started(run)

    def reported(self, fingerprint: str, report: Mapping[str, Any]) -> None:
        run = self.runs[fingerprint]
        if "outcome" in report:
            self._end(run, report["outcome"], report.get("message", ""), report.get("traceback", ""))
        elif "restart" in report:
            self.tracker.started(run, report["restart"])
            self.progress.note(run, f"{report['restart']}; it goes on from its last checkpoint")
        else:
            if "note" in report:
                self.progress.note(run, report["note"])
            self.tracker.epoch(run, report["epoch"], report["metrics"], report["conditions"], report["probes"])
            self.progress.epoch(run, report["epoch"], report["metrics"])
            self._mention_waiting(run, report["metrics"])

    def _mention_waiting(self, run: Run, metrics: Mapping[str, float]) -> None:
        """Says once where decoding, not training, sets the pace."""
        share = metrics.get("data_wait_seconds", 0) / metrics["epoch_seconds"]
        if share > MENTIONED_WAIT and run.fingerprint not in self.waited:
            self.waited.add(run.fingerprint)
            self.progress.note(run, f"waited for images {share:.0%} of an epoch: more --cpus-per-worker would decode faster")

    def crashed(self, fingerprint: str, reason: str, *, outcome: str | None) -> None:
        run = self.runs[fingerprint]
        if outcome:
            self._end(run, outcome, reason)
        else:
            self.reasons[fingerprint] = reason
            self.progress.interrupted(run, f"{reason}; it goes on from its last checkpoint")

    def stop_active(self, lost: str = "") -> bool:
        """Ends what was interrupted; returns whether all runs had come to their end.

        Args:
            lost: who holds the study instead of this process, where that is why it stops.
        """
        for run in list(self.open.values()):
            self._end(run, "stopped", "another process has taken the study over" if lost else "the study was interrupted")
        return not self.left

    def _end(self, run: Run, outcome: str, message: str, traceback: str = "") -> None:
        self.open.pop(run.fingerprint, None)
        if outcome != "stopped":
            self.left.discard(run.fingerprint)
        self.tracker.ended(run, outcome, message, traceback)
        self.progress.ended(run, outcome, message)
