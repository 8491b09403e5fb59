"""The process that holds a study, as the tags of the study's run in MLflow name it. Importable without MLflow."""

import json
import time
from collections.abc import Mapping
from typing import Any

import psutil

from ablations.engine.environment.provenance import machine_id

HOLDER_TAG, HEARTBEAT_TAG = "holder", "holder.beat"
"""Tags of a study's run: its holder as JSON, and the holder's latest heartbeat."""

MAX_SILENCE_SECONDS = 24 * 3600.0
"""Age of the last heartbeat of a process on another machine after which listings count it as ended. Clocks may differ by hours."""
MIN_TIME_DIGITS = 10
"""Digits of a time in seconds. Heartbeats of earlier versions end with their number instead."""


def holder_of(tags: Mapping[str, str]) -> dict[str, Any]:
    """Return the latest holder of a study from the tags of its run: name, machine, process and token; empty if there is none.

    `before` is the token of the holder before that one; `ended` is true after a release.
    """
    holder: dict[str, Any] = json.loads(tags.get(HOLDER_TAG, "{}"))
    return holder


def is_held(holder: Mapping[str, Any]) -> bool:
    """Return whether the holder exists and has not released the study."""
    return bool(holder) and not holder.get("ended")


def is_here(holder: Mapping[str, Any]) -> bool:
    """Return whether the holder is or was a process of this machine."""
    return holder.get("machine") == machine_id()


def is_alive(pid: int, born: float) -> bool:
    """Return whether a process of this machine lives; `born` is its creation time, since process IDs are reused."""
    try:
        process = psutil.Process(pid)
        return process.create_time() == born and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def heartbeat(token: str, number: int) -> str:
    """Return the value of a heartbeat's tag. Takeovers compare it for equality; its time is for people, whose clocks may differ."""
    return f"{token}-{number}-{int(time.time())}"


def may_be_alive(tags: Mapping[str, str]) -> bool:
    """Return whether a holder has not released the study and may live.

    One on another machine counts as alive until its last heartbeat is older than `MAX_SILENCE_SECONDS`.
    """
    holder = holder_of(tags)
    if not is_held(holder):
        return False
    if is_here(holder):
        return is_alive(holder["pid"], holder["born"])
    *_, last = tags.get(HEARTBEAT_TAG, "").split("-")
    return not last.isdecimal() or len(last) < MIN_TIME_DIGITS or time.time() - int(last) < MAX_SILENCE_SECONDS
