"""A search of very many tiny trials: what does a trial cost besides its training, and does memory grow?"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import psutil
from mlflow import MlflowClient

from benchmarks import record

SAMPLE_SECONDS = 1.0
TRIAL = "ray::"
"""Title of Ray's processes that train."""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--trials", type=int, default=1000, metavar="N", help="default: %(default)s")


def main() -> None:
    """SearchState, watches, prints and writes."""
    given = record.options(__file__, __doc__, rounds=1, extra=add_options)
    trials = given.extra.trials
    walls: list[float] = []
    growths: dict[str, list[float]] = {"driver": [], "trials": []}
    of_tenths: list[list[float]] = []
    for _ in range(given.rounds):
        with tempfile.TemporaryDirectory() as folder:
            wall, memory, begins = searched(Path(folder), trials)
        walls.append(wall / trials)
        begins.sort()
        tenth = len(begins) // 10
        of_tenths.append([(begins[(i + 1) * tenth - 1] - begins[i * tenth]) / (tenth - 1) for i in range(10)])
        for name, values in memory.items():
            half = statistics.median(values[len(values) // 2 - 5 : len(values) // 2 + 5])
            growths[name].append(statistics.median(values[-10:]) - half)
    series = [
        record.Series("a trial, from submission to table", "s", walls),
        record.Series("driver: memory at the end less at half time", "MB", growths["driver"]),
        record.Series("a trial's process: memory at the end less at half time", "MB", growths["trials"]),
    ]
    pace = [f"{statistics.median(each[i] for each in of_tenths):.3f}" for i in range(10)]
    rows = [[f"{10 * i} to {10 * (i + 1)} %", seconds] for i, seconds in enumerate(pace)]
    tenths = record.Breakdown("Seconds from the start of one trial to the next, by tenths of the search", ["", "s"], rows)
    settings = {"trials": trials, "sampler": "tpe", "scheduler": "asha", "epochs": 2, "images": 80, "at a time": 2}
    record.publish(record.Result("search", settings, series, [tenths]), given)


def searched(home: Path, trials: int) -> tuple[float, dict[str, list[float]], list[float]]:
    """Seconds of a search, memory of its processes in MB over time, and when its trials began."""
    environment = {**os.environ, "RESNET_ABLATIONS_HOME": str(home), "RAY_ADDRESS": "local", "PYTHONPATH": str(record.ROOT)}
    environment.pop("MLFLOW_TRACKING_URI", None)
    sizes = ("data.train_examples=100", "data.test_examples=20", "global_batch_size=32")
    what = ("--preset", "smoke", "--space", "lr", "momentum", "weight_decay", "--trials", str(trials), "--seeds", "1")
    command = [sys.executable, "ablations/hyperparameters.py", *what, "--set", *sizes]
    memory: dict[str, list[float]] = {"driver": [], "trials": []}
    began = time.perf_counter()
    with (home / "log.txt").open("wb") as log:
        study = psutil.Popen(command, cwd=record.ROOT, env=environment, stdout=log, stderr=log)
        while study.poll() is None:
            time.sleep(SAMPLE_SECONDS)
            sample(study, memory)
    wall = time.perf_counter() - began
    if study.returncode:
        raise SystemExit((home / "log.txt").read_text()[-3000:])
    client = MlflowClient(f"sqlite:///{home}/mlflow.db")
    experiment = client.get_experiment_by_name("hyperparameters")
    begins, token = [], None
    while True:
        page = client.search_runs([experiment.experiment_id], "attributes.run_name LIKE 'trial=%'", page_token=token)
        begins += [run.info.start_time / 1000 for run in page]
        token = page.token
        if not token:
            return wall, memory, begins


def sample(study: psutil.Popen, memory: dict[str, list[float]]) -> None:
    try:
        memory["driver"].append(study.memory_info().rss / 1e6)
        workers = [each for each in study.children(recursive=True) if " ".join(each.cmdline()).startswith(TRIAL)]
        trial = [each.memory_info().rss / 1e6 for each in workers if "train" in each.cmdline()[0]]
    except psutil.Error:  # one has just ended
        return
    if trial:
        memory["trials"].append(max(trial))


if __name__ == "__main__":
    main()
