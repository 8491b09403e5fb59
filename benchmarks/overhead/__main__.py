"""The same short runs as plain processes, as a bare Tune function, and through the engine with one and two workers."""

import argparse
import itertools
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from benchmarks import record
from benchmarks.overhead import worker_group

TOGETHER = 2
PLAIN, BARE, ENGINE, ENGINE_AGAIN, GROUP, NEW_GROUPS = (
    "plain processes",
    "bare Tune",
    "engine, 1 worker",
    "engine, 1 worker, database exists",
    "engine, 2 workers",
    "engine, 2 workers, a new group for each run",
)
FURTHER = "each further run with 2 workers, against its training"


@dataclass(frozen=True)
class Bench:
    """Runs variants, each in a new home with the same decoded data."""

    scratch: Path
    runs: int
    epochs: int
    counter: "itertools.count[int]"

    def prepare(self) -> None:
        """Untimed: decodes the data set, writes byte code, and creates a database."""
        (self.scratch / "ready").mkdir()
        home = self.scratch / "first"
        small = Bench(self.scratch, 2, 1, self.counter)
        small.run(small.engine(), home)
        small.run(small.engine("--workers", "2"), home)
        shutil.copytree(home / "data", self.scratch / "ready" / "data")
        create = "import sys; from ablations.engine.tracking.connection import connect; connect(sys.argv[1])"
        self.run([sys.executable, "-c", create, f"sqlite:///{self.scratch / 'ready' / 'mlflow.db'}"], home)
        small.bare()
        small.plain()

    def home(self, *, database: bool = False) -> Path:
        """A new folder for local state, with decoded data, and with an empty MLflow database if wanted."""
        home = self.scratch / f"home-{next(self.counter)}"
        shutil.copytree(self.scratch / "ready" / "data", home / "data")
        if database:
            shutil.copy(self.scratch / "ready" / "mlflow.db", home)
        return home

    def environment(self, home: Path) -> dict[str, str]:
        """No cluster, tracking server or thread count of the caller's reaches a variant."""
        dropped = ("MLFLOW_TRACKING_URI", "OMP_NUM_THREADS")
        kept = {name: value for name, value in os.environ.items() if name not in dropped}
        mine = {"RESNET_ABLATIONS_HOME": home, "RAY_ADDRESS": "local", "RAY_TMPDIR": self.scratch, "PYTHONPATH": record.ROOT}
        return {**kept, **{name: str(value) for name, value in mine.items()}}

    def start(self, command: list[str], home: Path) -> "subprocess.Popen[bytes]":
        log = self.scratch / "log.txt"
        with log.open("ab") as file:
            return subprocess.Popen(command, cwd=home, env=self.environment(home), stdout=file, stderr=file)

    def run(self, command: list[str], home: Path) -> float:
        """Seconds from start to exit of one process."""
        home.mkdir(exist_ok=True)
        started = time.perf_counter()
        code = self.start(command, home).wait()
        seconds = time.perf_counter() - started
        if code:
            raise SystemExit(f"{command} exited with {code}:\n{(self.scratch / 'log.txt').read_text()[-3000:]}")
        return seconds

    def plain(self) -> float:
        home = self.home()
        module = [sys.executable, "-m", "benchmarks.overhead.plain"]
        commands = [[*module, str(seed), str(self.epochs), str(home / "data")] for seed in range(self.runs)]
        started = time.perf_counter()
        with ThreadPoolExecutor(TOGETHER) as pool:
            list(pool.map(lambda command: self.run(command, home), commands))
        return time.perf_counter() - started

    def bare(self) -> float:
        home = self.home()
        module = [sys.executable, "-m", "benchmarks.overhead.bare_tune"]
        return self.run([*module, str(self.runs), str(self.epochs), str(home / "data")], home)

    def engine(self, *options: str, python: tuple[str, ...] = ()) -> list[str]:
        """The command line of a study of just these runs."""
        study = [sys.executable, *python, str(record.ROOT / "ablations" / "shortcuts.py"), "--levels", "shortcut=A", "depth=20"]
        return [*study, "--seeds", str(self.runs), "--set", f"optim.epochs={self.epochs}", *options]

    def one_worker(self, *, database: bool) -> float:
        return self.run(self.engine("--max-concurrent", str(TOGETHER)), self.home(database=database))

    def group(self, further: "list[float] | None" = None, *, new: bool = False) -> float:
        """Two workers for each run, one run at a time.

        Args:
            further: gets the seconds of each further run, divided by those that it trained.
            new: start new processes for each run.
        """
        home = self.home()
        seconds = self.run(self.group_command(new=new), home)
        if further is not None:
            further += worker_group.further_runs(home)
        return seconds

    def group_command(self, *, new: bool = False) -> list[str]:
        python = ("-m", "benchmarks.overhead.new_groups") if new else ()
        return self.engine("--workers", "2", "--max-concurrent", "1", python=python)


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--runs", type=int, default=8, metavar="N", help="runs of every variant (default: %(default)s)")
    parser.add_argument(
        "--epochs", type=int, default=6, metavar="N", help="epochs of a run, about 0.7 s each (default: %(default)s)"
    )
    parser.add_argument("--group-rounds", type=int, default=2, metavar="N", help="rounds with 2 workers (default: %(default)s)")


def main() -> None:
    """Measures, prints and writes."""
    given = record.options(__file__, __doc__, rounds=5, extra=add_options)
    runs, epochs, group_rounds = given.extra.runs, given.extra.epochs, given.extra.group_rounds
    scratch = Path(tempfile.mkdtemp(prefix="overhead-", dir="/tmp"))  # short: Ray keeps sockets in it
    bench = Bench(scratch, runs, epochs, itertools.count())
    try:
        bench.prepare()
        variants = {
            PLAIN: bench.plain,
            BARE: bench.bare,
            ENGINE: lambda: bench.one_worker(database=False),
            ENGINE_AGAIN: lambda: bench.one_worker(database=True),
        }
        further = record.Series(FURTHER, "×", [], "≤ 1.3")
        with_group = variants | {GROUP: lambda: bench.group(further.values), NEW_GROUPS: lambda: bench.group(new=True)}
        series = record.interleaved(with_group, min(group_rounds, given.rounds), "s")
        for name, more in record.interleaved(variants, given.rounds - len(series[GROUP].values), "s").items():
            series[name].values.extend(more.values)
        home = bench.home()
        breakdowns = worker_group.explain(lambda: bench.start(bench.group_command(), home))
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    ratios = [
        record.ratio(series[ENGINE], series[BARE], "≤ 1.2"),
        record.ratio(series[ENGINE_AGAIN], series[BARE], "≤ 1.2"),
        record.ratio(series[BARE], series[PLAIN]),
        record.ratio(series[GROUP], series[BARE], "≤ 2"),
        record.ratio(series[NEW_GROUPS], series[BARE]),
        further,
    ]
    settings = {"runs": runs, "epochs": epochs, "at a time": TOGETHER, "threads": 1}
    record.publish(record.Result("overhead", settings, [*series.values(), *ratios], breakdowns), given)


if __name__ == "__main__":
    main()
