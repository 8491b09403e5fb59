"""Where the time of Ray Train's worker groups goes, seen from outside: Ray's logs, and the processes of one study."""

import json
import re
import statistics
import subprocess
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from benchmarks.record import Breakdown

POLL_SECONDS = 0.1


@dataclass
class Process:
    """What was seen of one process."""

    created: float
    title: str = ""
    cpu_seconds: float = 0.0
    memory_mb: float = 0.0
    torch: bool = False


@dataclass
class Watched:
    """One study from start to exit."""

    started: float
    ended: float = 0.0
    processes: dict[int, Process] = field(default_factory=dict)


def explain(start: Callable[[], "subprocess.Popen[bytes]"], scratch: Path) -> list[Breakdown]:
    """Runs a study of worker groups once and says where its time went, per run and per process."""
    before = set(scratch.glob("ray/session_2*"))
    seen = watch(start)
    (session,) = (p for p in set(scratch.glob("ray/session_2*")) - before if not p.is_symlink())
    return [phases(seen, read_logs(session)), actors(seen)]


def watch(start: Callable[[], "subprocess.Popen[bytes]"]) -> Watched:
    """Follows a process and all its descendants until it exits; raises if it fails."""
    seen = Watched(time.time())
    root = start()
    handles: dict[int, psutil.Process] = {}
    while root.poll() is None:
        try:
            for process in psutil.Process(root.pid).children(recursive=True):
                handles.setdefault(process.pid, process)
        except psutil.NoSuchProcess:
            break
        for pid, process in list(handles.items()):
            _look(process, seen.processes.setdefault(pid, Process(0.0)), handles)
        time.sleep(POLL_SECONDS)
    seen.ended = time.time()
    if root.wait():
        raise SystemExit(f"the study exited with {root.returncode}")
    return seen


def _look(process: psutil.Process, known: Process, handles: dict[int, psutil.Process]) -> None:
    try:
        with process.oneshot():
            known.created = process.create_time()
            times = process.cpu_times()
            memory_mb = process.memory_info().rss / 2**20
            title = " ".join(process.cmdline()[:1])
        known.cpu_seconds, known.memory_mb = times.user + times.system, max(known.memory_mb, memory_mb)
        if title.startswith("ray::"):  # Ray names a worker's process after its actor, then its method
            known.title = re.split(r"[.(]", title.removeprefix("ray::"))[0]
            if not known.torch and memory_mb > 200:
                known.torch = "libtorch_cpu" in Path(f"/proc/{process.pid}/maps").read_text()
    except (psutil.Error, OSError):
        handles.pop(process.pid, None)


@dataclass(frozen=True)
class Line:
    """One line of Ray Train's logs."""

    time: float
    pid: int
    run: str
    message: str


def read_logs(session: Path) -> dict[str, list[Line]]:
    """Lines of controllers and workers by run, in the order of time."""
    runs: dict[str, set[Line]] = defaultdict(set)
    for path in session.glob("logs/train/*.log"):  # some lines are in the system's log and in the application's
        for text in path.read_text().splitlines():
            record = json.loads(text)
            line = Line(record["timestamp_ns"] / 1e9, record["process"], record["run_name"], record["message"])
            runs[line.run].add(line)
    return {name: sorted(lines, key=lambda line: line.time) for name, lines in runs.items()}


MARKS = {
    "controller: process, imports": "No checkpoint manager snapshot",
    "controller: its helpers": "Attempting to start training worker group",
    "placement group": "[Worker Group Initialization] Placement group ready",
    "workers: processes, imports": "worker actors created in",
    "workers: context (imports torch)": "Train context initialized",
    "process group and callbacks": "Worker group startup completed",
}
"""What is being waited for, and the first line that says that it is over."""


def phases(seen: Watched, runs: dict[str, list[Line]]) -> Breakdown:
    """Seconds between marks, for the first run, and the median and spread of the others."""
    spent: list[dict[str, float]] = []
    last = seen.started
    for lines in sorted(runs.values(), key=lambda lines: lines[0].time):
        run = dict(_durations(lines, seen, last))
        last = _first(lines, "Worker group shutdown successful")
        spent.append(run)
    rows = []
    for name in spent[0]:
        later = [run[name] for run in spent[1:]] or [spent[0][name]]
        share = sum(run[name] for run in spent) / (seen.ended - seen.started)
        spread = f"{min(later):.1f} – {max(later):.1f}"
        rows.append([name, f"{spent[0][name]:.1f}", f"{statistics.median(later):.1f}", spread, f"{share:.0%}"])
    rest = seen.ended - last
    rows.append(["end of the study", "", f"{rest:.1f}", "", f"{rest / (seen.ended - seen.started):.0%}"])
    title = f"Where the time of {len(runs)} runs with 2 workers goes, one at a time ({seen.ended - seen.started:.0f} s)"
    return Breakdown(title, ["seconds", "first run", "later runs", "min – max", "of all"], rows)


def _durations(lines: list[Line], seen: Watched, last: float) -> Iterator[tuple[str, float]]:
    """Phases of one run, in order; `last` is when the one before it ended."""
    controller = min(line.pid for line in lines if line.message.startswith("No checkpoint manager"))
    created = seen.processes[controller].created
    yield "study, Ray, trial until the controller's process starts", created - last
    last = created
    for name, text in MARKS.items():
        now = _first(lines, text)
        yield name, now - last
        last = now
    rank0 = min((line for line in lines if line.message.startswith("Rank 0: Launching")), key=lambda line: line.time)
    reports = [line for line in lines if line.pid == rank0.pid and line.message.startswith("Reporting training result")]
    training = [float(found[1]) for line in reports if (found := re.search(r"'epoch_seconds': ([\d.e-]+)", line.message))]
    yield "epochs", sum(training)
    yield "in the workers around the epochs: imports, checkpoints, reports", reports[-1].time - last - sum(training)
    yield "shutdown of the group", _first(lines, "Worker group shutdown successful") - reports[-1].time


def _first(lines: list[Line], text: str) -> float:
    return next(line.time for line in lines if text in line.message)


def actors(seen: Watched) -> Breakdown:
    """What each kind of Ray process cost."""
    kinds: dict[str, list[Process]] = defaultdict(list)
    for process in seen.processes.values():
        if process.title:
            kinds[process.title].append(process)
    rows = []
    for name, found in sorted(kinds.items(), key=lambda item: -sum(p.cpu_seconds for p in item[1])):
        cpu = [p.cpu_seconds for p in found]
        torch = {True: "yes", False: "no"}.get(found[0].torch) if len({p.torch for p in found}) == 1 else "some"
        memory = f"{statistics.median(p.memory_mb for p in found):.0f}"
        rows.append([name, str(len(found)), f"{statistics.median(cpu):.1f}", f"{sum(cpu):.0f}", str(torch), memory])
    columns = ["Ray process", "count", "CPU s each", "CPU s in all", "loads torch", "MB"]
    return Breakdown("Processes of the same study", columns, rows)
