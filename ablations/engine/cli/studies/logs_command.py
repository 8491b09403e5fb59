"""The command `ablations logs RUN`: why a run ended, its traceback, and the output of its processes where that still exists."""

import argparse
import os
import re
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ablations.engine.cli import options
from ablations.engine.cli.studies import catalog
from ablations.engine.cli.studies.documents import print_document
from ablations.engine.cli.studies.reader import Reader, add_reading_options, read, tracking_uri
from ablations.engine.cli.studies.run_lookup import find_run, run_title
from ablations.engine.environment import private_files
from ablations.engine.tracking import run_queries
from ablations.engine.trial.job import PROCESS_TAG
from resnet_core.fields import reject

HELP = "show why a run ended, its traceback, and the output of its processes"
SCHEMA = "ablations-logs/1"
TRACEBACK = "traceback.txt"
"""Artifact of a failed run."""
RAY_FOLDER = "/tmp/ray"  # noqa: S108 - where a Ray that was started by hand keeps its logs
DEFAULT_LINES = 200
FINGERPRINT = re.compile("[0-9a-f]{20}")


@dataclass(frozen=True, kw_only=True)
class ProcessLog:
    """The output of one process that trained the run."""

    machine: str
    worker: str
    """ID of the process in Ray."""
    path: str
    """Its file on this machine; empty if there is none."""
    text: str
    """The last lines of the file."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.description = options.fill(
        "Show how a run ended, why, and what its processes printed. Ray keeps their output on the machine where they ran, until "
        "the next start of Ray there removes the folder of one that has ended."
    )
    parser.add_argument("run_name", metavar="RUN", help="run: an ID or fingerprint, or 6 or more of its first characters")
    parser.add_argument(
        "--lines", type=int, default=DEFAULT_LINES, metavar="N", help=f"last lines of each file (default: {DEFAULT_LINES})"
    )
    add_reading_options(parser)


def run(given: argparse.Namespace) -> int:
    """Print what is known of the run; return the exit code."""
    if given.lines < 1:
        raise reject("--lines", given.lines, "accepted: 1 or more")
    chosen, traceback, outcome = read(tracking_uri(given), lambda reader: _find(reader, given.run_name))
    logs = [log for place in _places(chosen) for log in _process_logs(*place, lines=given.lines)]
    if given.json:
        print_document(_document(chosen, traceback, outcome, logs))
    else:
        _print(chosen, traceback, outcome, logs)
    return 0


def _find(reader: Reader, name: str) -> tuple[Any, str, str]:
    """Return the run that a name means, its traceback and its outcome: a killed study leaves runs without an end."""
    text = name.strip().lower()
    runs: list[Any] = []
    if FINGERPRINT.fullmatch(text):  # one request, where MLflow has many runs
        runs = list(run_queries.search_runs(reader.client, f"tags.fingerprint = '{text}'"))
    runs = runs or list(run_queries.search_runs(reader.client, "tags.fingerprint LIKE '%'"))
    found = find_run(runs, name, "a run that MLflow has; ablations runs NAME lists them")
    record = run_queries.run_record(found)
    parent = record.tags.get(run_queries.PARENT_TAG, "")
    is_running = record.status != "RUNNING" or all(
        each.is_running for each in catalog.list_studies(reader) if each.run_id == parent
    )
    return found, reader.artifact(found, TRACEBACK) or "", record.outcome_in(parent, is_running=is_running)


def _places(found: Any) -> list[tuple[str, str]]:
    """Return the machine and the worker ID of each process that trained a run."""
    texts = filter(None, found.data.tags.get(PROCESS_TAG, "").split(", "))
    return [(machine, worker) for machine, _, worker in (text.rpartition(":") for text in texts)]


def _process_logs(machine: str, worker: str, *, lines: int) -> list[ProcessLog]:
    files = _files(worker) if machine == socket.gethostname() else []
    found = [ProcessLog(machine=machine, worker=worker, path=str(file), text=_tail(file, lines)) for file in files]
    return [log for log in found if log.text] or [ProcessLog(machine=machine, worker=worker, path="", text="")]


def _files(worker: str) -> list[Path]:
    """Return the files with the output of a process, in the folders of all Rays of this machine."""
    roots = [*(folder / "r" for folder in private_files.ray_folders()), Path(os.environ.get("RAY_TMPDIR") or RAY_FOLDER)]
    found = {file.resolve() for root in roots for file in root.glob(f"session_*/logs/worker-{worker}-*")}
    return sorted(file for file in found if file.suffix in (".out", ".err") and file.stat().st_size)


def _tail(file: Path, lines: int) -> str:
    try:
        found = file.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        return f"(cannot be read: {error})"
    # Ray begins each file with lines that name the actor and the task.
    return "\n".join([line for line in found if not line.startswith(":")][-lines:])


def _document(found: Any, traceback: str, outcome: str, logs: Sequence[ProcessLog]) -> dict[str, Any]:
    tags = found.data.tags
    return {
        "schema": SCHEMA,
        "run_id": found.info.run_id,
        "name": run_title(found),
        "study": tags.get("study", ""),
        "status": found.info.status,
        "outcome": outcome,
        "message": _message(found),
        "attempts": int(tags.get("attempts", "0")),
        "last_interruption": tags.get("last_interruption", ""),
        "traceback": traceback,
        "processes": [{"machine": log.machine, "worker": log.worker, "path": log.path or None, "text": log.text} for log in logs],
    }


def _message(found: Any) -> str:
    """Return why the run ended; empty while it has not ended again."""
    return "" if found.info.status == "RUNNING" else found.data.tags.get("message", "")


def _print(found: Any, traceback: str, outcome: str, logs: Sequence[ProcessLog]) -> None:
    from rich.text import Text

    from ablations.engine.environment.console import make_console, print_line

    console, tags = make_console(), found.data.tags
    print_line(console, f"{tags.get('study', '')}, {run_title(found)}, run {found.info.run_id}")
    times = f"{catalog.format_time((found.info.start_time or 0) / 1000)}"
    why = f": {message}" if (message := _message(found)) else ""
    print_line(console, f"{outcome}{why}; started {times}, attempts: {tags.get('attempts', '0')}")
    if interruption := tags.get("last_interruption"):
        print_line(console, f"Its process ended before: {interruption}")
    if traceback:
        console.print(Text(f"\n{traceback.rstrip()}"))
    for log in logs:
        if log.path:
            console.print(Text(f"\n{log.path}:", "dim"), soft_wrap=True)
            console.print(Text(log.text), soft_wrap=True)
        elif log.machine == socket.gethostname():
            print_line(console, f"Process {log.worker[:12]} has printed nothing, or Ray has removed its output with its session.")
        else:
            print_line(console, f"The output of process {log.worker[:12]} is on {log.machine}, in Ray's folder of logs there.")
    if not logs:
        print_line(console, "No process of this run has been recorded; runs of earlier versions record none.")
