"""`run` on several data sets, on a real Ray: what is missing is trained, and an interrupt stops the whole."""

from dataclasses import replace
from pathlib import Path

import pytest

from ablations import DatasetsResult, Result, load, run
from tests.helpers.submission import STUDY, interrupted_after_an_epoch

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("cluster")]
SIZES = {"few": {"train_examples": 64}, "many": {"train_examples": 96}}


def test_a_study_on_several_data_sets_is_interrupted_continued_and_extended(
    cluster: str, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RESNET_ABLATIONS_HOME", str(home))
    monkeypatch.setenv("RAY_ADDRESS", cluster)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    study = replace(STUDY, name="sizes", datasets=SIZES)
    with interrupted_after_an_epoch(monkeypatch):
        run(study)
    printed = capsys.readouterr().out
    assert printed.count("runs to train") == 1, "the second data set was not begun"
    assert "on 2 data sets" not in printed

    result = run(study)
    assert isinstance(result, DatasetsResult)
    assert result.complete
    assert len(result.runs) == 4
    assert "Summary: " in capsys.readouterr().out
    network = result.net(result.runs.iloc[3])
    assert sum(each.numel() for each in network.parameters())

    more = run(study, datasets={**SIZES, "most": {"train_examples": 128}})
    assert isinstance(more, DatasetsResult)
    printed = capsys.readouterr().out
    assert printed.count("all 2 runs are in MLflow already") == 2
    assert list(more.datasets) == ["few", "many", "most"]
    assert set(more.runs["run_id"]) > set(result.runs["run_id"])
    alone = load(replace(STUDY, name="sizes"), settings={"train_examples": 64})
    assert not isinstance(alone, DatasetsResult)
    assert isinstance(alone, Result)
    assert list(alone.runs["run_id"]) == list(more.datasets["few"].runs["run_id"])
