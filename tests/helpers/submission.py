"""A small study that is submitted as by the command line, and its records and files."""

import io
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from mlflow import MlflowClient
from mlflow.entities import Metric
from mlflow.entities import Run as MlflowRun

from ablations.engine.analysis.evidence import Evidence
from ablations.engine.cli import dispatch, options
from ablations.engine.environment import paths
from ablations.engine.search.plan import SearchPlan, plan_search
from ablations.engine.study.definition import Study
from ablations.engine.study.design import Design
from ablations.engine.study.expansion import make_plan
from ablations.engine.study.plan import Plan
from ablations.engine.submission.run_events import RunEvents
from ablations.engine.tracking import results, run_queries
from ablations.engine.tracking.connection import connect
from ablations.engine.tracking.run_queries import RunRecord
from ablations.engine.trial.checkpoints import CheckpointFolder
from tests.helpers.one_figure import one_figure
from tests.helpers.slow_epochs import slow_epochs

STUDY = Study(
    name="small",
    question="Does it run?",
    factors={"shortcut": ("none", "A")},
    baseline={"shortcut": "A"},
    seeds=1,
    preset="smoke",
)


def space(trial: Any) -> None:
    trial.suggest_float("optim.lr", 1e-3, 1, log=True)
    trial.suggest_float("optim.momentum", 0.5, 0.95)


SEARCH = replace(STUDY, name="searched", question="Does each need its own learning rate?", seeds=2, space=space)


def planned(*arguments: str, study: Study = STUDY) -> Plan:
    """Return the plan of a study with these command-line options."""
    return make_plan(study, options.parse_options(study, arguments).request, cache=paths.data_cache())


def searched(*arguments: str, study: Study = SEARCH) -> SearchPlan:
    """Return the plan of a search with these command-line options."""
    chosen = options.parse_options(study, arguments)
    assert chosen.search
    return plan_search(study, chosen.request, chosen.search, cache=paths.data_cache())


class Submitted:
    """A study that was submitted with some options and has ended.

    Args:
        home: folder of the database and the checkpoints.
        arguments: command-line options.
        study: the study or search.
        all_figures: True to draw all figures of the report, which takes seconds.
    """

    def __init__(self, home: Path, *arguments: str, study: Study = STUDY, all_figures: bool = False) -> None:
        self.home, uri = home, f"sqlite:///{home}/mlflow.db"
        chosen = options.parse_options(study, ["--tracking-uri", uri, "--storage", f"{home}/checkpoints", *arguments])
        self.plan: Plan = searched(*arguments, study=study) if study.space else planned(*arguments, study=study)
        self.client: MlflowClient = connect(uri)
        self.storage = chosen.storage
        with one_figure(unless=all_figures), redirect_stdout(io.StringIO()) as out:
            self.code = dispatch.train(self.plan, chosen)
        self.text = out.getvalue()
        self.entries = run_queries.find_plan_runs(self.client, self.plan)

    def entry(self, index: int = 0) -> RunRecord:
        """Return the MLflow record of a run. `index` is its position in the plan."""
        return self.entries[self.plan.runs[index].fingerprint]

    def outcomes(self) -> list[str]:
        return [self.entry(index).outcome for index in range(len(self.plan.runs))]

    def run_ids(self) -> dict[str, str]:
        """Return the MLflow run IDs by fingerprint."""
        return {fingerprint: entry.run_id for fingerprint, entry in self.entries.items()}

    def checkpoint(self, index: int = 0) -> dict[str, Any]:
        saved = CheckpointFolder(self.storage, self.plan.runs[index].fingerprint).latest()
        assert saved is not None
        return saved

    def history(self, metric: str, index: int = 0) -> list[Metric]:
        return list(self.client.get_metric_history(self.entry(index).run_id, metric))

    def steps(self, index: int = 0) -> list[int]:
        return [metric.step for metric in self.history("test/error", index)]

    def count_mlflow_runs(self) -> int:
        experiments = [e.experiment_id for e in self.client.search_experiments()]
        return len(self.client.search_runs(experiments))

    def parent(self) -> MlflowRun:
        """Return the study's own run in MLflow."""
        (found,) = self.client.search_runs(
            [self.client.get_experiment_by_name(self.plan.study.name).experiment_id], "tags.base LIKE '%'"
        )
        return found

    def evidence(self) -> Evidence:
        return results.gather(self.client, Design.from_plan(self.plan, {}))

    def found(self) -> Evidence:
        """Return the evidence for the design that is stored in MLflow, as a rebuilt report reads it."""
        plan = self.plan
        run_id, design = run_queries.find_design(self.client, plan.study.name, plan.preset, plan.shared_fields())
        return results.gather(self.client, design, run_id)


class Killer:
    """Kills one descendant of this process whose command line begins with `title`, once `when` returns true."""

    def __init__(self, title: str, when: Callable[[], bool]) -> None:
        self.title, self.when, self.killed = title, when, 0
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        deadline = time.monotonic() + 200
        while not self.killed and time.monotonic() < deadline:
            if self.when():
                found = [p for p in psutil.Process().children(recursive=True) if _title(p).startswith(self.title)]
                for process in found[:1]:
                    process.kill()
                    self.killed = process.pid
            time.sleep(0.05)

    def join(self) -> int:
        """Return the ID of the killed process; 0 if none was killed."""
        self.thread.join(1)
        return self.killed


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline()) or process.name()
    except psutil.Error:  # the process has ended or is a zombie
        return ""


@contextmanager
def interrupted_after_an_epoch(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Context that raises SIGINT in this process after the first epoch of a run, and expects the KeyboardInterrupt."""
    reported = RunEvents.reported

    def interrupt(self: RunEvents, fingerprint: str, report: Mapping[str, Any]) -> None:
        reported(self, fingerprint, report)
        if report.get("epoch") == 1:
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patched:
        patched.setattr(RunEvents, "reported", interrupt)
        with pytest.raises(KeyboardInterrupt):
            yield


@contextmanager
def meanwhile(home: Path, act: Callable[[MlflowClient, Sequence[Any]], bool], slowly: float = 0.0) -> Iterator[None]:
    """Call `act` with MLflow and its runs in a thread until it returns True. Until then, each epoch takes `slowly` seconds more."""
    over, acted = threading.Event(), home / "acted"
    client = connect(f"sqlite:///{home}/mlflow.db")

    def work() -> None:
        deadline = time.monotonic() + 120
        while not over.is_set() and time.monotonic() < deadline:
            experiments = [each.experiment_id for each in client.search_experiments()]
            if act(client, client.search_runs(experiments)):
                acted.touch()
                return
            time.sleep(0.1)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        with slow_epochs(slowly, until=acted):
            yield
    finally:
        over.set()
        thread.join(10)
