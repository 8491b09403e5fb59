"""The command `ablations stop NAME [RUN]`: stop a running study or one of its runs, wherever it runs.

It sets the tag `stop` in MLflow, as a user may do on MLflow's page. The process that holds the study looks for it every 5 s.
"""

import argparse
import getpass
import os
import socket
import time
from collections.abc import Callable, Sequence
from typing import Any

from ablations.engine.cli import options
from ablations.engine.cli.studies import catalog
from ablations.engine.cli.studies.catalog import StudyEntry
from ablations.engine.cli.studies.documents import print_document
from ablations.engine.cli.studies.reader import Reader, add_reading_options, read, tracking_uri
from ablations.engine.cli.studies.run_lookup import find_run, run_title
from ablations.engine.tracking import connection, run_queries
from resnet_core.fields import reject

HELP = "stop a running study, or one of its runs; submitted again, it continues"
SCHEMA = "ablations-stop/1"
WAIT_SECONDS = 120.0
"""Time for which the command waits until the study or run has stopped, in seconds."""
STATUS_SECONDS = 5.0
"""Timeout for the status of a study that has stopped, in seconds."""
POLL_INTERVAL_SECONDS = 1.0
"""Time between two looks at MLflow while waiting, in seconds."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.description = options.fill(
        "Stop a study that runs, on this machine or elsewhere, as Ctrl-C does; or one of its runs, at the end of its epoch. "
        "Finished runs keep their results, the others keep their checkpoints: submitted again, the study continues. The same as "
        "the tag stop, set on MLflow's page. Exit code 1: it has not stopped yet."
    )
    parser.add_argument("name", metavar="NAME", help="study: a name of `ablations list`, NAME@PRESET, or a run ID")
    parser.add_argument(
        "run_name", nargs="?", metavar="RUN", help="run: an ID or fingerprint, or 6 or more of its first characters"
    )
    parser.add_argument(
        "--wait",
        type=float,
        default=WAIT_SECONDS,
        metavar="SECONDS",
        help=f"how long to wait until it has stopped; 0: do not wait (default: {WAIT_SECONDS:g})",
    )
    add_reading_options(parser)


def run(given: argparse.Namespace) -> int:
    """Ask for the stop and wait for it; return the exit code."""
    if not 0 <= given.wait < float("inf"):
        raise reject("--wait", given.wait, "accepted: seconds, 0 or more")
    uri = tracking_uri(given)
    entry, chosen = read(uri, lambda reader: _find(reader, given.name, given.run_name))
    what = run_title(chosen) if chosen else f"the study {entry.name}"
    target = (chosen or entry.run).info.run_id
    client = connection.connect(uri)
    with connection.mlflow_errors_as_config_errors(uri):
        client.set_tag(target, run_queries.STOP_TAG, f"{_user()}@{socket.gethostname()}, ablations stop")
        stopped = _wait(client, target, given.wait, lambda found: _has_stopped(found, of_study=chosen is None))
        # A study releases its lease before it sets its status.
        _wait(client, target, STATUS_SECONDS if stopped else 0, lambda found: found.info.status != "RUNNING")
        finished = stopped and client.get_run(target).info.status == "FINISHED"
    text = _text(what, entry, stopped=stopped, finished=finished, waited=given.wait)
    if given.json:
        print_document({"schema": SCHEMA, "study": entry.name, "run_id": target, "stopped": stopped, "text": text})
    else:
        print(text)
    return 0 if stopped or not given.wait else 1


def _find(reader: Reader, name: str, run_name: str | None) -> tuple[StudyEntry, Any | None]:
    """Return the running study that a name means, and one of its running runs."""
    entries = catalog.list_studies(reader)
    running = [each for each in catalog.find_studies(entries, name) if each.is_running]
    if not running:
        now = [catalog.selectors(entries)[each.run_id] for each in entries if each.is_running]
        raise reject("NAME", name, f"does not run; accepted: {', '.join(now) if now else 'a running study, and none runs now'}")
    entry = catalog.find_exactly_one(running, name)
    if run_name is None:
        return entry, None
    where = f"tags.`mlflow.parentRunId` = '{entry.run_id}' and attributes.status = 'RUNNING'"
    return entry, find_run(list(run_queries.search_runs(reader.client, where)), run_name, "a run of this study that trains now")


def _wait(client: Any, run_id: str, seconds: float, has_stopped: Callable[[Any], bool]) -> bool:
    deadline = time.monotonic() + seconds
    while not has_stopped(client.get_run(run_id)):
        if time.monotonic() >= deadline:
            return False
        time.sleep(POLL_INTERVAL_SECONDS)
    return True


def _has_stopped(found: Any, *, of_study: bool) -> bool:
    if not of_study:
        return bool(found.info.status != "RUNNING")
    from ablations.engine.tracking.holder import may_be_alive

    return not may_be_alive(found.data.tags)


def _text(what: str, entry: StudyEntry, *, stopped: bool, finished: bool, waited: float) -> str:
    if finished:
        return f"{what} was complete before the request reached it."
    if stopped:
        return f"{what} has stopped; submitted again, it continues."
    holder = entry.holder.get("name", "its process")
    if not waited:
        return f"{what} was asked to stop; {holder} looks for requests every few seconds."
    return (
        f"{what} has not stopped within {waited:g} s: {holder} trains an epoch to its end, or does not answer. The request stays; "
        f"to end the process at once: {_kill_command(entry.holder)}"
    )


def _kill_command(holder: Any) -> str:
    words: Sequence[str] = str(holder.get("name", "")).replace(",", "").split()
    if words[:1] == ["job"]:
        return f"ray job stop {words[1]}"
    return f"kill {holder.get('pid', 'PID')} on its machine"


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container may run under a user ID without a name
        return f"uid {os.getuid()}"
