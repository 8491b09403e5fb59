"""Stop requests: a tag `stop` that somebody sets in MLflow, on a run or on the study's own run, while the study runs.

One request to MLflow every few seconds asks for all of them. A request that is obeyed is replaced by the tag `stopped`, so that it
does not stop the next submission.
"""

import logging
import threading
from collections.abc import Callable, Collection
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, Self

from mlflow import MlflowClient
from mlflow.entities import RunTag
from mlflow.exceptions import MlflowException
from mlflow.utils import mlflow_tags

from ablations.engine.tracking.lease import RUN_HOLDER_TAG, LeaseLost
from ablations.engine.tracking.run_queries import STOP_TAG, STOPPED_TAG
from ablations.engine.tracking.study_run import StudyRun
from resnet_core.fields import printable

logger = logging.getLogger(__name__)

POLL_INTERVAL_SECONDS = 5.0
"""Time between two requests to MLflow, in seconds."""
MAX_REASON_CHARACTERS = 200
"""Maximum length of the value of a stop tag in messages, in characters."""
NO_REASON = ("", "true", "1", "yes", "stop")
"""Values of a stop tag that name neither who set it nor why."""


class StopRequests:
    """Context in which a thread looks for stop requests.

    Args:
        client: MLflow client.
        study_run: the study's own run, which this process holds.
        experiments: returns the experiments of the study's runs.
        on_study_stop: called once, from the thread, if the whole study is to stop.
    """

    def __init__(
        self,
        client: MlflowClient,
        study_run: StudyRun,
        experiments: Callable[[], Collection[str]],
        on_study_stop: Callable[[], object],
    ) -> None:
        self.client, self.study_run, self.experiments, self.on_study_stop = client, study_run, experiments, on_study_stop
        self.study_message = ""
        """Reason why the whole study stops; empty if nobody asked for it."""
        self.discarded = 0
        """Number of requests from before this submission, which are not obeyed."""
        self._messages: dict[str, str] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="stop-requests", daemon=True)

    def __enter__(self) -> Self:
        with suppress(MlflowException):  # the server may answer the next submission
            self._discard_old()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()  # without waiting for a request in progress, which changes nothing of the study

    def message(self, fingerprint: str) -> str:
        """Return why a run is to stop; empty if nobody asked for it."""
        return self._messages.get(fingerprint, "")

    def _run(self) -> None:
        while not self._over.wait(POLL_INTERVAL_SECONDS):
            try:
                self.poll()
            except LeaseLost:
                return
            except Exception:  # a store's own library may raise anything, and training does not depend on it
                logger.debug("MLflow does not answer", exc_info=True)

    def poll(self) -> None:
        """Ask MLflow for requests, and obey them."""
        for run in self._search(f"tags.{STOP_TAG} LIKE '%' and attributes.status = 'RUNNING'"):
            tags = run.data.tags
            if self._over.is_set():
                return
            if run.info.run_id == self.study_run.run_id:
                self._acknowledge(run)
                if not self.study_message:
                    self.study_message = message_of(tags[STOP_TAG])
                    self.on_study_stop()
            elif tags.get(RUN_HOLDER_TAG) == self.study_run.lease.token:  # not that of another study in the same experiment
                self._messages[tags["fingerprint"]] = message_of(tags[STOP_TAG])
                self._acknowledge(run)

    def _search(self, where: str) -> Any:
        return self.client.search_runs(sorted({self.study_run.experiment_id, *self.experiments()}), where)

    def _acknowledge(self, run: Any) -> None:
        self.study_run.lease.check()
        text = f"{message_of(run.data.tags[STOP_TAG])}, {datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
        self.client.log_batch(run.info.run_id, tags=[RunTag(STOPPED_TAG, text)])
        self.client.delete_tag(run.info.run_id, STOP_TAG)

    def _discard_old(self) -> None:
        """Remove the requests of earlier submissions: whoever submits a study again wants it to continue."""
        own = self.study_run.run_id
        for run in self._search(f"tags.{STOP_TAG} LIKE '%'"):
            if own in (run.info.run_id, run.data.tags.get(mlflow_tags.MLFLOW_PARENT_RUN_ID)):
                self.study_run.lease.check()
                self.client.delete_tag(run.info.run_id, STOP_TAG)
                self.discarded += 1
        if STOPPED_TAG in self.client.get_run(own).data.tags:
            self.client.delete_tag(own, STOPPED_TAG)


def message_of(value: str) -> str:
    """Return why a run stops, from the value of the tag: `stopped on request (anna: too slow)`."""
    reason = printable(value.strip())[:MAX_REASON_CHARACTERS]
    return f"stopped on request ({f'tag {STOP_TAG} in MLflow' if reason.lower() in NO_REASON else reason})"
