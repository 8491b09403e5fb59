"""Lease on a study in MLflow, for drivers on machines that share nothing but the tracking server.

On one machine, and for the jobs of one cluster, the lock of `journal` decides. Across machines, the holder writes its name, a
token and a heartbeat into tags of the study's run. A holder on this machine is alive if its process is. A holder elsewhere counts
as dead when its heartbeat has not changed for `LEASE_TIMEOUT_SECONDS`; another process may then take the study over.

A holder presumed dead may be alive: suspended, or cut off from MLflow. Each holder therefore checks before each write that the
token is still its own. MLflow has no conditional write, so that a request may still arrive after the check. Fencing closes this
race: the new holder deletes the runs that carry the old token and starts them again. MLflow accepts nothing for a deleted run.

The holder's tag stays after its release, marked as ended, so that a token in older records can still be recognized.
"""

import json
import logging
import os
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import psutil
from mlflow import MlflowClient
from mlflow.entities import LifecycleStage, RunTag
from mlflow.exceptions import MlflowException

from ablations.engine.environment.provenance import machine_id
from ablations.engine.tracking.holder import HEARTBEAT_TAG, HOLDER_TAG, heartbeat, holder_of, is_alive, is_held, is_here
from ablations.engine.tracking.journal import describe_process, study_is_locked_error
from ablations.engine.tracking.mlflow_errors import DeletedInMlflow, deleted_run, is_missing

logger = logging.getLogger(__name__)

RENEW_INTERVAL_SECONDS = 20.0
"""Time between two heartbeats, in seconds."""
LEASE_TIMEOUT_SECONDS = 60.0
"""Time without a heartbeat after which a holder on another machine counts as dead, in seconds."""
RACE_WAIT_SECONDS = 1.0
"""Time between writing the token and reading it back, in seconds. Of several processes that write at once, the last one wins."""
CHECK_INTERVAL_SECONDS = 1.0
"""Time for which a token that was read counts as current, in seconds. It is far below `LEASE_TIMEOUT_SECONDS`."""
RUN_HOLDER_TAG = "holder.token"
"""Tag of a run: token of the driver that trains it."""


class LeaseLost(Exception):  # noqa: N818 - an event, not a mistake
    """Another process has taken the study over. The message says which."""


class StudyLease:
    """Lease on a study's run in MLflow, renewed by a thread until `release` or `stop_renewing`.

    Args:
        client: client of the MLflow that all drivers of the study share.
        run_id: ID of the study's own run.
        study: name of the study, for messages.
        on_lease_lost: called once, from any thread, when another process has taken the study over.

    Raises:
        ConfigError: a living process holds the study.
    """

    def __init__(self, client: MlflowClient, run_id: str, study: str, on_lease_lost: Callable[[], object] = lambda: None) -> None:
        self.client, self.run_id, self.study, self.on_lease_lost = client, run_id, study, on_lease_lost
        before = _wait_until_free(client, run_id, study)
        self.expired_token = "" if before.has_ended else before.token
        """Token of a previous holder that is only presumed dead; empty if its process is known to have ended."""
        self.token = uuid.uuid4().hex[:16]
        self.lost_to = ""
        """Description of the process that has taken the study over; empty while this process holds it."""
        self.gaps = 0
        """Number of suspensions of this process, or outages of MLflow, long enough to make its knowledge of runs stale."""
        self._heartbeats = 0
        self._lock = threading.Lock()
        name = {"name": describe_process(), "machine": machine_id(), "pid": os.getpid(), "born": psutil.Process().create_time()}
        self._holder = name | {"token": self.token, "before": before.token}
        tags = {HOLDER_TAG: json.dumps(self._holder), HEARTBEAT_TAG: self._next_heartbeat()}
        self._checked = _Stopwatch()
        client.log_batch(run_id, tags=[RunTag(key, value) for key, value in tags.items()])
        if client.tracking_uri.startswith("http"):  # also for a local address, which may be a tunnel to another machine
            time.sleep(RACE_WAIT_SECONDS)
            holder = get_holder(client, run_id)
            if holder.get("token") != self.token:
                raise study_is_locked_error(study, holder.get("name", "another process"))
        self._stopped = threading.Event()
        threading.Thread(target=self._renew_until_stopped, name="lease", daemon=True).start()

    def check(self) -> None:
        """Check that this process still holds the study. Call it before each write.

        After a gap, it sends a heartbeat and waits. A process that is about to take over then sees the heartbeat, or this process
        sees the other's token.

        Raises:
            LeaseLost: another process has taken the study over, or this one has released it.
            DeletedInMlflow: the study's run or its experiment was deleted.
            MlflowException: MLflow does not answer.
        """
        with self._lock:
            self._check()

    def release(self) -> None:
        """Give the study up, unless another process has taken it over meanwhile."""
        with self._lock:  # a check in progress must not miss the token
            self._stopped.set()
            if get_holder(self.client, self.run_id).get("token") == self.token:
                self.client.set_tag(self.run_id, HOLDER_TAG, json.dumps(self._holder | {"ended": True}))

    def stop_renewing(self) -> None:
        """Send no further heartbeat, without a request to MLflow, which may be down. This process must write nothing more."""
        self._stopped.set()

    def _check(self) -> None:
        """Do the work of `check`, with the lock held."""
        self._raise_if_lost()
        seconds = self._checked.seconds()
        if seconds < CHECK_INTERVAL_SECONDS:
            return
        now = _Stopwatch()
        self._compare_token(seconds)
        if seconds > LEASE_TIMEOUT_SECONDS / 2:
            self._send_heartbeat()
            time.sleep(RACE_WAIT_SECONDS)
            now = _Stopwatch()
            self._compare_token(seconds)
            self.gaps += 1
        self._checked = now

    def _raise_if_lost(self) -> None:
        if self.lost_to:
            raise LeaseLost(self.lost_to)
        if self._stopped.is_set():
            raise LeaseLost("this process has released the study")

    def _compare_token(self, seconds: float) -> None:
        """Raise LeaseLost if MLflow names another token.

        Args:
            seconds: time since the last check, for the message.
        """
        run = _active_run(self.client, self.run_id, f"the run of the study {self.study}")
        holder = holder_of(run.data.tags)
        if holder.get("token") == self.token:
            return
        self._raise_if_lost()
        self._stopped.set()
        what = "holds it now" if is_held(holder) else "took it over meanwhile, and has ended"
        who = f"{holder.get('name', 'another process')} {what}"
        self.lost_to = f"{who}; this process had sent no heartbeat for {seconds:.0f} s, stops and writes nothing more"
        self.on_lease_lost()
        self._raise_if_lost()

    def _send_heartbeat(self) -> None:
        self.client.set_tag(self.run_id, HEARTBEAT_TAG, self._next_heartbeat())

    def _next_heartbeat(self) -> str:
        self._heartbeats += 1
        return heartbeat(self.token, self._heartbeats)

    def _renew_until_stopped(self) -> None:
        while not self._stopped.wait(RENEW_INTERVAL_SECONDS):
            with suppress(Exception):  # while the server is down, no other process can take over either
                self._renew()

    def _renew(self) -> None:
        if self._lock.acquire(timeout=RENEW_INTERVAL_SECONDS / 4):
            try:
                self._check()
            finally:
                self._lock.release()
        # If the lock is taken, another thread's check waits for MLflow, for up to two minutes. The heartbeat must not wait so long.
        if not (self.lost_to or self._stopped.is_set()):
            self._send_heartbeat()


class _Stopwatch:
    """Time since its creation, by two clocks: either one may stop while the machine is suspended or its virtual machine frozen."""

    def __init__(self) -> None:
        self.wall, self.running = time.time(), time.clock_gettime(_RUNNING)

    def seconds(self) -> float:
        """Return the seconds since creation, by the clock that has advanced more."""
        return max(time.time() - self.wall, time.clock_gettime(_RUNNING) - self.running)


_RUNNING = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
"""Clock that cannot be set. On Linux, it also advances while the machine is suspended."""


def get_holder(client: MlflowClient, run_id: str) -> dict[str, Any]:
    """Return the latest holder of a study's run, as `holder_of` does; empty if there is none or the run is gone."""
    try:
        return holder_of(client.get_run(run_id).data.tags)
    except MlflowException as error:
        if is_missing(error):
            return {}
        raise


def _active_run(client: MlflowClient, run_id: str, what: str) -> Any:
    """Return a run; raise DeletedInMlflow if it was deleted."""
    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        if is_missing(error):
            message = f"{what} was deleted in MLflow permanently; the same command, given again, starts a new one"
            raise DeletedInMlflow(message) from error
        raise
    if run.info.lifecycle_stage != LifecycleStage.ACTIVE:
        raise deleted_run(client, what, run_id, run.info.experiment_id)
    return run


@dataclass(frozen=True)
class _PreviousHolder:
    """The holder whose lease this process takes over."""

    token: str
    """Its token; empty if there was no holder."""
    has_ended: bool
    """True if its process is known to have ended, not only presumed dead."""


def _wait_until_free(client: MlflowClient, run_id: str, study: str) -> _PreviousHolder:
    """Return the previous holder, after waiting for the lease of one on another machine to expire.

    Raises:
        ConfigError: the holder is alive.
    """
    run = client.get_run(run_id)
    holder = holder_of(run.data.tags)
    token = str(holder.get("token", ""))
    if not is_held(holder):
        return _PreviousHolder(token, has_ended=True)
    if is_here(holder):
        if holder["pid"] != os.getpid() and is_alive(holder["pid"], holder["born"]):
            raise study_is_locked_error(study, holder["name"])
        return _PreviousHolder(token, has_ended=True)
    return _wait_for_expiry(client, run_id, study, run)


def _wait_for_expiry(client: MlflowClient, run_id: str, study: str, first: Any) -> _PreviousHolder:
    """Watch the heartbeat of a holder on another machine for `LEASE_TIMEOUT_SECONDS`; raise ConfigError if it changes."""
    holder, last = holder_of(first.data.tags), first.data.tags.get(HEARTBEAT_TAG)
    logger.warning("waiting up to %.0f s to see whether %s is alive", LEASE_TIMEOUT_SECONDS, holder["name"])
    deadline = time.monotonic() + LEASE_TIMEOUT_SECONDS
    while time.monotonic() < deadline:
        time.sleep(min(5.0, LEASE_TIMEOUT_SECONDS / 10))
        run = client.get_run(run_id)
        now = holder_of(run.data.tags)
        if not is_held(now):
            return _PreviousHolder(str(now.get("token", "")), has_ended=True)
        if (
            now != holder or run.data.tags.get(HEARTBEAT_TAG) != last
        ):  # the holder is alive, or another process has taken over first
            raise study_is_locked_error(study, str(now["name"]))
    return _PreviousHolder(str(holder.get("token", "")), has_ended=False)
