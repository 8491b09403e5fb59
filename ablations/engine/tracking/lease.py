"""The lease on a study, as MLflow knows it: for drivers on machines that share nothing but the tracking server.

On one machine, and for the jobs of one cluster, the journal's lock decides. Here the holder writes its name, a token and a beat
into the study's run. A holder on this machine is looked up among its processes; one elsewhere counts as dead when its beat has
stood still for `LEASE_TIMEOUT_SECONDS`, and is succeeded.

It may be alive all the same: stopped, or cut off from MLflow. So every holder looks whether the token is still its own before it
writes. MLflow has no conditional write, and a request may be on its way while its sender stands still: therefore whoever succeeds
such a holder deletes the runs that carry its token and begins them anew. For a deleted run MLflow takes nothing.

A holder's name stays when it lets go, marked as ended: records that its predecessor left in a journal are told by their token.
"""

import json
import logging
import os
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import psutil
from mlflow import MlflowClient
from mlflow.entities import LifecycleStage, RunTag
from mlflow.exceptions import MlflowException

from ablations.engine.environment.provenance import machine
from ablations.engine.tracking.journal import describe_process, study_is_locked_error
from ablations.engine.tracking.mlflow_errors import DeletedInMlflow, deleted_run, is_missing

logger = logging.getLogger(__name__)

RENEW_INTERVAL_SECONDS = 20.0
LEASE_TIMEOUT_SECONDS = 60.0
RACE_WAIT_SECONDS = 1.0
CHECK_INTERVAL_SECONDS = 1.0
"""For so long after it was read, a token is not read again. Nobody is succeeded before `LEASE_TIMEOUT_SECONDS` without a beat."""
HOLDER_TAG, HEARTBEAT_TAG = "holder", "holder.beat"
RUN_HOLDER_TAG = "holder.token"
"""Tag of a run: the token of the driver that trains it."""


class LeaseLost(Exception):  # noqa: N818 - what happened, not a mistake
    """Another process has taken the study over. The message says which."""


class StudyLease:
    """Holds a study's run until `stop`.

    Args:
        client: the MLflow that all drivers of the study share.
        run_id: the study's run there.
        study: its name.
        on_lease_lost: is called once, from any thread, when another process has taken the study over.

    Raises:
        ConfigError: a living process on another machine holds it.
    """

    def __init__(self, client: MlflowClient, run_id: str, study: str, on_lease_lost: Callable[[], object] = lambda: None) -> None:
        self.client, self.run_id, self.study, self.on_lease_lost = client, run_id, study, on_lease_lost
        before, self.expired_token = _check_free(client, run_id, study)
        """Token of a holder that was succeeded because its beat stood still; empty if its process is known to have ended."""
        self.token = uuid.uuid4().hex[:16]
        self.lost_to = ""
        """Who holds the study instead, in one line; empty while this process does."""
        self.gaps = 0
        """How often this process stood still or was cut off from MLflow for so long that what it knew of runs may be outdated."""
        self._beats = 0
        self._lock = threading.Lock()
        name = {"name": describe_process(), "machine": machine(), "pid": os.getpid(), "born": psutil.Process().create_time()}
        self._name = name | {"token": self.token, "before": before}
        tags = {HOLDER_TAG: json.dumps(self._name), HEARTBEAT_TAG: self._next_beat()}
        self._seen = _Clocks()
        client.log_batch(run_id, tags=[RunTag(key, value) for key, value in tags.items()])
        if client.tracking_uri.startswith("http"):  # also what looks local: a tunnel's other end is anywhere
            time.sleep(RACE_WAIT_SECONDS)  # another one may have found it free at the same moment: the last to write has it
            holder = get_holder(client, run_id)
            if holder.get("token") != self.token:
                raise study_is_locked_error(study, holder.get("name", "another process"))
        self._stopped = threading.Event()
        threading.Thread(target=self._run, name="heartbeat", daemon=True).start()

    def check(self) -> None:
        """Make sure that this process still holds the study, before it writes.

        After a gap, it first gives a beat and waits: whoever is about to take over either sees the beat or is seen here.

        Raises:
            HoldLost: another process has taken it over, or this one has let it go.
            DeletedInMlflow: the study's run, or its experiment, was deleted.
            MlflowException: MLflow does not answer.
        """
        with self._lock:
            self._confirm()

    def stop(self) -> None:
        """Let go, unless another process has taken over meanwhile: that stays the holder."""
        with self._lock:  # else a look that is under way would miss the token
            self._stopped.set()
            if get_holder(self.client, self.run_id).get("token") == self.token:
                self.client.set_tag(self.run_id, HOLDER_TAG, json.dumps(self._name | {"ended": True}))

    def stop_renewing(self) -> None:
        """Beat no longer, without a word to MLflow, which may be down: this process is done with the study."""
        self._stopped.set()

    def _confirm(self) -> None:
        """As `check`, for whoever has the lock."""
        self._check_lost()
        seconds = self._seen.seconds()
        if seconds < CHECK_INTERVAL_SECONDS:
            return
        seen = _Clocks()
        self._look(seconds)
        if seconds > LEASE_TIMEOUT_SECONDS / 2:
            self._beat()
            time.sleep(RACE_WAIT_SECONDS)
            seen = _Clocks()
            self._look(seconds)
            self.gaps += 1
        self._seen = seen

    def _check_lost(self) -> None:
        if self.lost_to:
            raise LeaseLost(self.lost_to)
        if self._stopped.is_set():
            raise LeaseLost("this process has let the study go")

    def _look(self, seconds: float) -> None:
        run = _run(self.client, self.run_id, f"the run of the study {self.study}")
        holder = _holder(run)
        if holder.get("token") == self.token:
            return
        self._check_lost()
        self._stopped.set()
        what = "holds it now" if is_held(holder) else "took it over meanwhile, and has ended"
        who = f"{holder.get('name', 'another process')} {what}"
        self.lost_to = f"{who}; this one had not been heard of for {seconds:.0f} s and stops, nothing more is written"
        self.on_lease_lost()
        self._check_lost()

    def _beat(self) -> None:
        self.client.set_tag(self.run_id, HEARTBEAT_TAG, self._next_beat())

    def _next_beat(self) -> str:
        self._beats += 1
        return f"{self.token}-{self._beats}"

    def _run(self) -> None:
        while not self._stopped.wait(RENEW_INTERVAL_SECONDS):
            with suppress(Exception):  # a server that is down is not asked by anybody else either
                self._look_and_beat()

    def _look_and_beat(self) -> None:
        if self._lock.acquire(timeout=RENEW_INTERVAL_SECONDS / 4):
            try:
                self._confirm()
            finally:
                self._lock.release()
        # Else somebody's look waits for MLflow, for up to two minutes. Without a beat, this process would count as dead.
        if not (self.lost_to or self._stopped.is_set()):
            self._beat()


class _Clocks:
    """A moment. By one clock alone a suspended machine or a virtual one that was frozen may have spent no time."""

    def __init__(self) -> None:
        self.wall, self.running = time.time(), time.clock_gettime(_RUNNING)

    def seconds(self) -> float:
        """Return the seconds since then, by the clock that counted more."""
        return max(time.time() - self.wall, time.clock_gettime(_RUNNING) - self.running)


_RUNNING = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
"""A clock that nobody sets; on Linux one that goes on while the machine is suspended."""


def get_holder(client: MlflowClient, run_id: str) -> dict[str, Any]:
    """Return who holds a study's run, or held it last: name, machine, process and token; nothing if nobody did or it is gone.

    `before` is the token of the holder before that one; `ended` is there if it has let go.
    """
    try:
        return _holder(client.get_run(run_id))
    except MlflowException as error:
        if is_missing(error):
            return {}
        raise


def _holder(run: Any) -> dict[str, Any]:
    holder: dict[str, Any] = json.loads(run.data.tags.get(HOLDER_TAG, "{}"))
    return holder


def is_held(holder: dict[str, Any]) -> bool:
    """Return whether this is the name of a process that has not let go."""
    return bool(holder) and not holder.get("ended")


def _run(client: MlflowClient, run_id: str, what: str) -> Any:
    """Return a run that is not deleted."""
    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        if is_missing(error):
            raise DeletedInMlflow(
                f"{what} was deleted in MLflow for good; the same command, given again, begins a new one"
            ) from error
        raise
    if run.info.lifecycle_stage != LifecycleStage.ACTIVE:
        raise deleted_run(client, what, run_id, run.info.experiment_id)
    return run


def _check_free(client: MlflowClient, run_id: str, study: str) -> tuple[str, str]:
    """Return the last holder's token, and the same if that is only presumed dead; raise ConfigError for one that lives."""
    run = client.get_run(run_id)
    holder = _holder(run)
    token = str(holder.get("token", ""))
    if not is_held(holder):
        return token, ""
    if holder.get("machine") == machine():
        if holder["pid"] != os.getpid() and _lives(holder["pid"], holder["born"]):
            raise study_is_locked_error(study, holder["name"])
        return token, ""
    name, token, has_ended = _living(client, run_id, run.data.tags.get(HEARTBEAT_TAG), holder)
    if name:
        raise study_is_locked_error(study, name)
    return token, "" if has_ended else token


def _lives(pid: int, born: float) -> bool:
    try:
        process = psutil.Process(pid)
        return process.create_time() == born and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _living(client: MlflowClient, run_id: str, last: str | None, holder: dict[str, Any]) -> tuple[str, str, bool]:
    """Return the name of the living process that holds the run, empty if none does, the last holder's token, and if that let go."""
    logger.warning("looking for up to %.0f s whether %s is alive", LEASE_TIMEOUT_SECONDS, holder["name"])
    deadline = time.monotonic() + LEASE_TIMEOUT_SECONDS
    while time.monotonic() < deadline:
        time.sleep(min(5.0, LEASE_TIMEOUT_SECONDS / 10))
        run = client.get_run(run_id)
        now = _holder(run)
        if not is_held(now):
            return "", str(now.get("token", "")), True
        if now != holder or run.data.tags.get(HEARTBEAT_TAG) != last:  # it beats, or another one that waited has succeeded it
            return str(now["name"]), "", False
    return "", str(holder.get("token", "")), False
