"""Who runs a study, as MLflow knows it: for submissions from machines that share nothing but the tracking server.

On one machine, and for the jobs of one cluster, the journal's lock decides. Here the holder writes its name and a beat into the
study's run; a process of this machine is looked up, one elsewhere counts as dead when its beat stands still.
"""

import json
import logging
import os
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
from mlflow import MlflowClient

from ablations.engine.journal import describe_process, held

logger = logging.getLogger(__name__)

BEAT_SECONDS = 20.0
DEAD_SECONDS = 60.0
SETTLE_SECONDS = 1.0
HOLDER, BEAT = "holder", "holder.beat"


class Heartbeat:
    """Holds a study's run until `stop`.

    Raises:
        ConfigError: a living process on another machine holds it.
    """

    def __init__(self, client: MlflowClient, run_id: str, study: str) -> None:
        self.client, self.run_id = client, run_id
        _check_free(client, run_id, study)
        own = json.dumps(
            {
                "name": describe_process(),
                "machine": machine(),
                "pid": os.getpid(),
                "born": psutil.Process().create_time(),
            }
        )
        client.set_tag(run_id, HOLDER, own)
        if urlsplit(client.tracking_uri).hostname not in (None, "localhost", "127.0.0.1", "::1"):
            time.sleep(SETTLE_SECONDS)  # another one may have found it free at the same moment: the last to write has it
            tags = client.get_run(run_id).data.tags
            if tags.get(HOLDER) != own:
                raise held(study, json.loads(tags.get(HOLDER, "{}")).get("name", "another process"))
        self._own = own
        self._stopped = threading.Event()
        threading.Thread(target=self._run, name="heartbeat", daemon=True).start()

    def stop(self) -> None:
        """Also if another one has taken over meanwhile: that stays the holder."""
        self._stopped.set()
        if self.client.get_run(self.run_id).data.tags.get(HOLDER) == self._own:
            self.client.delete_tag(self.run_id, HOLDER)

    def _run(self) -> None:
        beat = 0
        while not self._stopped.wait(BEAT_SECONDS):
            beat += 1
            with suppress(Exception):  # a server that is down is not asked by anybody else either
                self.client.set_tag(self.run_id, BEAT, f"{os.getpid()}-{beat}")


def _check_free(client: MlflowClient, run_id: str, study: str) -> None:
    tags = client.get_run(run_id).data.tags
    holder = json.loads(tags.get(HOLDER, "{}"))
    if not holder:
        return
    if holder.get("machine") == machine():
        alive = holder["pid"] != os.getpid() and _lives(holder["pid"], holder["born"])
    else:
        alive = _beats(client, run_id, tags.get(BEAT), holder)
    if alive:
        raise held(study, holder["name"])


def machine() -> str:
    """Where a process is found by its number: a name alone may be that of two machines, or of two containers of one."""
    known = [socket.gethostname()]
    with suppress(OSError):  # Linux tells; elsewhere the name has to do
        known += [Path("/proc/sys/kernel/random/boot_id").read_text().strip(), os.readlink("/proc/self/ns/pid")]
    return " ".join(known)


def _lives(pid: int, born: float) -> bool:
    try:
        process = psutil.Process(pid)
        return process.create_time() == born and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _beats(client: MlflowClient, run_id: str, last: str | None, holder: dict[str, Any]) -> bool:
    logger.warning("looking for up to %.0f s whether %s is alive", DEAD_SECONDS, holder["name"])
    deadline = time.monotonic() + DEAD_SECONDS
    while time.monotonic() < deadline:
        time.sleep(min(5.0, DEAD_SECONDS / 10))
        tags = client.get_run(run_id).data.tags
        if tags.get(BEAT) != last:
            return True
        if HOLDER not in tags:
            return False
    return False
