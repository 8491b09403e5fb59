"""Worker groups seen from outside: the processes of a study, and its runs as MLflow has recorded them."""

import re
import statistics
import subprocess
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import psutil
from mlflow import MlflowClient

from benchmarks.record import Breakdown

POLL_SECONDS = 0.1


@dataclass
class Process:
    """Observations of one process."""

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


def explain(start: Callable[[], "subprocess.Popen[bytes]"]) -> list[Breakdown]:
    """Runs a study of worker groups once and says what its processes cost."""
    return [actors(watch(start))]


def further_runs(home: Path) -> list[float]:
    """Seconds from the end of a run to the end of the next one, divided by the seconds that the latter trained.

    Args:
        home: of a study whose runs trained one after another.
    """
    client = MlflowClient(f"sqlite:///{home / 'mlflow.db'}")
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    runs = [run for run in client.search_runs(experiments) if "train_seconds" in run.data.metrics]
    runs.sort(key=lambda run: int(run.info.end_time))
    return [(run.info.end_time - before.info.end_time) / 1000 / run.data.metrics["train_seconds"] for before, run in pairwise(runs)]


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


def actors(seen: Watched) -> Breakdown:
    """Return the cost of each kind of Ray process."""
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
