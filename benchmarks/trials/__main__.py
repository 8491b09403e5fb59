"""Trials of one second over many nodes, all of them this machine: what does one cost the driver, and do later ones cost more?"""

import argparse
import itertools
import os
import sys
import tempfile
import time
from bisect import bisect_left
from pathlib import Path

import psutil
from mlflow import MlflowClient
from ray.cluster_utils import Cluster

from ablations.engine.tracking import run_queries
from benchmarks import record
from benchmarks.records.__main__ import served
from benchmarks.trials.study import EPOCHS, SECONDS

SAMPLE_SECONDS = 1.0
CELLS = 100
PARTS = 5
"""Into which the study is cut, to see whether later trials cost more."""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--trials", type=int, default=2000, metavar="N", help="a multiple of 100 (default: %(default)s)")
    parser.add_argument("--nodes", type=int, default=4, metavar="N", help="default: %(default)s")
    parser.add_argument("--slots", type=int, default=10, metavar="N", help="trials at a time on each node (default: %(default)s)")


def main() -> None:
    """Starts nodes, submits, watches, prints and writes."""
    given = record.options(__file__, __doc__, rounds=1, extra=add_options)
    asked = given.extra
    print("nodes start …", flush=True)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    for _ in range(asked.nodes):
        cluster.add_node(num_cpus=asked.slots)
    print("study …", flush=True)
    try:
        with tempfile.TemporaryDirectory() as folder, served(f"sqlite:///{folder}/mlflow.db", Path(folder)) as tracking_uri:
            seen = Watched(Path(folder), cluster.address, tracking_uri, asked.trials)
    finally:
        cluster.shutdown()
    ideal = asked.trials * SECONDS / (asked.nodes * asked.slots)
    series = [
        record.Series("a trial, from submission to report", "s", [seen.wall / asked.trials]),
        record.Series("a trial, from the first that began to the last", "s", [seen.running / asked.trials]),
        record.Series("a trial's own time, spread over all slots", "s", [ideal / asked.trials]),
        record.Series("driver: processor time for a trial", "s", [seen.cpu[-1] / asked.trials]),
        record.Series("driver: peak memory", "MB", [max(seen.memory)]),
    ]
    columns = ["trials", "s from one to the next", "driver: processor s a trial", "driver: memory MB"]
    rows = [[name, *(f"{value:.3g}" for value in values)] for name, *values in seen.parts()]
    settings = {"trials": asked.trials, "nodes": asked.nodes, "at a time": asked.nodes * asked.slots, "epochs": EPOCHS}
    parts = record.Breakdown("By parts of the study, in the order in which trials began", columns, rows)
    record.publish(record.Result("trials", settings, series, [parts]), given)


class Watched:
    """A submission, and what its driver took over time."""

    def __init__(self, home: Path, address: str, tracking_uri: str, trials: int) -> None:
        environment = {**os.environ, "RESNET_ABLATIONS_HOME": str(home), "RAY_ADDRESS": address, "PYTHONPATH": str(record.ROOT)}
        environment.pop("MLFLOW_TRACKING_URI", None)
        # The nodes are one machine: they do share this folder.
        where = ("--storage", home.as_uri(), "--tracking-uri", tracking_uri)
        command = [sys.executable, "-m", "benchmarks.trials.study", "--seeds", str(trials // CELLS), *where]
        self.times: list[float] = []
        self.cpu: list[float] = []
        self.memory: list[float] = []
        began = time.time()
        with (home / "log.txt").open("wb") as log:
            driver = psutil.Popen(command, cwd=record.ROOT, env=environment, stdout=log, stderr=log)
            while driver.poll() is None:
                self._sample(driver)
                time.sleep(SAMPLE_SECONDS)
        self.wall = time.time() - began
        if driver.returncode:
            raise SystemExit((home / "log.txt").read_text()[-3000:])
        runs = run_queries.search_runs(MlflowClient(tracking_uri), "attributes.run_name LIKE 'shortcut=%'")
        self.begins = sorted(run.info.start_time / 1000 for run in runs)
        assert len(self.begins) == trials
        self.running = self.begins[-1] - self.begins[0]

    def _sample(self, driver: psutil.Popen) -> None:
        try:
            with driver.oneshot():
                used, memory = driver.cpu_times(), driver.memory_info().rss
        except psutil.Error:  # it has just ended
            return
        self.times.append(time.time())
        self.cpu.append(used.user + used.system)
        self.memory.append(memory / 1e6)

    def parts(self) -> list[tuple[str, float, float, float]]:
        """Return of each part: trials, seconds between two of them, the driver's processor seconds per trial, memory at the end."""
        rows = []
        bounds = [i * (len(self.begins) - 1) // PARTS for i in range(PARTS + 1)]
        for first, last in itertools.pairwise(bounds):
            a, b = (bisect_left(self.times, self.begins[i]) for i in (first, last))
            count = last - first
            pace = (self.begins[last] - self.begins[first]) / count
            rows.append((f"{first} to {last}", pace, (self.cpu[b] - self.cpu[a]) / count, self.memory[b]))
        return rows


if __name__ == "__main__":
    main()
