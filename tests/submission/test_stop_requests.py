"""A tag `stop` in MLflow stops a run or a study while it trains, says who asked, and does not stop the next submission."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from ablations.engine.submission.supervision import stop_requests
from ablations.engine.submission.supervision.stop_requests import message_of
from tests.helpers.submission import Submitted, meanwhile

EPOCHS = 24
LONG = ("--levels", "shortcut=A,B", "--set", f"optim.epochs={EPOCHS}", "optim.lr=0.01")


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stop_requests, "POLL_INTERVAL_SECONDS", 0.2)


def tag_one_run(client: MlflowClient, runs: Sequence[Any], asked: list[Any]) -> bool:
    """Ask the run with shortcut A to stop, once it has trained an epoch; return whether the request has been heard."""
    for run in runs:
        if run.data.tags.get("cell") == "shortcut=A" and "test/error" in run.data.metrics:
            if not asked:
                client.set_tag(run.info.run_id, "stop", "anna: too slow")
                asked.append(run)
            return "stopped" in run.data.tags
    return False


def tag_the_study(client: MlflowClient, runs: Sequence[Any]) -> bool:
    """Ask the study to stop, once one of its runs has trained an epoch."""
    if any("test/error" in run.data.metrics for run in runs):
        (study,) = [run for run in runs if "base" in run.data.tags]
        client.set_tag(study.info.run_id, "stop", "")
        return True
    return False


@pytest.mark.slow
@pytest.mark.usefixtures("cluster", "few_figures")
def test_a_tag_on_a_run_stops_this_run_at_the_end_of_an_epoch_and_no_other(home: Path) -> None:
    with meanwhile(home, partial(tag_one_run, asked=[]), slowly=2):
        stopped = Submitted(home, *LONG)
    assert (stopped.code, stopped.outcomes()) == (1, ["stopped", "completed"])
    tags = stopped.entry(0).tags
    assert tags["message"] == "stopped on request (anna: too slow)"
    assert tags["stopped"].startswith("stopped on request (anna: too slow), 20")
    assert "stop" not in tags
    assert tags["attempts"] == "1", "it was not retried"
    assert stopped.entry(0).status == "KILLED"
    steps = stopped.steps(0)
    assert 0 < len(steps) < EPOCHS
    assert "1 stopped" in stopped.text
    assert "shortcut=A seed=0: stopped, stopped on request (anna: too slow)" in stopped.text

    again = Submitted(home, *LONG)
    assert (again.code, again.outcomes()) == (0, ["completed", "completed"])
    assert again.run_ids() == stopped.run_ids()
    assert again.steps(0) == list(range(1, EPOCHS + 1)), "it continued from its checkpoint"


@pytest.mark.slow
@pytest.mark.usefixtures("cluster", "few_figures")
def test_a_tag_on_the_study_ends_it_like_an_interrupt_and_not_its_next_submission(home: Path) -> None:
    with meanwhile(home, tag_the_study, slowly=2):
        stopped = Submitted(home, *LONG)
    assert stopped.code == 1
    assert "The study was stopped on request (tag stop in MLflow). The same command continues it." in stopped.text
    assert set(stopped.outcomes()) == {"stopped"}
    study = stopped.parent()
    assert study.info.status == "KILLED"
    assert "stop" not in study.data.tags
    assert study.data.tags["stopped"].startswith("stopped on request (tag stop in MLflow), 20")
    stopped.client.set_tag(study.info.run_id, "stop", "too late")
    stopped.client.set_tag(stopped.entry(0).run_id, "stop", "too late")

    again = Submitted(home, *LONG)
    assert (again.code, again.outcomes()) == (0, ["completed", "completed"])
    assert "2 tags stop in MLflow from before this submission were removed." in again.text
    assert again.steps(0) == again.steps(1) == list(range(1, EPOCHS + 1))
    assert not {"stop", "stopped"} & again.parent().data.tags.keys()


@pytest.mark.parametrize("value", ["", "true", " Stop ", "1"])
def test_a_value_that_names_nobody_is_told_as_the_tag(value: str) -> None:
    assert message_of(value) == "stopped on request (tag stop in MLflow)"


def test_a_long_value_is_cut_and_printable() -> None:
    assert message_of("a\nb" + "x" * 500) == f"stopped on request (a\\nb{'x' * 196})"


def test_all_runs_of_a_study_share_one_request() -> None:
    class Client:
        def __init__(self) -> None:
            self.filters: list[tuple[list[str], str]] = []

        def search_runs(self, experiments: list[str], where: str) -> list[Any]:
            self.filters.append((experiments, where))
            return []

    client, study_run = Client(), type("StudyRun", (), {"experiment_id": "1", "run_id": "r"})()
    requests = stop_requests.StopRequests(client, study_run, lambda: {"1", "2"}, lambda: None)
    requests.poll()
    assert client.filters == [(["1", "2"], "tags.stop LIKE '%' and attributes.status = 'RUNNING'")]
