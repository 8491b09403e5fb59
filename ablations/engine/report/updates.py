"""Report of a study while it runs, updated by a thread."""

import logging
import threading
import time
from collections.abc import Callable

from mlflow import MlflowClient

from ablations.engine.study.design import Design

logger = logging.getLogger(__name__)

UPDATE_INTERVAL_SECONDS = 60.0
"""Minimum time between two reports of a running study, in seconds."""
MAX_TIME_SHARE = 0.02
"""Maximum share of the driver's time that reports may take. Reports that take longer are made less often."""
FINAL_TIMEOUT_SECONDS = 60.0
"""Time for which the end of a study waits for a report in progress, in seconds."""
INTERRUPTED_TIMEOUT_SECONDS = 1.0
"""Time for which the end of an interrupted study waits for a report in progress, in seconds."""


class ReportUpdater:
    """Context in which a thread updates the report of a running study.

    Args:
        client: MLflow client.
        run_id: ID of the study's own run.
        design: design of the study.
        progress: returns the number of ended runs, and the progress as text (`12 of 24 runs`). Without new runs, no report is made.
        permit: called before each write to MLflow; an error ends this report.
    """

    def __init__(
        self,
        client: MlflowClient,
        run_id: str,
        design: Design,
        progress: Callable[[], tuple[int, str]],
        permit: Callable[[], object] = lambda: None,
    ) -> None:
        self.client, self.run_id, self.design, self.progress, self.permit = client, run_id, design, progress, permit
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="report", daemon=True)

    @property
    def busy(self) -> bool:
        """True if a report is still being stored. It would overwrite a report that is stored meanwhile."""
        return self._thread.is_alive()

    def __enter__(self) -> "ReportUpdater":
        self._thread.start()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self._stopped.set()
        self._thread.join(
            FINAL_TIMEOUT_SECONDS if kind is None else INTERRUPTED_TIMEOUT_SECONDS
        )  # an interrupted job is soon killed

    def _may_write(self) -> None:
        """Raise an error if a later report may exist, by this process or another one."""
        if self._stopped.is_set():
            raise InterruptedError("the study has ended")
        self.permit()

    def _run(self) -> None:
        reported, pause = 0, UPDATE_INTERVAL_SECONDS
        while not self._stopped.wait(pause):
            ended, so_far = self.progress()
            if ended == reported:
                continue
            began = time.monotonic()
            try:
                from ablations.engine.analysis.study_analysis import analyze_study  # the first run does not wait for SciPy
                from ablations.engine.report.bundle import publish
                from ablations.engine.tracking import results

                evidence = results.gather(self.client, self.design, self.run_id)
                findings = analyze_study(evidence)
                publish(self.client, self.run_id, evidence, findings, progress=so_far, permit=self._may_write)
                reported = ended
            except Exception:  # such as a full disk: training continues, and the next report may succeed
                logger.debug("the report could not be updated", exc_info=True)
            pause = seconds_until_next_report(time.monotonic() - began)


def seconds_until_next_report(seconds: float) -> float:
    """Return the time until the next report, given the duration of this one."""
    return max(UPDATE_INTERVAL_SECONDS, seconds / MAX_TIME_SHARE)
