"""Writer of records to MLflow: a thread delivers each run's records in order, and training never waits for it."""

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import takewhile

from mlflow import MlflowClient

from ablations.engine.tracking.journal import Journal, Record
from ablations.engine.tracking.lease import LeaseLost, StudyLease
from ablations.engine.tracking.mlflow_errors import PERMANENT_ERRORS, DeletedInMlflow
from ablations.engine.tracking.run_delivery import RunDelivery, StaleDelivery
from resnet_core.fields import printable

logger = logging.getLogger(__name__)

RETRY_INTERVAL_SECONDS = 2.0
"""Time between two attempts to deliver the records of a run, in seconds."""
JOB_KILLED = "its job was killed"
"""Message of runs that a killed submission left unfinished."""

_Key = tuple[str, int]
"""Fingerprint and generation, which identify one MLflow run."""


class Writer:
    """Delivers records from its own thread, so that training never waits for the tracking server.

    Records of one run are delivered in order. They do not wait for those of other runs.

    Args:
        client: MLflow client.
        journal: stores records until they are delivered. Records that it recovered are delivered first.
    """

    def __init__(self, client: MlflowClient, journal: Journal) -> None:
        self.client, self.journal = client, journal
        self._deliveries: dict[_Key, RunDelivery] = {}
        self._pending: dict[_Key, deque[Record]] = {}
        self._retry_at: dict[_Key, float] = {}
        self._failing: set[_Key] = set()
        """Runs whose last delivery failed."""
        self._deleted: dict[_Key, str] = {}
        """Failing runs that were deleted in MLflow, with a message that says how to continue."""
        self.on_end_delivered: Callable[[Record], object] = lambda record: None
        """Called by the writer's thread when MLflow has the end of a run. It must return quickly and raise nothing."""
        self._lease: StudyLease | None = None
        self._closing = self._abandoned = False
        self._delivered = 0
        """Number of records that were delivered or set aside."""
        self._changed = threading.Condition()
        for record in journal.recovered:
            self._queue(record)
        for records in self._pending.values():
            if records[-1].kind != "end":  # its process was killed; a new start record follows if the run is trained again
                values = {"outcome": "stopped", "message": JOB_KILLED, "traceback": ""}
                records.append(replace(records[-1], kind="end", values=values))
        self._recovered = set(self._pending)
        self._thread = threading.Thread(target=self._run, name="mlflow-writer", daemon=True)
        self._thread.start()

    def put(self, record: Record) -> None:
        """Queue a record and return at once. After the loss of the lease, drop it: the new holder reports all runs again."""
        with self._changed:
            if self.lost_to:
                return
            self.journal.append(record)
            self._queue(record)
            self._changed.notify_all()

    def pending_fingerprints(self) -> set[str]:
        """Return the fingerprints of runs with undelivered records."""
        with self._changed:
            return {fingerprint for fingerprint, _ in self._pending}

    def set_lease(self, lease: StudyLease) -> None:
        """Write records of this process only while it holds the lease."""
        with self._changed:
            self._lease = lease
            self._deliveries.clear()  # they belong to records of earlier submissions

    def release(self) -> None:
        """Stop writing for the study, without a request to MLflow."""
        if self._lease:
            self._lease.stop_renewing()

    @property
    def lost_to(self) -> str:
        """Description of the process that has taken the study over; empty while this process holds it."""
        return self._lease.lost_to if self._lease else ""

    def deletion_messages(self) -> list[str]:
        """Return one message for each object whose deletion in MLflow blocks records, with the way to continue."""
        with self._changed:
            return list(dict.fromkeys(self._deleted.values()))

    def flush(self, idle_seconds: float, max_seconds: float = math.inf) -> int:
        """Wait until all records are delivered, except those of deleted runs; return the number of undelivered ones.

        Args:
            idle_seconds: timeout in seconds without any delivery. A slow server may take longer in all.
            max_seconds: timeout in seconds for all deliveries.
        """
        deadline = time.monotonic() + max_seconds
        with self._changed:
            while not self._is_over():
                left = min(idle_seconds, deadline - time.monotonic())
                if not self._changed.wait_for(partial(self._has_delivered_more, self._delivered), left):
                    break
            return self._count()

    def close(self, idle_seconds: float, max_seconds: float = math.inf) -> int:
        """Flush, then end the thread; mark runs with undelivered records, which stay in the journal, as stopped."""
        deadline = time.monotonic() + min(idle_seconds, max_seconds)
        self.flush(idle_seconds, max_seconds)
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join(max(0.5, deadline - time.monotonic()))  # the thread may wait for a response that never comes
        with self._changed:
            self._abandoned = True
            if self._lease and self.lost_to:
                self._quarantine_own(self._lease.token)
            return self._count()

    def _quarantine_own(self, token: str) -> None:
        """Set aside the undelivered records of a lost study, whose new holder reports all runs itself."""
        own = [record for records in self._pending.values() for record in records if record.token == token]
        if own:
            self.journal.quarantine(own)
        others = {key: deque(r for r in records if r.token != token) for key, records in self._pending.items()}
        self._pending = {key: records for key, records in others.items() if records}
        if not self._pending:  # otherwise the next submission sets them aside, when it sees that they are stale
            self.journal.clear()

    def _has_delivered_more(self, than: int) -> bool:
        return self._delivered > than or self._is_over()

    def _is_over(self) -> bool:
        """Return whether nothing more will be delivered: nothing is pending, or only records of deleted runs."""
        return bool(self.lost_to) or self._pending.keys() <= self._deleted.keys()

    def _queue(self, record: Record) -> None:
        self._pending.setdefault(record.key, deque()).append(record)

    def _count(self) -> int:
        return sum(map(len, self._pending.values()))

    def _run(self) -> None:
        while True:
            with self._changed:
                if self._closing:
                    break
                now = time.monotonic()
                due = next((key for key in self._pending if self._retry_at.get(key, 0) <= now), None)
                if due is None:
                    self._changed.wait(min((self._retry_at[key] - now for key in self._pending), default=None))
                    continue
                records = tuple(self._pending[due])
            self._advance(due, records)
        self._suspend_pending()

    def _advance(self, key: _Key, records: Sequence[Record]) -> None:
        """Deliver the first of a run's records, or as many epochs as fit in one request."""
        with self._changed:
            known = key in self._deliveries
            delivery = self._deliveries.setdefault(key, RunDelivery(self.client, self._lease))
        try:
            count = delivery.deliver(records)
        except LeaseLost:
            with self._changed:
                self._closing = True
                self._changed.notify_all()
            return
        except StaleDelivery:
            self._deliveries.clear()
            return
        except Exception as error:  # a store's own library may raise anything, and this thread must continue
            self._deliveries.pop(key, None)  # the state that it has read of the run may be wrong
            refused = getattr(error, "error_code", "") in PERMANENT_ERRORS
            if refused and known:
                return  # the next delivery reads the run again and raises a precise error
            if not (refused and key in self._recovered):
                self._postpone(key, records[0], error)
                return
            # Records of this process, which starts the run again, may follow those of the earlier process.
            records = tuple(takewhile(lambda record: record.token == records[0].token, records))
            aside = self.journal.quarantine(records)
            logger.warning("MLflow refuses the records of %s, which are kept in %s: %s", records[0].run, aside, _short(error))
            count = len(records)
        else:
            if count and records[count - 1].kind == "end":
                self.on_end_delivered(records[count - 1])
        self._remove(key, records[:count])

    def _postpone(self, key: _Key, record: Record, error: Exception) -> None:
        """Schedule a retry for a run's records, and log each cause once."""
        with self._changed:
            if isinstance(error, DeletedInMlflow):
                if str(error) not in self._deleted.values():
                    logger.warning("%s. Training goes on, and records are kept until then.", error)
                self._deleted[key] = str(error)
            else:
                self._deleted.pop(key, None)
                if not self._failing - self._deleted.keys():
                    what = f"{record.kind} of {record.run}"
                    logger.warning(
                        "MLflow does not accept the %s; records are kept and retried until it does (%s)", what, _short(error)
                    )
            self._failing.add(key)
            self._retry_at[key] = time.monotonic() + RETRY_INTERVAL_SECONDS
            self._changed.notify_all()
        self.journal.sync()

    def _remove(self, key: _Key, records: Sequence[Record]) -> None:
        """Remove records that are delivered or set aside from the front of a run's queue."""
        with self._changed:
            if key not in self._pending:  # set aside during the delivery
                return
            self._delivered += len(records)
            self._retry_at.pop(key, None)
            self._deleted.pop(key, None)
            if key in self._failing:
                self._failing.remove(key)
                if not self._failing:
                    logger.warning("MLflow accepts records again")
            if records[-1].kind == "end":
                self._deliveries.pop(key, None)
            rest = self._pending.pop(key)
            for _ in records:
                rest.popleft()
            if rest:
                self._pending[key] = rest  # at the end: other runs are delivered first
            else:
                self._recovered.discard(key)
            if not self._pending:
                self.journal.clear()
            self._changed.notify_all()

    def _suspend_pending(self) -> None:
        """Mark runs with undelivered records as stopped, as far as MLflow answers."""
        for key, records in self._pending.items():
            if self._abandoned or self.lost_to:
                return  # another process may deliver them from now on
            try:
                self._deliveries.setdefault(key, RunDelivery(self.client, self._lease)).suspend(records[-1])
            except Exception:
                logger.debug("MLflow does not answer", exc_info=True)
                return


def _short(error: Exception) -> str:
    return printable(str(error))[:200]
