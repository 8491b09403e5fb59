"""The command line and the API on several data sets: plans, reports, interrupts, and one run for the summary."""

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ablations import ConfigError, DatasetsResult, Study, load
from ablations.engine.cli import datasets, dispatch, options
from ablations.engine.cli.study import main
from ablations.engine.environment import signals
from ablations.engine.study.dataset_studies import split_by_dataset
from ablations.engine.study.plan import Plan
from ablations.engine.study.request import Options
from ablations.engine.submission import dataset_summary, reporting
from ablations.engine.tracking.connection import connect
from ablations.engine.tracking.journal import study_is_locked_error
from tests.helpers import stored_study
from tests.helpers.json_schemas import problems

STUDY = replace(
    stored_study.STUDY, name="stored-datasets", datasets={"few": {"train_examples": 64}, "many": {"train_examples": 96}}
)
RUNS = 2 * stored_study.RUNS


@pytest.fixture(scope="module")
def uri(empty: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("datasets")
    shutil.copy(empty, folder / "mlflow.db")
    return stored_study.stored_study(folder, STUDY)


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Any:
    """Run the command line; return exit code, standard output and standard error."""
    monkeypatch.setenv("RAY_ADDRESS", "local")
    monkeypatch.setattr(reporting, "publish", lambda *_, **__: None)  # figures of the studies take a minute on a busy machine

    def run(*arguments: str, study: Study = STUDY) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["stored.py", *arguments])
        with pytest.raises(SystemExit) as exit_:
            main(study)
        assert isinstance(exit_.value.code, int)
        return exit_.value.code, *capfd.readouterr()

    return run


def summary_runs(uri: str) -> list[Any]:
    client = connect(uri)
    experiment = client.get_experiment_by_name(STUDY.name)
    return list(client.search_runs([experiment.experiment_id], "tags.summary LIKE '%'"))


@pytest.mark.slow
def test_a_report_rebuilds_the_summary_in_one_run_however_often(call: Any, uri: str) -> None:
    code, out, err = call("--report", "--tracking-uri", uri)
    assert (code, err) == (0, "")
    assert "stored-datasets on 2 data sets: Which shortcut helps?" in out
    assert out.rstrip().endswith("report/summary.html")
    call("--report", "--tracking-uri", uri, "--datasets", "many", "few")
    (run,) = summary_runs(uri)
    assert run.info.status == "FINISHED"
    assert run.data.tags["summary.datasets"] == "many, few"
    assert "[Summary](#/experiments/" in run.data.tags["mlflow.note.content"]
    paths = {each.path for each in connect(uri).list_artifacts(run.info.run_id)}
    assert paths == {"effects.csv", "figures", "report", "summary.json"}


@pytest.mark.slow
def test_a_part_leaves_the_summary_of_the_whole_as_it_is(call: Any, uri: str) -> None:
    code, out, err = call("--report", "--tracking-uri", uri, "--seeds", "2")
    assert (code, err) == (0, "")
    assert "/parts/seeds=2/report/summary.html" in out
    (run,) = summary_runs(uri)
    assert "seeds=2" not in run.data.tags.get("mlflow.note.content", "")


@pytest.mark.slow
def test_json_is_one_document_and_expectations_are_about_each_data_set(call: Any, uri: str) -> None:
    code, out, err = call("--report", "--json", "--tracking-uri", uri, "--expect", "depth matters")
    found = json.loads(out)
    assert problems("datasets", found) == []
    assert [each["name"] for each in found["datasets"]] == ["few", "many"]
    assert all(problems("findings", each["findings"]) == [] for each in found["datasets"])
    assert code == 3
    assert "few: depth matters: not shown" in err
    assert "many: depth matters: not shown" in err


@pytest.mark.slow
def test_a_plan_has_each_data_set_and_the_totals(call: Any, uri: str) -> None:
    code, out, _ = call("--plan", "--json", "--no-calibrate", "--tracking-uri", uri, "--seeds", "4")
    found = json.loads(out)
    assert problems("datasets-plan", found) == []
    assert all(problems("plan", each["plan"]) == [] for each in found["datasets"])
    assert found["totals"] | {"hours": None} == {"runs": RUNS + 8, "done": RUNS, "missing": 8, "hours": None}
    code, out, _ = call("--plan", "--no-calibrate", "--tracking-uri", uri)
    assert code == 0
    assert f"2 data sets, one after another: {RUNS} runs, 0 to train, {RUNS} done already." in out
    assert "A claim about data sets like them takes three or more." in out


def test_a_wrong_request_is_one_line_and_starts_nothing(call: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "train", lambda *_: pytest.fail("trained"))
    for arguments in (
        ["--datasets", "few"],
        ["--datasets", "few", "svhn"],
        ["--set", "train_examples=3"],
        ["--expect", "x matters"],
    ):
        code, out, err = call(*arguments)
        assert (code, out, err.count("\n")) == (2, "", 1), err


def trained(monkeypatch: pytest.MonkeyPatch, *outcomes: Any) -> tuple[list[str], int, bool]:
    """Return which data sets are trained, and the result, if training ends with these codes or does this."""
    names, left = [], list(outcomes)

    def train(plan: Plan, chosen: Options) -> int:
        names.append(str(chosen.request.overrides["data.train_examples"]))
        outcome = left.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        if outcome == "interrupt":
            signals.note_interrupt()
            return 1
        return int(outcome)

    monkeypatch.setattr(dispatch, "train", train)
    chosen = options.parse_options(STUDY, [])
    parts = split_by_dataset(STUDY, chosen.request)
    return names, *datasets.train(parts, [None] * 2, chosen)  # type: ignore[list-item]


def test_a_failed_run_does_not_stop_the_other_data_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    assert trained(monkeypatch, 1, 0) == (["64", "96"], 1, False)
    assert trained(monkeypatch, 0, 0) == (["64", "96"], 0, False)


def test_an_interrupt_stops_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    assert trained(monkeypatch, "interrupt", 0) == (["64"], 1, True)


def test_a_data_set_whose_study_runs_elsewhere_ends_it_with_the_usual_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError) as caught:
        trained(monkeypatch, study_is_locked_error("x", "another process"), 0)
    assert caught.value.exit_code == 5


def test_two_processes_that_make_the_summary_at_once_leave_one_run(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    client = connect(uri)
    chosen = options.parse_options(STUDY, ["--tracking-uri", uri])
    parts = split_by_dataset(STUDY, chosen.request)
    given = datasets.read(parts, datasets.drafts(parts, chosen)[0], chosen, details=False)
    for run in summary_runs(uri):
        client.delete_run(run.info.run_id)
    search = client.search_runs
    _, first = dataset_summary._find_or_create(client, given)
    blind = iter([True])
    monkeypatch.setattr(client, "search_runs", lambda *a, **k: [] if next(blind, False) else search(*a, **k))
    _, second = dataset_summary._find_or_create(client, given)
    assert first == second
    assert len(summary_runs(uri)) == 1


# --- the API ---


@pytest.mark.slow
def test_load_returns_all_data_sets(uri: str) -> None:
    result = load(STUDY, tracking_uri=uri)
    assert isinstance(result, DatasetsResult)
    assert result.complete
    assert list(result.datasets) == ["few", "many"]
    assert (len(result.runs), len(result.cells)) == (RUNS, 8)
    assert result.runs.columns[0] == result.curves.columns[0] == result.cells.columns[0] == "dataset"
    assert len(result.effects) == 2 * 3
    assert problems("datasets", result.findings) == []
    assert result.summary["tests"] == len(result.summary["effects"])
    assert "on average over 2 data sets, the same on all of them" in repr(result)
    assert "<title>stored-datasets on 2 data sets</title>" in result.report.html
    with pytest.raises(ConfigError, match="accepted: with dataset, one of few, many"):
        result.net({"shortcut": "A"})
    with pytest.raises(ConfigError, match="has no checkpoint in"):
        result.net(result.runs.iloc[0])


def test_data_sets_of_a_call_are_names_or_settings(uri: str) -> None:
    chosen = load(
        replace(STUDY, datasets=()), tracking_uri=uri, datasets={"a": {"train_examples": 64}, "b": {"train_examples": 96}}
    )
    assert isinstance(chosen, DatasetsResult)
    assert list(chosen.datasets) == ["a", "b"]
    with pytest.raises(ConfigError, match="datasets=3: accepted: text, or a list of texts"):
        load(STUDY, datasets=3)
