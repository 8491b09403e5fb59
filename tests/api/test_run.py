"""`run` in one process, on a real Ray: twice, interrupted, and with the network that it trained."""

import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from ablations import Result, load, run
from ablations.engine.submission.model_logging import PixelsToScores
from resnet_core import PRESETS
from resnet_core.data.datasets import load_dataset
from resnet_core.data.splits import Split
from tests.helpers.submission import STUDY, interrupted_after_an_epoch

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("cluster")]


@pytest.fixture
def place(cluster: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home with an empty database, and the address of the shared Ray."""
    monkeypatch.setenv("RESNET_ABLATIONS_HOME", str(home))
    monkeypatch.setenv("RAY_ADDRESS", cluster)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return home


def called(**options: Any) -> Result:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)], os.environ.get("RAY_ADDRESS")
    try:
        return run(STUDY, **options)
    finally:
        assert ([signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)], os.environ.get("RAY_ADDRESS")) == before


@pytest.mark.versions
def test_a_second_call_trains_only_what_is_missing(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = called()
    assert first.complete
    assert "2 runs to train, 0 done already" in capsys.readouterr().out
    assert list(first.runs["outcome"]) == ["completed"] * 2
    more = called(seeds=2, settings={"epochs": 2})
    assert "2 runs to train, 2 done already" in capsys.readouterr().out
    assert set(more.runs["run_id"]) > set(first.runs["run_id"])
    assert load(STUDY).runs.equals(more.runs)
    _check_network(more)


def _check_network(result: Result) -> None:
    """Check that the network of a run makes as many errors on the test images as MLflow has for the run."""
    dataset = load_dataset(PRESETS["smoke"].data, Path(os.environ["RESNET_ABLATIONS_HOME"]) / "data")
    row = result.runs.iloc[1]
    net = PixelsToScores(result.net(row), dataset, PRESETS["smoke"].data.normalize).eval()
    assert isinstance(dataset.test, Split)
    images, labels = torch.as_tensor(dataset.test.images), torch.as_tensor(dataset.test.labels)
    with torch.inference_mode():
        wrong = (net(images.float()).argmax(1) != labels).float().mean()
    assert float(100 * wrong) == pytest.approx(row["test/error"])


@pytest.mark.versions
@pytest.mark.nightly
def test_an_interrupted_call_is_continued_by_the_next(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with interrupted_after_an_epoch(monkeypatch):
        called()
    assert not load(replace(STUDY)).complete
    result = called()
    assert result.complete
    assert result.curves.groupby("shortcut")["epoch"].apply(list).to_dict() == {"A": [1, 2], "none": [1, 2]}
