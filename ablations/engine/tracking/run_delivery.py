"""The way of one run's records to MLflow: however often one is sent, it is there once.

An answer can be lost, a server can die between two requests, and so can this process: what is not known to have arrived is sent
again. Each delivery therefore looks at what MLflow has, or changes nothing the second time. And before each write it makes sure
that this process still holds the study.
"""

import os
from collections.abc import Sequence

import pandas as pd
from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.utils import mlflow_tags

from ablations.engine.environment.provenance import machine
from ablations.engine.tracking.journal import Record
from ablations.engine.tracking.lease import RUN_HOLDER_TAG, StudyLease, get_holder, is_held
from ablations.engine.tracking.mlflow_errors import find_deleted
from ablations.engine.tracking.run_queries import PROBES_ARTIFACT, search_runs

MAX_METRICS_PER_REQUEST = 1000
"""As many metrics as MLflow takes in one request."""

MLFLOW_STATUS = {
    "completed": "FINISHED",
    "diverged": "FINISHED",
    "pruned": "KILLED",
    "oom": "FAILED",
    "failed": "FAILED",
    "stopped": "KILLED",
}
"""MLflow's status for each outcome: a run has FINISHED if it has a result. One that a search ended early can be gone on with."""


class StaleDelivery(Exception):  # noqa: N818 - what happened, not a mistake
    """This process stood still and holds its study nevertheless. What a delivery knew of its run may be out of date."""


class StaleRecords(Exception):  # noqa: N818 - as above
    """Another process has taken over the study of records that an earlier submission left, and trains their run itself."""

    error_code = "INVALID_STATE"
    """As MLflow's own refusals: nobody takes these records any more."""


class RunDelivery:
    """The way of one run to MLflow.

    Args:
        client: where to.
        lease: this process's hold on the study, once there is one.
    """

    def __init__(self, client: MlflowClient, lease: StudyLease | None = None) -> None:
        self.client, self.lease = client, lease
        self._gaps = lease.gaps if lease else 0
        self._run_id = ""
        self.logged = 0
        """The last epoch that MLflow has."""
        self._finished = False
        self._known: dict[str, str] | None = None
        """The run's tags, once looked up."""

    def deliver(self, records: Sequence[Record]) -> int:
        """Delivers the first record, of epochs as many as fit one request; returns how many are done with."""
        first = records[0]
        if not self._run_id:
            self._find(first)
        if first.kind != "epoch" or not self._run_id:
            self._permit(first)
        if self._finished:
            for tag in _of_search(first):  # another search trained it in between
                self.client.set_tag(self._run_id, tag.key, tag.value)
            return len(records)  # they arrived; the answer did not
        if not self._run_id:
            if first.kind != "start":
                raise find_deleted(self.client, f"the run {first.run}", _filter(first), first.experiment_id)
            self._create(first)
        match first.kind:
            case "start":
                self._start(first)
            case "probes":
                self._probes(first)
            case "end":
                self._end(first)
            case _:
                return self._epochs(records)
        return 1

    def suspend(self, last: Record) -> None:
        """Of a run whose records wait: not running, and without a result."""
        if not self._run_id:
            self._find(last)
        self._permit(last)
        if self._run_id and self.client.get_run(self._run_id).info.status != "FINISHED":
            tags = [RunTag("outcome", "stopped"), RunTag("message", "MLflow did not take all of its records yet")]
            self.client.log_batch(self._run_id, tags=tags)
            self.client.set_terminated(self._run_id, "KILLED", last.time_ms)

    def _permit(self, record: Record) -> None:
        """Make sure that a record may be written now.

        Raises:
            HoldLost: this process has lost its study to another one.
            StaleDelivery: it has not, but may have been asleep since this delivery looked at its run.
            StaleRecords: the record is of an earlier process, and another one holds that one's study, or has held it since then.
        """
        if self.lease and record.token == self.lease.token:
            self.lease.check()
            if self.lease.gaps != self._gaps:
                raise StaleDelivery
        elif record.token:
            holder = get_holder(self.client, record.study_run)
            ours = is_held(holder) and (holder.get("machine"), holder.get("pid")) == (machine(), os.getpid())
            # What the holder before this process left is its to deliver: nobody has come between them.
            may = {holder.get("token"), (holder.get("before") or record.token) if ours else ""}
            if holder and record.token not in may:
                who = f"another process, before {holder['name']}," if ours else holder["name"]
                raise StaleRecords(f"{who} has taken over its study")

    def _find(self, record: Record) -> None:
        found = list(search_runs(self.client, _filter(record)))  # a run that two studies share is in either's experiment
        found.sort(key=lambda run: (run.info.status != "FINISHED", not run.data.metrics))
        if found[1:]:
            self._permit(record)
        for other in found[1:]:
            if not other.data.metrics:  # made by a request that seemed to have failed and was repeated
                self.client.delete_run(other.info.run_id)
        if found:
            self._run_id, self._finished = found[0].info.run_id, found[0].info.status == "FINISHED"
            history = self.client.get_metric_history(self._run_id, "epoch_seconds")
            self.logged = max((metric.step for metric in history), default=0)

    def _create(self, record: Record) -> None:
        tags = {**record.values["tags"], "fingerprint": record.fingerprint, "generation": str(record.generation)}
        self._run_id = self.client.create_run(record.experiment_id, start_time=record.time_ms, tags=tags).info.run_id

    def _start(self, record: Record) -> None:
        run, values = self.client.get_run(self._run_id), record.values
        run_id = run.info.run_id
        if run.info.status != "RUNNING":
            self.client.update_run(run_id, status="RUNNING")
        # Parameters are those of the first start: a later one may have its data elsewhere.
        params = [] if run.data.params else [Param(name, str(value)) for name, value in values["params"].items()]
        context = InputTag(mlflow_tags.MLFLOW_DATASET_CONTEXT, "train and test")
        self.client.log_inputs(run_id, [DatasetInput(Dataset(**values["dataset"]), [context])])
        tags = [*_of_search(record), RunTag("attempts", str(values["attempts"])), RunTag(RUN_HOLDER_TAG, record.token)]
        if values["reason"]:
            tags.append(RunTag("last_interruption", values["reason"]))
        self.client.log_batch(run_id, params=params, tags=tags)

    def _epochs(self, records: Sequence[Record]) -> int:
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
            tags = self._conditions(records[0])
            self._permit(records[0])  # the last thing before the write
            self.client.log_batch(self._run_id, metrics=metrics, tags=tags)
            self.logged = logged
        return count

    def _conditions(self, record: Record) -> list[RunTag]:
        """Tags that say under what the run is trained; of one that went on elsewhere, all that it was trained under."""
        if self._known is None:
            self._known = dict(self.client.get_run(self._run_id).data.tags)
        changed = {}
        for name, value in record.values["conditions"].items():
            before = self._known.get(name, "")
            if value not in before.split(", "):
                changed[name] = f"{before}, {value}" if before else value
        self._known |= changed
        return [RunTag(name, value) for name, value in changed.items()]

    def _probes(self, record: Record) -> None:
        self.client.log_text(self._run_id, pd.DataFrame(record.values["rows"]).to_csv(index=False), PROBES_ARTIFACT)

    def _end(self, record: Record) -> None:
        run_id, status = self._run_id, MLFLOW_STATUS[record.values["outcome"]]
        if self.client.get_run(run_id).info.status == "FINISHED":
            return  # another one came to its end: that stands
        tags = [RunTag("outcome", record.values["outcome"]), RunTag("message", record.values["message"][:4000])]
        self.client.log_batch(run_id, tags=tags)
        if record.values["traceback"] and status == "FAILED":
            self.client.log_text(run_id, record.values["traceback"], "traceback.txt")
        self.client.set_terminated(run_id, status, record.time_ms)


def _filter(record: Record) -> str:
    """Return what finds a record's run in MLflow."""
    return f"tags.fingerprint = '{record.fingerprint}' and tags.generation = '{record.generation}'"


def _of_search(record: Record) -> list[RunTag]:
    """What makes a run a trial of a search. A run may be one of several."""
    return [RunTag(name, value) for name, value in record.values.get("tags", {}).items() if name.startswith("trial.")]
