"""Supervisor of a submission: what may end it or its runs early, whom it tells, and which checkpoints it keeps."""

from collections.abc import Iterator
from contextlib import contextmanager

from mlflow import MlflowClient

from ablations.engine.environment import signals
from ablations.engine.study.plan import Plan, Run
from ablations.engine.study.request import Options
from ablations.engine.submission.jobs import checkpoint_folder
from ablations.engine.submission.run_events import Supervision
from ablations.engine.submission.supervision import notifications
from ablations.engine.submission.supervision.checkpoint_retention import CheckpointRetention
from ablations.engine.submission.supervision.first_failures import FAILED, FirstFailures
from ablations.engine.submission.supervision.notifications import Notifier
from ablations.engine.submission.supervision.stop_requests import StopRequests
from ablations.engine.tracking.journal import Record
from ablations.engine.tracking.run_delivery import MLFLOW_STATUS
from ablations.engine.tracking.tracker import Tracker
from resnet_core.fields import counted


class Supervisor(Supervision):
    """Supervises the runs of a study that this process holds.

    Args:
        client: MLflow client.
        plan: the study.
        options: its options.
        tracker: its tracker, from whose writer it learns which results MLflow has.
    """

    def __init__(self, client: MlflowClient, plan: Plan, options: Options, tracker: Tracker) -> None:
        self.plan, self.options = plan, options
        self.stop_requests = StopRequests(client, tracker.study_run, tracker.experiment_ids, signals.interrupt_main_thread)
        self.first_failures = FirstFailures(options.stop_after_failures)
        self.notifier = Notifier(options.notify)
        self.retention = CheckpointRetention(options.storage, options.keep_checkpoints)
        self._bad: dict[str, int] = {}
        self._bad_told = False
        tracker.writer.on_end_delivered = self._remove_checkpoints

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Return a context in which stop requests are obeyed."""
        with self.stop_requests:
            yield

    @property
    def halted(self) -> str:
        """Reason why no further run starts; empty if the study goes on."""
        if not self.first_failures.reason:
            return ""
        return f"the first {counted(self.first_failures.limit, 'run')} failed with the same error: {self.first_failures.reason}"

    @property
    def stop_reason(self) -> str:
        """Reason why the study ends before its runs: a request, or failures; empty for another cause, such as Ctrl-C."""
        if self.stop_requests.study_message:
            return f"the study was {self.stop_requests.study_message}"
        return f"the study stopped: {self.halted}" if self.halted else ""

    def stop_message(self, fingerprint: str) -> str:
        return self.stop_requests.message(fingerprint)

    def ended(self, run: Run, outcome: str, message: str) -> None:
        self.first_failures.ended(outcome, message)
        if outcome not in (*FAILED, "diverged"):
            return
        self._bad[outcome] = self._bad.get(outcome, 0) + 1
        if sum(self._bad.values()) > self.options.notify_after and not self._bad_told:
            self._bad_told = True
            counts = ", ".join(f"{count} {word}" for word, count in self._bad.items())
            self.notifier.send(f"{self.title}: {counts} so far. The latest is {run}: {outcome}, {message}")

    @property
    def title(self) -> str:
        """Name of the study and its data."""
        return f"{self.plan.study.name} on {self.plan.dataset.name}"

    def notify_end(self, text: str, *, interrupted: bool) -> None:
        """Send the last message, and wait for it a short time."""
        self.notifier.send(f"{self.title}: {text}")
        self.notifier.close(notifications.INTERRUPTED_TIMEOUT_SECONDS if interrupted else notifications.CLOSE_TIMEOUT_SECONDS)

    def _remove_checkpoints(self, record: Record) -> None:
        if MLFLOW_STATUS[record.values["outcome"]] == "FINISHED":
            self.retention.finished(checkpoint_folder(record.fingerprint, record.generation))
