"""MLflow's page of a study: short names, few metrics, and the answer of the largest run of the study."""

import time
from dataclasses import replace
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Metric

from ablations.engine.analysis.findings import Findings
from ablations.engine.analysis.study_analysis import analyze_study
from ablations.engine.report.mlflow_page import COMPLETED_METRIC, cells, description, study_metrics, update_experiment_note
from ablations.engine.study.design import Design
from ablations.engine.tracking.connection import connect
from tests.helpers.synthetic_study import design, evidence

NOTE = "mlflow.note.content"


# Names


def test_cells_are_named_by_their_levels_alone() -> None:
    names = cells.short_names(design({"shortcut": ("none", "C"), "depth": ("20", "56")}))
    assert names["shortcut=C depth=56"] == "C·56"
    assert list(names.values()) == ["none·20", "none·56", "C·20", "C·56"]


def test_levels_that_say_nothing_by_themselves_keep_their_factor() -> None:
    names = cells.short_names(design({"optim.nesterov": ("True", "False"), "optim.ema": ("None", "0.9")}))
    assert list(names.values()) == ["nesterov·ema=None", "nesterov·0.9", "no nesterov·ema=None", "no nesterov·0.9"]


def test_names_that_are_long_or_alike_are_the_labels() -> None:
    long = design({"milestones": ["[0.1,0.2,0.3,0.4,0.5,0.6,0.7,0.8,0.85,0.9,0.95]", "[0.5]"]})
    alike = design({"optim.momentum": ("0.5", "0.9"), "optim.ema": ("0.5", "0.9")})
    assert set(cells.short_names(long).values()) == {cell.label for cell in long.cells}
    assert len(set(cells.short_names(alike).values())) == 4


# Metrics and the image


def test_a_studys_run_has_a_handful_of_metrics_however_many_cells_there_are() -> None:
    for depths in (("20", "56"), tuple(str(6 * n + 2) for n in range(1, 30))):
        given = evidence(design({"shortcut": ("none", "A"), "depth": depths}))
        found = study_metrics(given, analyze_study(given))
        assert found.keys() == {"completed_runs", "planned_runs", "total_train_seconds"}
        assert found["completed_runs"] == 6 * len(depths)


def test_the_image_has_a_row_for_each_cell_under_its_short_name() -> None:
    given = evidence()
    figure = cells.cells_figure(given, analyze_study(given))
    (panel,) = figure.axes
    assert [text.get_text() for text in panel.get_yticklabels()] == list(cells.short_names(given.design).values())
    low, high = panel.get_xlim()
    assert all(low <= value <= high for value in given.runs["value"])


# Descriptions


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> MlflowClient:
    return connect(f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db")


def reported(client: MlflowClient, experiment: str, name: str, completed: int | None, *, preset: str = "digits") -> str:
    """Return the ID of a study's run with a description, as a report of it leaves it."""
    run_id = client.create_run(experiment, tags={"preset": preset, NOTE: f"answer of {name}"}, run_name=name).info.run_id
    if completed is not None:
        client.log_batch(run_id, metrics=[Metric(COMPLETED_METRIC, completed, int(time.time() * 1000), 0)])
    update_experiment_note(client, experiment, run_id)
    return str(run_id)


@pytest.fixture
def experiment(client: MlflowClient, tmp_path: Path) -> str:
    return str(client.create_experiment(tmp_path.name, tmp_path.as_uri()))


def shown(client: MlflowClient, experiment: str) -> str:
    return str(client.get_experiment(experiment).tags[NOTE])


def test_one_run_of_a_study_is_shown_as_it_is(client: MlflowClient, experiment: str) -> None:
    reported(client, experiment, "shortcuts · digits", 24)
    assert shown(client, experiment) == "answer of shortcuts · digits"


def test_a_smaller_run_does_not_replace_the_answer_of_a_larger_one_and_is_linked(client: MlflowClient, experiment: str) -> None:
    reported(client, experiment, "shortcuts · digits", 24)
    small = reported(client, experiment, "shortcuts · digits · batch 32", 6)
    note = shown(client, experiment)
    assert note.startswith("answer of shortcuts · digits\n\nThis is shortcuts · digits. The study was also run with other")
    assert f"- [shortcuts · digits · batch 32](#/experiments/{experiment}/runs/{small}" in note
    assert note.endswith("): 6 completed runs")


def test_of_two_runs_of_equal_size_the_one_reported_last_is_shown(client: MlflowClient, experiment: str) -> None:
    first = reported(client, experiment, "first", 6)
    reported(client, experiment, "second", 6)
    assert "answer of second" in shown(client, experiment)
    update_experiment_note(client, experiment, first)
    assert "answer of first" in shown(client, experiment)


def test_generated_images_answer_nothing_where_there_are_others(client: MlflowClient, experiment: str) -> None:
    reported(client, experiment, "smoke", 240, preset="smoke")
    assert "answer of smoke" in shown(client, experiment)
    reported(client, experiment, "digits", 6)
    reported(client, experiment, "smoke again", 240, preset="smoke")
    assert "answer of digits" in shown(client, experiment)


def test_runs_of_a_study_from_before_the_metric_are_counted(client: MlflowClient, experiment: str) -> None:
    old = reported(client, experiment, "old", None)
    for _ in range(7):
        tags = {"mlflow.parentRunId": old, "outcome": "completed"}
        client.create_run(experiment, tags=tags)
    reported(client, experiment, "new", 6)
    note = shown(client, experiment)
    assert "answer of old" in note
    assert note.endswith("6 completed runs")


def of(made: Design) -> tuple[Design, Findings]:
    return made, analyze_study(evidence(made))


def test_a_description_shows_the_image_of_the_cells_if_there_is_one() -> None:
    assert "](get-artifact?path=figures%2Fcells.png&run_uuid=run)" in description(*of(design()), "1", "run", charted=0, drawn=True)
    assert "get-artifact" not in description(*of(design()), "1", "run", charted=0)


def test_a_description_begins_with_plain_words_since_the_list_of_experiments_shows_it_raw() -> None:
    made = design()
    assert description(*of(made), "1", "run", charted=0).startswith(f"{made.question}\n\n")


def test_a_description_names_data_preset_seeds_and_settings() -> None:
    made = replace(design(), test_examples=360)
    text = description(*of(made), "1", "run", charted=0)
    assert r"Data set digits \(1,437 training images, 360 test images\); preset digits; 3 seeds; optim.epochs=10," in text
    assert "optim.global\\_batch\\_size=64" in text
    assert "not the study's own" not in text
    other = replace(made, settings={"optim.weight_decay": "0.01"})
    assert "optim.weight\\_decay=0.01; not the study's own: optim.weight\\_decay." in description(*of(other), "1", "run", charted=0)
