"""Ray starts beside MLflow, but only for a study that certainly has a run to train."""

from pathlib import Path

import pytest
from mlflow import MlflowClient

from ablations.engine.cli import options, start_up
from ablations.engine.scheduling import connection
from ablations.engine.study.expansion import make_plan
from ablations.engine.study.request import StudyRequest
from resnet_core import ConfigError
from tests.helpers.stored_study import STUDY


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Starts of Ray, of which none happens."""
    starts: list[str] = []
    monkeypatch.setenv("RAY_ADDRESS", "local")
    monkeypatch.setattr(connection, "connect", lambda: starts.append("ray"))
    return starts


def start(uri: str, cache: Path, *words: str, seeds: int | tuple[int, ...] = 3) -> None:
    plan = make_plan(STUDY, StudyRequest(seeds=seeds), cache=cache)
    start_up.start_ray_beside_mlflow(plan, options.parse_options(STUDY, ["--tracking-uri", uri, *words]))


def test_ray_starts_for_missing_runs_only(started: list[str], stored_uri: str, tmp_path: Path) -> None:
    start(stored_uri, tmp_path)
    assert not started, "every run has finished"
    start(stored_uri, tmp_path, seeds=(3, 5))
    assert not started, "an adaptive study may not need its missing runs"
    start("http://127.0.0.1:9", tmp_path)
    assert not started, "MLflow does not answer"
    start(stored_uri, tmp_path, seeds=4)
    start(stored_uri, tmp_path, "--rerun")
    assert len(started) == 2


def test_a_new_database_is_ready_when_ray_is(started: list[str], tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/new/mlflow.db"
    start(uri, tmp_path)
    assert started
    assert MlflowClient(uri).search_experiments()


def test_a_wrong_request_starts_nothing(started: list[str], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cpus-per-worker"):
        start(f"sqlite:///{tmp_path}/none.db", tmp_path, "--cpus-per-worker", "1000")
    assert not started
    assert not (tmp_path / "none.db").exists()
