"""Records of runs on their way to MLflow: each run's in order, and however often one is sent, there once.

An answer can be lost, a server can die between two requests, and so can this process: what is not known to have arrived is sent
again. Each delivery therefore looks at what MLflow has, or changes nothing the second time.
"""

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import pandas as pd
from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.utils import mlflow_tags

from ablations.engine.journal import Journal, Record
from ablations.engine.ledger import PROBES, search
from resnet_core.fields import printable

logger = logging.getLogger(__name__)

RETRY_SECONDS = 2.0
REFUSED = ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "INVALID_STATE")
"""MLflow's codes for what it will not take later either: its experiment was deleted, for one. Of records that have waited since an
earlier submission, nobody waits for those any longer."""
BATCH_METRICS = 1000
"""As many metrics as MLflow takes in one request."""

STATUS = {
    "completed": "FINISHED",
    "diverged": "FINISHED",
    "pruned": "KILLED",
    "oom": "FAILED",
    "failed": "FAILED",
    "stopped": "KILLED",
}
"""MLflow's status for each outcome: a run has FINISHED if it has a result. One that a search ended early can be gone on with."""


JOB_KILLED = "its job was killed"

_Key = tuple[str, int]
"""Fingerprint and generation: one MLflow run."""


class Writer:
    """Delivers records from a thread of its own, so that training never waits for the tracking server.

    One run's records wait for each other, not for those of other runs.

    Args:
        client: where to.
        journal: keeps what is not delivered yet. What it inherited is delivered first.
    """

    def __init__(self, client: MlflowClient, journal: Journal) -> None:
        self.client, self.journal = client, journal
        self._deliveries: dict[_Key, _Delivery] = {}
        self._waiting: dict[_Key, deque[Record]] = {}
        self._retry_at: dict[_Key, float] = {}
        self._closing = self._abandoned = False
        self._taken = 0
        """How many records are done with."""
        self._changed = threading.Condition()
        for record in journal.inherited:
            self._queue(record)
        for records in self._waiting.values():
            if records[-1].kind != "end":  # its process died; if it is trained again, that starts it again
                values = {"outcome": "stopped", "message": JOB_KILLED, "traceback": ""}
                records.append(replace(records[-1], kind="end", values=values))
        self._inherited = frozenset(self._waiting)
        self._thread = threading.Thread(target=self._run, name="mlflow-writer", daemon=True)
        self._thread.start()

    def put(self, record: Record) -> None:
        """Returns at once."""
        with self._changed:
            self.journal.append(record)
            self._queue(record)
            self._changed.notify_all()

    def waiting(self) -> set[str]:
        """Fingerprints of runs whose records are on their way."""
        with self._changed:
            return {fingerprint for fingerprint, _ in self._waiting}

    def settle(self, patience: float, at_most: float = math.inf) -> int:
        """Waits until everything is delivered; returns how many records are not.

        Args:
            patience: seconds in which nothing is taken, after which this gives up. A server may be slow, as long as it takes some.
            at_most: seconds, whatever is taken.
        """
        deadline = time.monotonic() + at_most
        with self._changed:
            while self._waiting:
                left = min(patience, deadline - time.monotonic())
                if not self._changed.wait_for(partial(self._has_taken_more, self._taken), left):
                    break
            return self._count()

    def close(self, patience: float, at_most: float = math.inf) -> int:
        """As `settle`, and ends the thread. What is not delivered stays in the journal, and its runs do not look as if they ran."""
        deadline = time.monotonic() + min(patience, at_most)
        self.settle(patience, at_most)
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join(max(0.5, deadline - time.monotonic()))  # it may sit in a request that nobody answers
        with self._changed:
            self._abandoned = True
            return self._count()

    def _has_taken_more(self, than: int) -> bool:
        return self._taken > than

    def _queue(self, record: Record) -> None:
        self._waiting.setdefault(record.key, deque()).append(record)

    def _count(self) -> int:
        return sum(map(len, self._waiting.values()))

    def _run(self) -> None:
        while True:
            with self._changed:
                if self._closing:
                    break
                now = time.monotonic()
                due = next((key for key in self._waiting if self._retry_at.get(key, 0) <= now), None)
                if due is None:
                    self._changed.wait(min((self._retry_at[key] - now for key in self._waiting), default=None))
                    continue
                records = tuple(self._waiting[due])
            self._advance(due, records)
        self._give_up()

    def _advance(self, key: _Key, records: Sequence[Record]) -> None:
        """Delivers the first of a run's records, or as many as fit one request."""
        try:
            delivery = self._deliveries.setdefault(key, _Delivery(self.client))
            count = delivery.deliver(records)
        except Exception as error:  # whatever a store's own library raises; this thread must live
            if not self._retry_at:
                what, why = f"{records[0].kind} of {records[0].run}", printable(str(error))[:200]
                logger.warning("MLflow does not take the %s: records wait and are sent again until it does (%s)", what, why)
            self._deliveries.pop(key, None)  # what it knew of the run may not be so
            if key not in self._inherited or getattr(error, "error_code", "") not in REFUSED:
                with self._changed:
                    self._retry_at[key] = time.monotonic() + RETRY_SECONDS
                self.journal.sync()
                return
            logger.warning("records of %s wait in %s: MLflow refuses them", records[0].run, self.journal.put_aside(records))
            count = len(records)
        with self._changed:
            self._taken += count
            if self._retry_at.pop(key, None) and not self._retry_at:
                logger.warning("MLflow takes records again")
            if records[count - 1].kind == "end":
                self._deliveries.pop(key, None)
            rest = self._waiting.pop(key)
            for _ in range(count):
                rest.popleft()
            if rest:
                self._waiting[key] = rest  # behind the other runs
            if not self._waiting:
                self.journal.clear()
            self._changed.notify_all()

    def _give_up(self) -> None:
        for key, records in self._waiting.items():
            if self._abandoned:
                return  # from here on, another process may deliver them
            try:
                self._deliveries.setdefault(key, _Delivery(self.client)).suspend(records[-1])
            except Exception:
                logger.debug("MLflow does not answer", exc_info=True)
                return


class _Delivery:
    """The way of one run to MLflow."""

    def __init__(self, client: MlflowClient) -> None:
        self.client = client
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
        if self._finished:
            for tag in _of_search(first):  # another search trained it in between
                self.client.set_tag(self._run_id, tag.key, tag.value)
            return len(records)  # they arrived; the answer did not
        if not self._run_id:
            if first.kind != "start":
                logger.warning("MLflow no longer has %s: its %s is dropped", first.run, first.kind)
                return 1
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
        if self._run_id and self.client.get_run(self._run_id).info.status != "FINISHED":
            tags = [RunTag("outcome", "stopped"), RunTag("message", "MLflow did not take all of its records yet")]
            self.client.log_batch(self._run_id, tags=tags)
            self.client.set_terminated(self._run_id, "KILLED", last.time_ms)

    def _find(self, record: Record) -> None:
        where = f"tags.fingerprint = '{record.fingerprint}' and tags.generation = '{record.generation}'"
        found = list(search(self.client, where))  # a run that two studies share is in either's experiment
        found.sort(key=lambda run: (run.info.status != "FINISHED", not run.data.metrics))
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
        tags = [*_of_search(record), RunTag("attempts", str(values["attempts"]))]
        if values["reason"]:
            tags.append(RunTag("last_interruption", values["reason"]))
        self.client.log_batch(run_id, params=params, tags=tags)

    def _epochs(self, records: Sequence[Record]) -> int:
        metrics: list[Metric] = []
        logged, count = self.logged, 0
        for record in records:
            values = record.values
            if record.kind != "epoch" or (metrics and len(metrics) + len(values["metrics"]) > BATCH_METRICS):
                break
            if values["epoch"] > logged:
                logged = values["epoch"]
                metrics += [Metric(name, value, record.time_ms, logged) for name, value in values["metrics"].items()]
            count += 1
        if metrics:
            self.client.log_batch(self._run_id, metrics=metrics, tags=self._conditions(records[0]))
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
        self.client.log_text(self._run_id, pd.DataFrame(record.values["rows"]).to_csv(index=False), PROBES)

    def _end(self, record: Record) -> None:
        run_id, status = self._run_id, STATUS[record.values["outcome"]]
        if self.client.get_run(run_id).info.status == "FINISHED":
            return  # another one came to its end: that stands
        tags = [RunTag("outcome", record.values["outcome"]), RunTag("message", record.values["message"][:4000])]
        self.client.log_batch(run_id, tags=tags)
        if record.values["traceback"] and status == "FAILED":
            self.client.log_text(run_id, record.values["traceback"], "traceback.txt")
        self.client.set_terminated(run_id, status, record.time_ms)


def _of_search(record: Record) -> list[RunTag]:
    """What makes a run a trial of a search. A run may be one of several."""
    return [RunTag(name, value) for name, value in record.values.get("tags", {}).items() if name.startswith("trial.")]
