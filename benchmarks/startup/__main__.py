"""Start-up: seconds until a plan is shown, and until the first checkpoint of a study, with its own Ray and on the local service."""

import argparse
import itertools
import os
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks import record

STUDY = [sys.executable, str(record.ROOT / "ablations" / "shortcuts.py"), "--preset", "smoke"]
ONE_CELL = ["--levels", "shortcut=A", "depth=8"]
PLAN, PLAN_DONE, PLAN_SERVICE = "--plan, no database", "--plan, finished runs", "--plan, finished runs, service"
FIRST, FIRST_AGAIN, FIRST_SERVICE = "first epoch, own Ray", "first epoch, own Ray, database exists", "first epoch, service"
POLL_SECONDS = 0.01


@dataclass(frozen=True)
class Bench:
    """Runs commands in homes below a folder."""

    scratch: Path
    counter: "itertools.count[int]" = field(default_factory=itertools.count)
    cpu_seconds: dict[str, list[float]] = field(default_factory=dict)

    def environment(self, home: Path, *, service: bool = False) -> dict[str, str]:
        """No cluster, tracking server or thread count of the caller's reaches a command."""
        dropped = ("MLFLOW_TRACKING_URI", "OMP_NUM_THREADS", "RAY_ADDRESS")
        kept = {name: value for name, value in os.environ.items() if name not in dropped}
        own = {} if service else {"RAY_ADDRESS": "local"}
        return {**kept, **own, "RESNET_ABLATIONS_HOME": str(home), "RAY_TMPDIR": str(self.scratch), "PYTHONPATH": str(record.ROOT)}

    def run(self, command: list[str], environment: Mapping[str, str]) -> None:
        """Run a command to its end; exit with its output if it fails."""
        done = subprocess.run(command, env=dict(environment), capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{command} exited with {done.returncode}:\n{(done.stdout + done.stderr)[-3000:]}")

    def plan(self, name: str, home: Path, *, service: bool = False) -> float:
        """Seconds until `--plan` has ended; its CPU seconds are kept."""
        before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        self.run([*STUDY, "--plan"], self.environment(home, service=service))
        seconds, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
        self.cpu_seconds.setdefault(name, []).append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        return seconds

    def first_epoch(self, home: Path, *, service: bool = False) -> float:
        """Seconds from the command to the first checkpoint, which an epoch of 0.1 s precedes. The study then runs to its end."""
        storage = self.scratch / f"checkpoints-{next(self.counter)}"
        command = [*STUDY, *ONE_CELL, "--seeds", "2", "--rerun", "--storage", str(storage)]
        with (self.scratch / "log.txt").open("ab") as log:
            started = time.perf_counter()
            process = subprocess.Popen(command, env=self.environment(home, service=service), stdout=log, stderr=log)
            while not any(storage.rglob("*.pt")) and process.poll() is None:
                time.sleep(POLL_SECONDS)
            seconds = time.perf_counter() - started
        if process.wait():
            raise SystemExit(f"{command} exited with {process.returncode}:\n{(self.scratch / 'log.txt').read_text()[-3000:]}")
        return seconds

    def new_home(self) -> Path:
        """An empty folder for local state."""
        home = self.scratch / f"home-{next(self.counter)}"
        home.mkdir()
        return home


def free_ports(count: int) -> list[str]:
    """Ports on which nothing listens."""
    probes = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [str(probe.getsockname()[1]) for probe in probes]
    for probe in probes:
        probe.close()
    return ports


def add_options(parser: argparse.ArgumentParser) -> None:
    """No options beyond those of all benchmarks."""


def main() -> None:
    """Measures, prints and writes."""
    given = record.options(__file__, __doc__, rounds=5, extra=add_options)
    bench = Bench(Path(tempfile.mkdtemp(prefix="startup-", dir="/tmp")))  # short: Ray keeps sockets in it
    done, served = bench.new_home(), bench.new_home()
    ablations = [sys.executable, "-m", "ablations"]
    mlflow, dashboard, ray = free_ports(3)
    ports = ["--mlflow-port", mlflow, "--dashboard-port", dashboard, "--ray-port", ray]
    try:
        bench.run([*STUDY, *ONE_CELL], bench.environment(done))  # also writes byte code
        bench.run([*ablations, "up", *ports], bench.environment(served, service=True))
        bench.run([*STUDY, *ONE_CELL], bench.environment(served, service=True))
        variants = {
            PLAN: lambda: bench.plan(PLAN, bench.new_home()),
            PLAN_DONE: lambda: bench.plan(PLAN_DONE, done),
            PLAN_SERVICE: lambda: bench.plan(PLAN_SERVICE, served, service=True),
            FIRST: lambda: bench.first_epoch(bench.new_home()),
            FIRST_AGAIN: lambda: bench.first_epoch(done),
            FIRST_SERVICE: lambda: bench.first_epoch(served, service=True),
        }
        series = record.interleaved(variants, given.rounds, "s")
    finally:
        bench.run([*ablations, "down"], bench.environment(served, service=True))
        shutil.rmtree(bench.scratch, ignore_errors=True)
    wanted = {
        **dict.fromkeys((PLAN, PLAN_DONE, PLAN_SERVICE), "≤ 3 s"),
        FIRST: "≤ 12 s",
        FIRST_AGAIN: "≤ 12 s",
        FIRST_SERVICE: "≤ 6 s",
    }
    measured = [record.Series(each.name, each.unit, each.values, wanted[name]) for name, each in series.items()]
    used = [record.Series(f"CPU of {name}", "s", values) for name, values in bench.cpu_seconds.items()]
    record.publish(record.Result("startup", {"preset": "smoke", "runs": 2}, [*measured, *used]), given)


if __name__ == "__main__":
    main()
