"""From MLflow on SQLite to the page: reading, statistics, figures and report of a large finished study."""

import argparse
import itertools
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from ablations.engine.study.definition import Study
from ablations.engine.study.design import Design
from ablations.engine.study.expansion import make_plan
from ablations.engine.study.request import StudyRequest
from benchmarks import record
from benchmarks.report import database

LEVELS = {"shortcut": ("none", "A", "B", "C"), "depth": (20, 32, 44, 56, 110)}


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--cells", type=int, default=400, metavar="N", help="of the study, a multiple of 20 (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=5, metavar="N", help="default: %(default)s")
    parser.add_argument("--epochs", type=int, default=200, metavar="N", help="default: %(default)s")


def large_study(cells: int, seeds: int, cache: Path) -> Design:
    """Shortcuts × depths × learning rates on digits."""
    rates = tuple(0.01 * (i + 1) for i in range(cells // 20))
    study = Study(name="large", question="How large?", factors={**LEVELS, "lr": rates}, baseline={"shortcut": "A"}, seeds=seeds)
    return Design.from_plan(make_plan(study, StudyRequest(), cache=cache), {"command": "python large.py"})


def measure(uri: str) -> dict[str, float]:
    """Seconds of each part, in this process, and its peak memory."""
    from ablations.engine.analysis.study_analysis import analyze_study
    from ablations.engine.report import bundle
    from ablations.engine.tracking import results, run_queries
    from ablations.engine.tracking.connection import connect

    client = connect(uri)
    marks = [time.perf_counter()]
    _, design = run_queries.find_design(client, "large", "digits", {})
    evidence = results.gather(client, design)
    marks.append(time.perf_counter())
    findings = analyze_study(evidence)
    marks.append(time.perf_counter())
    with tempfile.TemporaryDirectory() as folder:
        bundle.write(evidence, findings, Path(folder))
        marks.append(time.perf_counter())
        size = sum(path.stat().st_size for path in Path(folder).rglob("*.html"))
    read, analysed, written = (b - a for a, b in itertools.pairwise(marks))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {
        "read": read,
        "analyse": analysed,
        "figures and pages": written,
        "all": marks[-1] - marks[0],
        "memory": peak,
        "page": size / 1e6,
    }


def main() -> None:
    """Measures, prints and writes."""
    if sys.argv[1:2] == ["measure"]:
        print(json.dumps(measure(sys.argv[2])))
        return
    given = record.options(__file__, __doc__, rounds=3, extra=add_options)
    from ablations.engine.tracking.connection import connect

    with tempfile.TemporaryDirectory() as scratch:
        uri = f"sqlite:///{scratch}/mlflow.db"
        design = large_study(given.extra.cells, given.extra.seeds, Path(scratch))
        database.fill(connect(uri), design, {}, given.extra.epochs, artifacts=Path(scratch, "artifacts"))
        command = [sys.executable, "-m", "benchmarks.report", "measure", uri]
        rounds = [
            json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout) for _ in range(given.rounds)
        ]
    units = {"memory": "GiB", "page": "MB"}
    wanted = {"all": "≤ 60", "memory": "≤ 2"}
    series = [record.Series(name, units.get(name, "s"), [r[name] for r in rounds], wanted.get(name, "")) for name in rounds[0]]
    settings = {"runs": given.extra.cells * given.extra.seeds, "cells": given.extra.cells, "epochs": given.extra.epochs}
    record.publish(record.Result("report", settings, series), given)


if __name__ == "__main__":
    main()
