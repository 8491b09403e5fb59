"""Delivery of one run's records to MLflow, exactly once.

A response may be lost, and the server or this process may crash between two requests. Records that are not known to have arrived
are sent again. Each delivery therefore first reads what MLflow has, or sends an idempotent request. Before each write, it checks
that this process still holds the study.
"""

import base64
import logging
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.utils import mlflow_tags

from ablations.engine.environment.provenance import machine_id
from ablations.engine.tracking.holder import is_held
from ablations.engine.tracking.journal import Record
from ablations.engine.tracking.lease import RUN_HOLDER_TAG, StudyLease, get_holder
from ablations.engine.tracking.mlflow_errors import find_deleted
from ablations.engine.tracking.run_queries import PREDICTIONS_ARTIFACT, PREDICTIONS_TAG, PROBES_ARTIFACT, search_runs

logger = logging.getLogger(__name__)

MAX_METRICS_PER_REQUEST = 1000
"""Maximum number of metrics that MLflow accepts in one request."""
MAX_TAG_CHARACTERS = 4000
"""Maximum number of characters of a message in a tag."""

MLFLOW_STATUS = {
    "completed": "FINISHED",
    "diverged": "FINISHED",
    "pruned": "KILLED",
    "oom": "FAILED",
    "failed": "FAILED",
    "stopped": "KILLED",
}
"""MLflow's status of a run by outcome. A run with a result is FINISHED; one that a search pruned may still be continued."""


class StaleDelivery(Exception):  # noqa: N818 - an event, not a mistake
    """The state that a delivery has read of its run may be outdated: this process was suspended or cut off, but holds its study."""


class StaleRecords(Exception):  # noqa: N818 - an event, not a mistake
    """Records of an earlier submission are obsolete: another process has taken the study over and trains their run itself."""

    error_code = "INVALID_STATE"
    """Error code in the form of MLflow's refusals: these records will never be accepted."""


class RunDelivery:
    """Delivery of one run.

    Args:
        client: MLflow client.
        lease: this process's lease on the study; None while records of earlier submissions are delivered.
    """

    def __init__(self, client: MlflowClient, lease: StudyLease | None = None) -> None:
        self.client, self.lease = client, lease
        self._gaps = lease.gaps if lease else 0
        self._run_id = ""
        self.logged = 0
        """Latest epoch that MLflow has; 0 if it has none."""
        self._finished = False
        self._tags: dict[str, str] | None = None
        """Tags of the run; None until they are read."""

    def deliver(self, records: Sequence[Record]) -> int:
        """Deliver the first record, or as many epochs as fit in one request; return the number of records that are done."""
        first = records[0]
        if not self._run_id:
            self._find(first)
        if first.kind != "epoch" or not self._run_id:
            self._check_may_write(first)
        if self._finished:
            for tag in _trial_tags(first):  # another search trained the run meanwhile
                self.client.set_tag(self._run_id, tag.key, tag.value)
            return len(records)  # all records had arrived, and only the response was lost
        if not self._run_id:
            if first.kind != "start":
                raise find_deleted(self.client, f"the run {first.run}", _filter(first), first.experiment_id)
            self._create(first)
        match first.kind:
            case "start":
                self._deliver_start(first)
            case "probes":
                self._deliver_probes(first)
            case "predictions":
                self._deliver_predictions(first)
            case "conditions":
                if tags := self._condition_tags(first):
                    self.client.log_batch(self._run_id, tags=tags)
            case "end":
                self._deliver_end(first)
            case _:
                return self._deliver_epochs(records)
        return 1

    def suspend(self, last: Record) -> None:
        """Mark a run with undelivered records as stopped, unless it has finished."""
        if not self._run_id:
            self._find(last)
        self._check_may_write(last)
        if self._run_id and self.client.get_run(self._run_id).info.status != "FINISHED":
            tags = [RunTag("outcome", "stopped"), RunTag("message", "MLflow has not accepted all of its records yet")]
            self.client.log_batch(self._run_id, tags=tags)
            self.client.set_terminated(self._run_id, "KILLED", last.time_ms)

    def _check_may_write(self, record: Record) -> None:
        """Check that a record may be written now.

        Raises:
            LeaseLost: another process has taken this process's study over.
            StaleDelivery: this process still holds its study, but may have been suspended since this delivery read its run.
            StaleRecords: an earlier process wrote the record, and a process other than this one has held the study since.
        """
        if self.lease and record.token == self.lease.token:
            self.lease.check()
            if self.lease.gaps != self._gaps:
                raise StaleDelivery
        elif record.token:
            holder = get_holder(self.client, record.study_run)
            ours = is_held(holder) and (holder.get("machine"), holder.get("pid")) == (machine_id(), os.getpid())
            # Records of the direct predecessor may be delivered: no other process has held the study in between.
            accepted = {holder.get("token"), (holder.get("before") or record.token) if ours else ""}
            if holder and record.token not in accepted:
                who = f"another process, before {holder['name']}," if ours else holder["name"]
                raise StaleRecords(f"{who} has taken over its study")

    def _find(self, record: Record) -> None:
        found = list(search_runs(self.client, _filter(record)))  # a run that two studies share is in the experiment of one of them
        found.sort(key=lambda run: (run.info.status != "FINISHED", not run.data.metrics))
        if found[1:]:
            self._check_may_write(record)
        for other in found[1:]:
            if not other.data.metrics:  # a duplicate: the response to the first request was lost
                self.client.delete_run(other.info.run_id)
        if found:
            self._run_id, self._finished = found[0].info.run_id, found[0].info.status == "FINISHED"
            history = self.client.get_metric_history(self._run_id, "epoch_seconds")
            self.logged = max((metric.step for metric in history), default=0)

    def _create(self, record: Record) -> None:
        tags = {**record.values["tags"], "fingerprint": record.fingerprint, "generation": str(record.generation)}
        self._run_id = self.client.create_run(record.experiment_id, start_time=record.time_ms, tags=tags).info.run_id

    def _deliver_start(self, record: Record) -> None:
        run, values = self.client.get_run(self._run_id), record.values
        run_id = run.info.run_id
        if run.info.status != "RUNNING":
            self.client.update_run(run_id, status="RUNNING")
        # MLflow's parameters are immutable, and a later start may read its data from another folder: keep those of the first start.
        params = [] if run.data.params else [Param(name, str(value)) for name, value in values["params"].items()]
        context = InputTag(mlflow_tags.MLFLOW_DATASET_CONTEXT, "train and test")
        self.client.log_inputs(run_id, [DatasetInput(Dataset(**values["dataset"]), [context])])
        tags = [*_trial_tags(record), RunTag("attempts", str(values["attempts"])), RunTag(RUN_HOLDER_TAG, record.token)]
        if values["reason"]:
            tags.append(RunTag("last_interruption", values["reason"]))
        self.client.log_batch(run_id, params=params, tags=tags)

    def _deliver_epochs(self, records: Sequence[Record]) -> int:
        metrics: list[Metric] = []
        logged, count = self.logged, 0
        for record in records:
            values = record.values
            if record.kind != "epoch" or (metrics and len(metrics) + len(values["metrics"]) > MAX_METRICS_PER_REQUEST):
                break
            if values["epoch"] > logged:
                logged = values["epoch"]
                metrics += [Metric(name, value, record.time_ms, logged) for name, value in values["metrics"].items()]
            count += 1
        if metrics:
            tags = self._condition_tags(records[0])
            self._check_may_write(records[0])  # directly before the write
            self.client.log_batch(self._run_id, metrics=metrics, tags=tags)
            self.logged = logged
        return count

    def _condition_tags(self, record: Record) -> list[RunTag]:
        """Return tags for the conditions of training that are new. A run that continued elsewhere lists all its conditions."""
        if self._tags is None:
            self._tags = dict(self.client.get_run(self._run_id).data.tags)
        changed = {}
        for name, value in record.values["conditions"].items():
            before = self._tags.get(name, "")
            if value not in before.split(", "):
                changed[name] = f"{before}, {value}" if before else value
        self._tags |= changed
        return [RunTag(name, value) for name, value in changed.items()]

    def _deliver_probes(self, record: Record) -> None:
        self.client.log_text(self._run_id, pd.DataFrame(record.values["rows"]).to_csv(index=False), PROBES_ARTIFACT)

    def _deliver_predictions(self, record: Record) -> None:
        """Log the predictions, unless MLflow answers and only its store of artifacts fails: no result depends on them."""
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, PREDICTIONS_ARTIFACT)
            file.write_bytes(base64.b64decode(record.values["file"]))
            for attempt in (1, 2):
                try:
                    self.client.log_artifact(self._run_id, str(file))
                except Exception as error:  # a store's own library may raise anything
                    self.client.get_run(self._run_id)  # an error if MLflow itself does not answer: then, the record waits
                    if attempt == 2:
                        reason = str(error).partition("\n")[0]
                        logger.warning("the predictions of %s cannot be stored, which changes no result: %s", record.run, reason)
                else:
                    self.client.set_tag(self._run_id, PREDICTIONS_TAG, PREDICTIONS_ARTIFACT)
                    return

    def _deliver_end(self, record: Record) -> None:
        run_id, status = self._run_id, MLFLOW_STATUS[record.values["outcome"]]
        if self.client.get_run(run_id).info.status == "FINISHED":
            return  # another process has finished the run, and its result stays
        message = record.values["message"][:MAX_TAG_CHARACTERS]
        self.client.log_batch(run_id, tags=[RunTag("outcome", record.values["outcome"]), RunTag("message", message)])
        if record.values["traceback"] and status == "FAILED":
            self.client.log_text(run_id, record.values["traceback"], "traceback.txt")
        self.client.set_terminated(run_id, status, record.time_ms)


def _filter(record: Record) -> str:
    """Return the MLflow filter that finds a record's run."""
    return f"tags.fingerprint = '{record.fingerprint}' and tags.generation = '{record.generation}'"


def _trial_tags(record: Record) -> list[RunTag]:
    """Return the tags that make a run a trial of searches. One run may be a trial of several."""
    return [RunTag(name, value) for name, value in record.values.get("tags", {}).items() if name.startswith("trial.")]
