"""`ablations compare A B` pairs the runs of two studies in MLflow by cell and seed, and trains nothing."""

import json
import re
import statistics
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from ablations.engine.cli import commands
from ablations.engine.study.definition import Study
from tests.helpers.stored_study import STUDY, stored_study

OTHER = replace(STUDY, name="other", settings={"lr": 0.05}, seeds=4)
NARROW = replace(STUDY, name="narrow", factors={"shortcut": ("none", "A")}, settings={"depth": 8, "lr": 0.02})
ELSEWHERE = replace(
    STUDY, name="elsewhere", factors={"shortcut": ("A", "B"), "depth": (8, 14)}, settings={"lr": 0.03}, baseline={"shortcut": "A"}
)

Compare = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("compared")
    for study in (STUDY, OTHER, NARROW, ELSEWHERE):
        found = stored_study(folder, study)
    client = MlflowClient(found)
    experiment = client.get_experiment_by_name("other").experiment_id
    for number, run in enumerate(client.search_runs([experiment], "tags.fingerprint LIKE '%'")):  # else as good as the first study
        client.log_metric(run.info.run_id, "test/error", run.data.metrics["test/error"] - 1 + number % 5 / 10, step=99)
    return found


@pytest.fixture
def compare(uri: str, capsys: pytest.CaptureFixture[str]) -> Compare:
    def call(*names: str) -> dict[str, Any]:
        capsys.readouterr()
        assert commands.main(["compare", *names, "--json", "--tracking-uri", uri]) == 0
        found: dict[str, Any] = json.loads(capsys.readouterr().out)
        return found

    return call


def values(uri: str, capsys: pytest.CaptureFixture[str], name: str) -> dict[tuple[str, int], float]:
    capsys.readouterr()
    assert commands.main(["runs", name, "--json", "--tracking-uri", uri]) == 0
    return {(run["cell"], run["seed"]): run["value"] for run in json.loads(capsys.readouterr().out)["runs"]}


def test_the_differences_are_those_of_the_seeds_that_both_studies_have(
    compare: Compare, uri: str, capsys: pytest.CaptureFixture[str]
) -> None:
    found = compare("stored", "other")
    before, after = values(uri, capsys, "stored"), values(uri, capsys, "other")
    assert len(found["cells"]) == 4
    assert found["cells_left_out"] == 0
    for cell in found["cells"]:
        expected = [after[cell["cell"], seed] - before[cell["cell"], seed] for seed in range(3)]
        assert list(cell["differences"].values()) == pytest.approx(expected)
        assert (cell["n"], cell["difference"]) == (3, pytest.approx(statistics.fmean(expected)))
        assert cell["low"] < cell["difference"] < cell["high"]
        assert cell["p"] <= cell["p_adjusted"] <= 1
    assert found["n"] == 3
    assert found["gain"] == pytest.approx(-statistics.fmean(cell["difference"] for cell in found["cells"]))
    assert found["settings"]["optim.lr"] == ["0.1", "0.05"]


def test_the_other_way_round_everything_has_the_other_sign(compare: Compare) -> None:
    one, other = compare("stored", "other"), compare("other", "stored")
    assert [cell["difference"] for cell in one["cells"]] == pytest.approx([-cell["difference"] for cell in other["cells"]])
    assert one["gain"] == pytest.approx(-other["gain"])


def test_a_factor_that_one_study_lacks_is_at_the_value_that_this_study_has(
    compare: Compare, uri: str, capsys: pytest.CaptureFixture[str]
) -> None:
    found = compare("narrow", "elsewhere")
    assert [cell["cell"] for cell in found["cells"]] == ["shortcut=A"], "at 8 layers, the setting of the first study"
    assert found["cells_left_out"] == 4
    before, after = values(uri, capsys, "narrow"), values(uri, capsys, "elsewhere")
    expected = [after["shortcut=A depth=8", seed] - before["shortcut=A", seed] for seed in range(3)]
    assert list(found["cells"][0]["differences"].values()) == pytest.approx(expected)
    assert [cell["cell"] for cell in compare("stored", "narrow")["cells"]] == ["shortcut=none", "shortcut=A"]


def test_a_failed_run_is_counted_and_not_averaged(uri: str, compare: Compare) -> None:
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("narrow").experiment_id
    (run,) = client.search_runs([experiment], "tags.cell = 'shortcut=A' and tags.seed = '1'")
    client.set_tag(run.info.run_id, "outcome", "diverged")
    found = compare("elsewhere", "narrow")
    assert (found["failures"], found["base_failures"], found["n"]) == (1, 0, 2)
    assert found["cells"][0]["n"] == 2
    assert found["p"] is None
    client.set_tag(run.info.run_id, "outcome", "completed")


def test_the_table_has_both_means_and_says_what_differs(uri: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert commands.main(["compare", "stored", "other", "--tracking-uri", uri]) == 0
    out = capsys.readouterr().out
    assert "Different settings: optim.lr 0.1 → 0.05" in out
    assert "none" in out
    assert "Second against first, mean over 4 cells: test error is " in " ".join(out.split())


def test_the_means_are_those_of_the_seeds_that_both_studies_have(uri: str, capsys: pytest.CaptureFixture[str]) -> None:
    before, after = (values(uri, capsys, name) for name in ("stored", "other"))
    assert commands.main(["compare", "stored", "other", "--tracking-uri", uri]) == 0
    row = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("shortcut=none depth=8"))
    means = [statistics.fmean(of[("shortcut=none depth=8", seed)] for seed in range(3)) for of in (before, after)]
    found = [float(text) for text in re.findall(r"([\d.]+) ± ", row)]
    assert found == pytest.approx(means, abs=0.006)
    assert found[1] == pytest.approx(found[0] + float(row.replace("−", "-").split(" 3 ")[1].split()[0]), abs=0.02)


def test_runs_that_all_failed_are_said_instead_of_a_number_of_seeds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for study in (STUDY, OTHER):
        uri = stored_study(tmp_path, study)
    client = MlflowClient(uri)
    for run in client.search_runs([client.get_experiment_by_name("other").experiment_id], "tags.fingerprint LIKE '%'"):
        client.set_tag(run.info.run_id, "outcome", "diverged")
    assert commands.main(["compare", "stored", "other", "--tracking-uri", uri]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert out.endswith(
        "every seed has a run that failed, so that no difference can be tested; "
        "runs failed in 3 seeds after the change and in 0 seeds before"
    )


def test_studies_on_other_data_are_not_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    digits: Study = replace(STUDY, name="on-digits", preset="digits")
    stored_study(tmp_path)
    found = stored_study(tmp_path, digits)
    assert commands.main(["compare", "stored", "on-digits", "--tracking-uri", found]) == 2
    assert "the studies have different data sets: synthetic; digits" in capsys.readouterr().err


def test_a_study_without_an_ended_run_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for study in (STUDY, OTHER):
        uri = stored_study(tmp_path, study)
    client = MlflowClient(uri)
    for run in client.search_runs([client.get_experiment_by_name("other").experiment_id], "tags.fingerprint LIKE '%'"):
        client.update_run(run.info.run_id, status="RUNNING")
    assert commands.main(["compare", "stored", "other", "--tracking-uri", uri]) == 2
    assert capsys.readouterr().err == "error: NAME=other: has no run that has ended; accepted: studies with a trained run\n"
