"""Searches on Ray and MLflow, from trials to the confirming study, also killed and resumed."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import optuna
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run as MlflowRun

from ablations.engine.search.plan import FIRST_TRIAL_SEED, SearchPlan
from ablations.engine.study.definition import Study
from ablations.engine.tracking import search_trials
from ablations.engine.tracking.run_queries import PREDICTIONS_TAG, training_version_filter
from ablations.engine.tracking.search_trials import PastTrial
from resnet_core.identity import TRAINING_VERSION
from tests.helpers.project import PROJECT
from tests.helpers.submission import SEARCH, Submitted

pytestmark = pytest.mark.slow


class Searched(Submitted):
    """A submitted search."""

    plan: SearchPlan

    def __init__(self, home: Path, *arguments: str, study: Study = SEARCH) -> None:
        super().__init__(home, *arguments, study=study)
        self.past: list[PastTrial] = search_trials.read_trials(
            self.client, self.plan.to_design(), training_version_filter(str(TRAINING_VERSION), "")
        )

    def numbers(self) -> dict[str, list[int]]:
        """Return the trials by cell."""
        found: dict[str, list[int]] = {}
        for each in self.past:
            found.setdefault(each.cell, []).append(each.trial.number)
        return found

    def attempts(self) -> int:
        """Return the number of attempts of all runs, trials included."""
        experiment = self.client.get_experiment_by_name(self.plan.study.name).experiment_id
        return sum(int(run.data.tags.get("attempts", 0)) for run in self.client.search_runs([experiment]))

    def chosen(self) -> dict[str, dict[str, int]]:
        (run,) = [self.parent()]
        path = self.client.download_artifacts(run.info.run_id, "design.json")
        chosen: dict[str, dict[str, int]] = json.loads(Path(path).read_text())["search"]["chosen"]
        return chosen


PER_CELL = ("--per-cell", "--space", "lr", "--sampler", "random", "--set", "epochs=8", "--seeds", "1")


@pytest.fixture(scope="module")
def first(cluster: str, empty: Path, tmp_path_factory: pytest.TempPathFactory) -> Searched:
    """A search with four trials in each of two cells."""
    home = tmp_path_factory.mktemp("searched")
    shutil.copy(empty, home / "mlflow.db")
    return Searched(home, *PER_CELL, "--trials", "4")


def test_each_cell_has_its_trials_and_each_trial_its_run(first: Searched) -> None:
    assert first.code == 0
    assert first.numbers() == {"shortcut=A": [0, 1, 2, 3], "shortcut=none": [0, 1, 2, 3]}
    assert "completed" in {each.outcome for each in first.past} <= {"completed", "pruned"}  # which depends on who comes first
    assert {each.record.status for each in first.past if each.outcome == "pruned"} == {"KILLED"}
    assert all((len(each.epochs) == 8) == (each.outcome == "completed") for each in first.past)
    fingerprints = [each.record.tags["fingerprint"] for each in first.past]
    assert len(set(fingerprints)) == len(fingerprints)
    parent = first.parent().info.run_id
    assert {each.record.tags["mlflow.parentRunId"] for each in first.past} == {parent}


def test_variants_are_tried_at_the_same_first_configurations(first: Searched) -> None:
    values = Counter((each.trial.number, each.trial.values["optim.lr"]) for each in first.past)
    assert set(values.values()) == {2}


def test_no_trial_reads_the_test_set_and_no_result_is_of_a_trials_seed(first: Searched) -> None:
    for each in first.past:
        assert not [name for name in each.record.metrics if name.startswith("test/")]
        assert each.record.params["seed"] == str(FIRST_TRIAL_SEED)
        assert "validation/error" in each.record.metrics
        assert PREDICTIONS_TAG not in each.record.tags
        assert not first.client.list_artifacts(each.record.run_id), "no predictions"
    assert {entry.params["seed"] for entry in first.entries.values()} == {"0"}
    assert all(PREDICTIONS_TAG in entry.tags for entry in first.entries.values())
    results = first.evidence()
    assert results.correct.keys() == set(results.runs["fingerprint"]) == first.entries.keys()


def test_the_winner_is_trained_again_beside_the_default(first: Searched) -> None:
    evidence = first.found()
    completed = {(each.cell, each.trial.number): each for each in first.past if each.outcome == "completed"}
    for cell, choice in first.chosen().items():
        best = min(each.record.metrics["validation/error"] for (of, _), each in completed.items() if of == cell)
        winner = completed[cell, choice["tuned"]]
        assert winner.record.metrics["validation/error"] == best
        (tuned,) = [each for each in evidence.design.cells if each.label == f"{cell} configuration=tuned"]
        assert tuned.spec["optim.lr"] == winner.trial.values["optim.lr"]
        assert tuned.spec["data.validation"] == 0
    assert (evidence.runs["outcome"] == "completed").all()
    assert len(evidence.runs) == 2 * 2


def test_submitted_again_it_trains_nothing_and_says_the_same(first: Searched, cluster: str) -> None:
    before = first.attempts()
    again = Searched(first.home, *PER_CELL, "--trials", "4")
    assert again.code == 0
    assert again.attempts() == before
    assert again.chosen() == first.chosen()


def test_optuna_opens_what_was_exported(first: Searched) -> None:
    folder = Path(first.client.download_artifacts(first.parent().info.run_id, "search"))
    (file,) = folder.iterdir()
    address = f"sqlite:///{file}" if file.suffix == ".db" else None
    storage = address or optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(file)))
    names = optuna.get_all_study_names(storage)
    assert len(names) == 2
    assert {len(optuna.load_study(study_name=name, storage=storage).trials) for name in names} == {4}


@pytest.mark.nightly
def test_more_trials_go_on_where_the_search_ended_or_was_killed(first: Searched, cluster: str, tmp_path: Path) -> None:
    home = tmp_path / "more"
    shutil.copytree(first.home, home)
    records = ["--tracking-uri", f"sqlite:///{home}/mlflow.db", "--storage", f"{home}/checkpoints"]
    submit = "from ablations.engine.cli.study import main; from tests.helpers.submission import SEARCH; main(SEARCH)"
    environment = {**os.environ, "RAY_ADDRESS": cluster, "PYTHONPATH": str(PROJECT)}
    command = [sys.executable, "-c", submit, *PER_CELL, "--trials", "7", *records]
    study = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    client = MlflowClient(f"sqlite:///{home}/mlflow.db")
    deadline = time.monotonic() + 300
    while len(_trials(client)) < 10:
        assert time.monotonic() < deadline
        assert study.poll() is None
        time.sleep(0.1)
    study.kill()
    assert study.wait(60) == -signal.SIGKILL
    before = {run.info.run_id: run.data.metrics for run in _trials(client) if run.data.tags.get("outcome") == "completed"}

    more = Searched(home, *PER_CELL, "--trials", "7")
    assert more.code == 0
    assert more.numbers() == {"shortcut=A": list(range(7)), "shortcut=none": list(range(7))}
    after = {each.record.run_id: each.record.metrics for each in more.past}
    assert before.items() <= after.items(), "what had ended is as it was"
    assert {each.record.run_id for each in first.past} <= after.keys()
    assert len({each.trial.values["optim.lr"] for each in more.past}) == 7, "in both cells the same"
    for each in more.past:
        steps = [metric.step for metric in client.get_metric_history(each.record.run_id, "validation/error")]
        assert steps == list(range(1, len(steps) + 1)), "every epoch once"


@pytest.mark.nightly
def test_a_population_branches_without_training_twice(cluster: str, home: Path) -> None:
    found = Searched(home, "--space", "lr", "--scheduler", "pbt", "--trials", "4", "--set", "epochs=5", "--seeds", "1")
    assert found.code == 0
    assert sum(not each.trial.branch for each in found.past) == 4
    branches = [each for each in found.past if each.trial.branch]
    assert branches, "at each of the generations' ends one of four is replaced"
    of_number = {each.trial.number: each for each in found.past}
    for each in branches:
        assert each.trial.branch
        number, epoch = each.trial.branch
        parent = of_number[number]
        assert each.trial.values["optim.changes"]
        for past in range(1, epoch + 1):
            assert each.epochs[past] == parent.epochs[past], "copied, to the time that it took"
    assert {each.outcome for each in found.past} == {"completed", "pruned"}
    assert all(each.record.tags["attempts"] == "1" for each in found.past), "to wait for others is no interruption"


def _trials(client: MlflowClient) -> list[MlflowRun]:
    experiment = client.get_experiment_by_name("searched")
    return list(client.search_runs([experiment.experiment_id], "attributes.run_name LIKE '%trial=%'")) if experiment else []
