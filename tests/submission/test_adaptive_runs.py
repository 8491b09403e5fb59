"""Adaptive studies: which runs start when, and a study on Ray that is killed in the middle of a look."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlflow import MlflowClient

from ablations.engine.environment import paths
from ablations.engine.environment.console import make_console
from ablations.engine.study.definition import Study
from ablations.engine.study.design import Design
from ablations.engine.study.expansion import make_plan
from ablations.engine.study.plan import Plan
from ablations.engine.study.request import StudyRequest
from ablations.engine.submission.adaptive_source import SeedProgress, SeedSource, SeedState
from tests.helpers.project import PROJECT
from tests.helpers.submission import STUDY, Submitted

ADAPTIVE = replace(
    STUDY, name="adaptive", factors={"shortcut": ("none", "A", "B")}, seeds=(2, 3, 5), settings={"depth": 8, "epochs": 1}
)
ERRORS = {"none": 12.0, "A": 8.0, "B": 8.0}
"""Mean error of each shortcut: `none` is clearly worse, and B like A."""


class Journal:
    """Claims of a study, of which other processes hold some."""

    def __init__(self) -> None:
        self.claimed: set[str] = set()

    def claim(self, fingerprints: Any) -> None:
        self.claimed = set(fingerprints)


class Tracker:
    """A tracker that records nothing."""

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **more: None


class Driven:
    """A source whose runs end when a test says so, without Ray."""

    def __init__(self, study: Study = ADAPTIVE) -> None:
        self.plan: Plan = make_plan(study, StudyRequest(), cache=paths.data_cache())
        self.state, self.journal = SeedState(self.plan, Design.from_plan(self.plan, {}), ()), Journal()
        progress = SeedProgress(make_console(), self.plan, self.state.startable())
        job: Any = lambda run: run  # noqa: E731
        self.source = SeedSource(self.state, Tracker(), progress, claim=self.journal.claim, make_job=job)  # type: ignore[arg-type]
        self.draw = np.random.default_rng(0)
        self.by_name = {run.fingerprint: run for run in self.plan.runs}

    def start(self) -> list[Any]:
        """Start all runs that may start, and return them."""
        started: list[Any] = []
        while (run := self.source.next()) is not None:
            self.source.started(run.fingerprint)
            started.append(run)
        return started

    def end(self, run: Any, outcome: str = "completed", error: float | None = None) -> None:
        shortcut = dict(run.cell.levels)["shortcut"]
        value = ERRORS[shortcut] + self.draw.normal(0, 0.1) if error is None else error
        metrics = {"test/error": value, "epoch_seconds": 1.0}
        if outcome == "completed":
            self.source.reported(run.fingerprint, {"epoch": 1, "metrics": metrics, "conditions": {}, "probes": []})
        self.source.reported(run.fingerprint, {"outcome": outcome})


def names(runs: list[Any]) -> list[str]:
    return sorted(f"{dict(run.cell.levels)['shortcut']}{run.seed}" for run in runs)


def test_runs_start_look_by_look_and_the_claims_shrink_with_the_path() -> None:
    driven = Driven()
    first = driven.start()
    assert names(first) == ["A0", "A1", "B0", "B1", "none0", "none1"]
    assert driven.journal.claimed == {run.fingerprint for run in driven.plan.runs}
    assert len(driven.source.unfinished) == 6
    for run in first[:-1]:
        driven.end(run)
    assert len(driven.start()) == 2, "two seeds decide nothing, so the cells of a comparison go on without the third cell"
    driven.end(first[-1])
    more = [*driven.start()]
    while not driven.source.finished:
        for name in list(driven.source.unfinished):
            driven.end(driven.by_name[name])
        more += driven.start()
    assert driven.state.path.finished
    needed = driven.state.needed()
    assert {run.fingerprint for run in needed} == driven.source.runs.keys(), "no run was trained that the path does not need"
    assert driven.journal.claimed <= {run.fingerprint for run in driven.plan.runs} - {run.fingerprint for run in needed}
    assert not driven.source.seeds_progress.outcomes.keys() - driven.source.runs.keys()
    assert driven.source.seeds_progress.total == len(needed)


def test_a_resubmission_with_any_of_the_results_ends_with_the_same_path() -> None:
    whole = Driven()
    while runs := whole.start():
        for run in runs:
            whole.end(run)
    results = dict(whole.state._results)
    for keep in range(0, len(results) + 1, 3):
        again = Driven()
        for name in [*results][:keep]:
            again.state.add_result(name, *results[name])
        trained = 0
        while runs := again.start():
            trained += len(runs)
            for run in runs:
                outcome, error = results[run.fingerprint]
                again.end(run, outcome, error)
        assert again.state.path == whole.state.path
        assert trained + keep == len(results)


def test_failed_runs_are_results_and_runs_of_other_processes_are_awaited() -> None:
    driven = Driven()
    (taken,) = [run for run in driven.plan.runs if run.seed == 0 and dict(run.cell.levels)["shortcut"] == "B"]
    driven.state.elsewhere = {taken.fingerprint: "another study, process 7"}
    while runs := driven.start():
        assert taken not in runs
        for run in runs:
            of_none = dict(run.cell.levels)["shortcut"] == "none"
            driven.end(run, "failed" if of_none else "completed")
    assert driven.source.finished
    assert driven.state.missing() == [taken], "the path waits for it"
    assert not driven.state.path.finished
    driven.state.add_result(taken.fingerprint, "completed", 8.0)
    driven.state.elsewhere = {}
    assert all(math.isnan(value) for outcome, value in driven.state._results.values() if outcome == "failed")


def test_seeds_of_the_closest_comparison_start_first() -> None:
    driven = Driven(replace(ADAPTIVE, seeds=(3, 12)))
    errors = {"A": [8.0, 8.1, 8.2], "B": [8.05, 8.3, 8.31], "none": [8.6, 8.75, 9.1]}
    for run in driven.start():
        driven.end(run, error=errors[str(dict(run.cell.levels)["shortcut"])][run.seed])
    distances = dict(zip((cell.label for cell in driven.state.design.cells), driven.state.path.distances, strict=True))
    assert distances["shortcut=none"] != distances["shortcut=B"]
    closest = min(distances["shortcut=none"], distances["shortcut=B"])
    first = driven.state.missing()[0]
    assert distances[str(first.cell)] == closest


@pytest.mark.slow
@pytest.mark.nightly
def test_killed_in_the_middle_of_a_look_it_continues_on_the_same_path(cluster: str, home: Path, tmp_path: Path) -> None:
    records = ["--tracking-uri", f"sqlite:///{home}/mlflow.db", "--storage", f"{home}/checkpoints"]
    submit = "from ablations.engine.cli.study import main; from tests.submission.test_adaptive_runs import ADAPTIVE; main(ADAPTIVE)"
    environment = {**os.environ, "RAY_ADDRESS": cluster, "PYTHONPATH": str(PROJECT)}
    study = subprocess.Popen([sys.executable, "-c", submit, *records], env=environment, stdout=subprocess.DEVNULL)
    client, deadline = MlflowClient(f"sqlite:///{home}/mlflow.db"), time.monotonic() + 300
    while len(before := completed(client)) < 7:  # the first look has six
        assert time.monotonic() < deadline
        assert study.poll() is None
        time.sleep(0.1)
    study.kill()
    assert study.wait(60) == -signal.SIGKILL

    done = Submitted(home, study=ADAPTIVE)
    assert done.code == 0, done.text
    after = completed(client)
    assert before.items() <= after.items(), "what had ended is as it was"
    evidence, path = done.found(), done.found().path
    assert path is not None
    assert path.finished
    assert len(path.looks) >= 2
    assert len(after) == path.runs == len(evidence.runs) < len(done.plan.runs) + 1
    assert done.count_mlflow_runs() == path.runs + 1, "each run once, and the study's own"
    tags = done.parent().data.tags
    assert tags["planned_seeds"] == "5"
    assert f"look.{evidence.design.seeds}" in tags

    again = Submitted(home, study=ADAPTIVE)
    assert again.code == 0
    assert f"all {path.runs} runs that it needs are in MLflow already" in " ".join(again.text.split())
    document = json.loads(Path(client.download_artifacts(done.parent().info.run_id, "findings.json")).read_text())
    assert document["complete"]
    assert document["path"]["runs"] == path.runs

    fresh = tmp_path / "fresh"
    fresh.mkdir()
    other = Submitted(fresh, study=ADAPTIVE)
    assert other.found().path == path, "an uninterrupted submission takes the same path"


def completed(client: MlflowClient) -> dict[str, Any]:
    """Return the metrics of the completed runs by ID."""
    found = client.search_runs([each.experiment_id for each in client.search_experiments()], "tags.outcome = 'completed'")
    return {run.info.run_id: {"test/error": run.data.metrics.get("test/error")} for run in found}
