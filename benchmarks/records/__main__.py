"""MLflow with very many runs, on SQLite and on PostgreSQL: looking up what is done, writing an epoch, making a report."""

import argparse
import json
import os
import resource
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from benchmarks import record
from benchmarks.records import postgresql

WRITES = 100
"""Epochs that are written, one after another."""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--runs", type=int, default=10_000, metavar="N", help="in the database, a multiple of 100 (default: %(default)s)"
    )
    parser.add_argument("--epochs", type=int, default=20, metavar="N", help="of each (default: %(default)s)")


@contextmanager
def served(database: str, folder: Path) -> Iterator[str]:
    """Address of an MLflow server on a database, of one process."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    where = ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    what = ["--backend-store-uri", database, "--artifacts-destination", (folder / "artifacts").as_uri()]
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (
        (folder / "server.txt").open("wb") as log,
        subprocess.Popen(
            [sys.executable, "-m", "mlflow", "server", *where, *what], env=environment, stdout=log, stderr=log
        ) as server,
    ):
        try:
            deadline = time.monotonic() + 120
            while time.monotonic() < deadline:
                with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1):
                    break
                time.sleep(0.1)
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()


def measure(uri: str) -> dict[str, float]:
    """Seconds of each part, in this process, and its peak memory."""
    from mlflow.entities import Metric

    from ablations.engine.analysis.study_analysis import analyze_study
    from ablations.engine.report import bundle
    from ablations.engine.tracking import results, run_queries
    from ablations.engine.tracking.connection import connect

    client = connect(uri)
    took: dict[str, float] = {}
    began = time.perf_counter()

    def mark(name: str) -> None:
        nonlocal began
        took[name] = time.perf_counter() - began
        began = time.perf_counter()

    _, design = run_queries.find_design(client, "large", "digits", {})
    mark("what was asked")
    versions = {fingerprint: cell.data_version for cell in design.cells for fingerprint in cell.fingerprints}
    for name, wanted in (("all", versions), ("of 100", dict(list(versions.items())[:100]))):
        began = time.perf_counter()
        found = run_queries.find_by_fingerprint(client, wanted)
        mark(f"look-up {name}")
        assert len(found) == len(wanted)
    run = client.create_run("0").info.run_id
    began = time.perf_counter()
    for step in range(WRITES):
        client.log_batch(run, [Metric(f"metric {i}", 0.5, 0, step) for i in range(8)])
    mark("an epoch written")
    took["an epoch written"] /= WRITES
    evidence = results.gather(client, design)
    mark("report: read")
    findings = analyze_study(evidence)
    mark("report: statistics")
    with tempfile.TemporaryDirectory() as folder:
        bundle.write(evidence, findings, Path(folder))
    mark("report: figures and pages")
    took["memory"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return took


def main() -> None:
    """Measures, prints and writes."""
    if sys.argv[1:2] == ["measure"]:
        print(json.dumps(measure(sys.argv[2])))
        return
    given = record.options(__file__, __doc__, rounds=3, extra=add_options)
    from ablations.engine.tracking.connection import connect
    from benchmarks.report import database
    from benchmarks.report.__main__ import large_study

    series: list[record.Series] = []
    for kind in ("SQLite", "PostgreSQL"):
        with (
            tempfile.TemporaryDirectory() as scratch,
            postgresql.server() if kind == "PostgreSQL" else _sqlite(Path(scratch)) as uri,
        ):
            cells = given.extra.runs // 5
            design = large_study(cells, 5, Path(scratch))
            database.fill(connect(uri), design, {}, given.extra.epochs, artifacts=Path(scratch, "artifacts"))
            with served(uri, Path(scratch)) as address:
                command = [sys.executable, "-m", "benchmarks.records", "measure", address]
                rounds = [
                    json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
                    for _ in range(given.rounds)
                ]
        units = {"memory": "GiB"}
        series += [record.Series(f"{kind}: {name}", units.get(name, "s"), [r[name] for r in rounds]) for name in rounds[0]]
    settings = {"runs": given.extra.runs, "epochs": given.extra.epochs, "metrics": 8}
    record.publish(record.Result("records", settings, series), given)


@contextmanager
def _sqlite(folder: Path) -> Iterator[str]:
    yield f"sqlite:///{folder}/mlflow.db"


if __name__ == "__main__":
    main()
