"""Predictions on the test set are stored with each run, once, and read back for the report."""

from pathlib import Path

import numpy as np
import pytest
import torch

from ablations.engine.analysis.evidence import Evidence
from ablations.engine.task.predictions import Predictions
from ablations.engine.tracking import results, run_queries
from resnet_core import build_network, override
from resnet_core.data.batches import Batches
from resnet_core.training.state import evaluated_weights
from tests.helpers.submission import Killer, Submitted

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("cluster")]

CPU = torch.device("cpu")
ONE = ("--levels", "shortcut=A")
FAST = ("--set", "optim.epochs=12", "optim.lr=0.05", "data.pad=0", "data.flip=false")
"""Settings with which the networks learn enough to predict more than one class."""


def stored(submitted: Submitted) -> Predictions:
    entry = submitted.entry()
    assert entry.tags[run_queries.PREDICTIONS_TAG] == run_queries.PREDICTIONS_ARTIFACT
    path = submitted.client.download_artifacts(entry.run_id, run_queries.PREDICTIONS_ARTIFACT)
    return Predictions.from_bytes(Path(path).read_bytes())


def recomputed(submitted: Submitted) -> list[int]:
    """Return the classes that the network of the last checkpoint predicts for the test images, in their order, in one process."""
    run = submitted.plan.runs[0]
    data = submitted.plan.dataset_for_run(run)
    net = build_network(run.spec.model, **data.sizes)
    net.load_state_dict(evaluated_weights(submitted.checkpoint()))
    with torch.inference_mode():
        batches = Batches(data, override(run.spec, {"world_size": 1}), device=CPU).test()
        return [int(each) for images, _ in batches for each in net.eval()(images).argmax(1)]


def check(submitted: Submitted) -> None:
    """Assert that the stored predictions are those of the final network, and that the report reads them."""
    assert submitted.outcomes() == ["completed"]
    found, labels = stored(submitted), submitted.plan.dataset.test.labels
    assert found.classes.tolist() == recomputed(submitted)
    assert len(set(found.classes.tolist())) > 2, "few classes would agree in a wrong order too"
    assert found.correct.tolist() == (found.classes == labels).tolist()
    evidence = submitted.found()
    (correct,) = evidence.correct.values()
    assert evidence.runs["value"].tolist() == [100 * np.mean(~correct)]
    assert (evidence.design.test_examples, evidence.design.chance) == (50, 90.0)


@pytest.mark.parametrize("workers", ["1", pytest.param("2", marks=pytest.mark.nightly)])
def test_they_are_those_of_the_final_network_in_the_order_of_the_test_set(home: Path, workers: str) -> None:
    submitted = Submitted(home, *ONE, *FAST, "--workers", workers)
    check(submitted)
    assert "on these 50 test images" in " ".join(submitted.text.split())
    page = Path(submitted.client.download_artifacts(submitted.parent().info.run_id, "report/report.html")).read_text()
    assert "Seeds and test images" in page


@pytest.mark.nightly
def test_a_run_that_was_killed_has_those_of_its_end(home: Path) -> None:
    killer = Killer("ray::RunTrainable", lambda: any(int(p.name[6:12]) >= 3 for p in home.glob("checkpoints/*/epoch-*.pt")))
    submitted = Submitted(home, *ONE, "--set", "optim.epochs=200", "optim.lr=0.05", "data.pad=0", "data.flip=false")
    assert killer.join()
    assert submitted.entry().tags["attempts"] == "2"
    check(submitted)


def test_nobody_has_to_keep_them_and_runs_without_them_stay_done(home: Path) -> None:
    for options in (("--no-predictions",), ()):
        submitted = Submitted(home, *ONE, *options)
        assert submitted.code == 0
        assert submitted.entry().tags["attempts"] == "1"
        assert run_queries.PREDICTIONS_TAG not in submitted.entry().tags
        assert [file.path for file in submitted.client.list_artifacts(submitted.entry().run_id)] == []
        assert submitted.evidence().correct == {}


@pytest.mark.nightly
def test_those_that_cannot_be_read_are_left_out(home: Path, caplog: pytest.LogCaptureFixture) -> None:
    submitted = Submitted(home, "--seeds", "2")
    results._download_correct.cache_clear()
    paths = [Path(submitted.client.get_run(submitted.entry(i).run_id).info.artifact_uri.removeprefix("file://")) for i in range(4)]
    (paths[0] / run_queries.PREDICTIONS_ARTIFACT).write_bytes(b"half of")
    (paths[1] / run_queries.PREDICTIONS_ARTIFACT).unlink()
    other = Predictions(np.arange(7), np.ones(7, bool)).to_bytes()
    (paths[2] / run_queries.PREDICTIONS_ARTIFACT).write_bytes(other)
    caplog.clear()
    evidence: Evidence = submitted.evidence()
    assert list(evidence.correct) == [submitted.plan.runs[3].fingerprint]
    assert len(evidence.runs) == 4
    (message,) = caplog.messages
    assert message.startswith("the predictions of 3 of 4 runs cannot be read: ")
    assert results.gather(submitted.client, evidence.design, details=False).correct == {}
