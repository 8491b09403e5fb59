"""Records of runs on their way to MLflow: each run's in order, from a thread that training never waits for."""

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Sequence
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
        self._deliveries: dict[_Key, RunDelivery] = {}
        self._waiting: dict[_Key, deque[Record]] = {}
        self._retry_at: dict[_Key, float] = {}
        self._failing: set[_Key] = set()
        """Runs of which MLflow did not take a record when last asked."""
        self._refused: dict[_Key, str] = {}
        """Of these, those that were deleted there, and what to do about it."""
        self._lease: StudyLease | None = None
        self._closing = self._abandoned = False
        self._taken = 0
        """How many records are done with."""
        self._changed = threading.Condition()
        for record in journal.recovered:
            self._queue(record)
        for records in self._waiting.values():
            if records[-1].kind != "end":  # its process died; if it is trained again, that starts it again
                values = {"outcome": "stopped", "message": JOB_KILLED, "traceback": ""}
                records.append(replace(records[-1], kind="end", values=values))
        self._inherited = set(self._waiting)
        self._thread = threading.Thread(target=self._run, name="mlflow-writer", daemon=True)
        self._thread.start()

    def put(self, record: Record) -> None:
        """Returns at once. Once another process has taken the study over, records are dropped: it reports all of its runs anew."""
        with self._changed:
            if self.lost_to:
                return
            self.journal.append(record)
            self._queue(record)
            self._changed.notify_all()

    def pending_fingerprints(self) -> set[str]:
        """Fingerprints of runs whose records are on their way."""
        with self._changed:
            return {fingerprint for fingerprint, _ in self._waiting}

    def set_lease(self, lease: StudyLease) -> None:
        """Write records with the token of this hold on the study only while it lasts."""
        with self._changed:
            self._lease = lease
            self._deliveries.clear()  # those of what an earlier submission left

    def release(self) -> None:
        """Write nothing more for the study. Whether MLflow still names this process as its holder does not matter then."""
        if self._lease:
            self._lease.stop_renewing()

    @property
    def lost_to(self) -> str:
        """Who holds the study instead of this process; empty while that is not so."""
        return self._lease.lost_to if self._lease else ""

    def refusals(self) -> list[str]:
        """Return what was deleted in MLflow while its records wait, and how to go on."""
        with self._changed:
            return list(dict.fromkeys(self._refused.values()))

    def flush(self, patience: float, at_most: float = math.inf) -> int:
        """Waits until everything is delivered; returns how many records are not. What was deleted there is not waited for.

        Args:
            patience: seconds in which nothing is taken, after which this gives up. A server may be slow, as long as it takes some.
            at_most: seconds, whatever is taken.
        """
        deadline = time.monotonic() + at_most
        with self._changed:
            while not self._is_over():
                left = min(patience, deadline - time.monotonic())
                if not self._changed.wait_for(partial(self._has_taken_more, self._taken), left):
                    break
            return self._count()

    def close(self, patience: float, at_most: float = math.inf) -> int:
        """As `settle`, and ends the thread. What is not delivered stays in the journal, and its runs do not look as if they ran."""
        deadline = time.monotonic() + min(patience, at_most)
        self.flush(patience, at_most)
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join(max(0.5, deadline - time.monotonic()))  # it may sit in a request that nobody answers
        with self._changed:
            self._abandoned = True
            if self._lease and self.lost_to:
                self._put_own_aside(self._lease.token)
            return self._count()

    def _put_own_aside(self, token: str) -> None:
        """Have nobody deliver records of a study that was lost to another process, which reports all of its runs."""
        own = [record for records in self._waiting.values() for record in records if record.token == token]
        if own:
            self.journal.quarantine(own)
        others = {key: deque(r for r in records if r.token != token) for key, records in self._waiting.items()}
        self._waiting = {key: records for key, records in others.items() if records}
        if not self._waiting:  # else the next submission puts them aside, when it sees whose study it is
            self.journal.clear()

    def _has_taken_more(self, than: int) -> bool:
        return self._taken > than or self._is_over()

    def _is_over(self) -> bool:
        """Return whether nothing more will be delivered: all is, or the rest will not be taken."""
        return bool(self.lost_to) or self._waiting.keys() <= self._refused.keys()

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
        except Exception as error:  # whatever a store's own library raises; this thread must live
            self._deliveries.pop(key, None)  # what it knew of the run may not be so
            refused = getattr(error, "error_code", "") in PERMANENT_ERRORS
            if refused and known:
                return  # looks anew, and then says what has become of the run
            if not (refused and key in self._inherited):
                self._postpone(key, records[0], error)
                return
            # Behind them may be records of this process, which begins the run anew.
            records = tuple(takewhile(lambda record: record.token == records[0].token, records))
            aside = self.journal.quarantine(records)
            logger.warning("records of %s wait in %s, MLflow refuses them: %s", records[0].run, aside, _short(error))
            count = len(records)
        self._take(key, records[:count])

    def _postpone(self, key: _Key, record: Record, error: Exception) -> None:
        """Has a run's records sent again later, and says so once for each cause."""
        with self._changed:
            if isinstance(error, DeletedInMlflow):
                if str(error) not in self._refused.values():
                    logger.warning("%s. Training goes on, and records wait.", error)
                self._refused[key] = str(error)
            else:
                self._refused.pop(key, None)
                if not self._failing - self._refused.keys():
                    what = f"{record.kind} of {record.run}"
                    logger.warning(
                        "MLflow does not take the %s: records wait and are sent again until it does (%s)", what, _short(error)
                    )
            self._failing.add(key)
            self._retry_at[key] = time.monotonic() + RETRY_INTERVAL_SECONDS
            self._changed.notify_all()
        self.journal.sync()

    def _take(self, key: _Key, records: Sequence[Record]) -> None:
        """Is done with the first of a run's records."""
        with self._changed:
            if key not in self._waiting:  # put aside while this was on its way
                return
            self._taken += len(records)
            self._retry_at.pop(key, None)
            self._refused.pop(key, None)
            if key in self._failing:
                self._failing.remove(key)
                if not self._failing:
                    logger.warning("MLflow takes records again")
            if records[-1].kind == "end":
                self._deliveries.pop(key, None)
            rest = self._waiting.pop(key)
            for _ in records:
                rest.popleft()
            if rest:
                self._waiting[key] = rest  # behind the other runs
            else:
                self._inherited.discard(key)
            if not self._waiting:
                self.journal.clear()
            self._changed.notify_all()

    def _give_up(self) -> None:
        for key, records in self._waiting.items():
            if self._abandoned or self.lost_to:
                return  # from here on, another process may deliver them
            try:
                self._deliveries.setdefault(key, RunDelivery(self.client, self._lease)).suspend(records[-1])
            except Exception:
                logger.debug("MLflow does not answer", exc_info=True)
                return


def _short(error: Exception) -> str:
    return printable(str(error))[:200]
