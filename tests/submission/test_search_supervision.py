"""A search obeys a stop request for one trial, and ends if its first trials all fail with the same error."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from mlflow import MlflowClient

from ablations.engine.scheduling import tune_runner
from ablations.engine.submission.supervision import stop_requests
from ablations.engine.trial import trainable
from ablations.engine.trial.job import Report
from resnet_core.model.network import ResNet
from tests.helpers.submission import SEARCH, Submitted, meanwhile

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("cluster", "few_figures")]

ARGUMENTS = ("--trials", "4", "--scheduler", "none", "--sampler", "random", "--seeds", "1")


def trials(submitted: Submitted) -> list[Any]:
    (experiment,) = [each for each in submitted.client.search_experiments() if each.name == SEARCH.name]
    runs = submitted.client.search_runs([experiment.experiment_id], "tags.fingerprint LIKE '%'")
    return [run for run in runs if any(name.startswith("trial.") for name in run.data.tags)]


def stop_the_first_trial(client: MlflowClient, runs: Sequence[Any], asked: list[Any]) -> bool:
    """Ask a trial to stop, once it has trained an epoch; return whether the request has been heard."""
    for run in runs:
        if "stopped" in run.data.tags:
            return True
        if run.info.status == "RUNNING" and "validation/error" in run.data.metrics and not asked:
            client.set_tag(run.info.run_id, "stop", "not this one")
            asked.append(run)
    return False


def test_a_stopped_trial_ends_and_the_search_goes_on_without_it(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stop_requests, "POLL_INTERVAL_SECONDS", 0.1)
    with meanwhile(home, partial(stop_the_first_trial, asked=[]), slowly=2):
        searched = Submitted(home, *ARGUMENTS, "--set", "optim.epochs=10", study=SEARCH)
    outcomes = sorted(run.data.tags["outcome"] for run in trials(searched))
    assert outcomes.count("stopped") == 1
    assert len(outcomes) == 4
    assert searched.code == 0, searched.text


def test_a_search_whose_first_trials_fail_alike_ends(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forward(_: ResNet, images: torch.Tensor) -> torch.Tensor:
        return images.misspelt()  # type: ignore[attr-defined, no-any-return]

    class Misspelling(trainable.RunTrainable):
        def step(self) -> Report:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(ResNet, "forward", forward)
                return super().step()

    monkeypatch.setattr(tune_runner, "RunTrainable", Misspelling)
    failed = Submitted(home, *ARGUMENTS, "--trials", "12", study=SEARCH)
    assert failed.code == 1
    assert "The study stopped: the first 3 runs failed with the same error: AttributeError: 'Tensor'" in failed.text
    outcomes = [run.data.tags["outcome"] for run in trials(failed)]
    assert outcomes.count("failed") == 3
    assert len(outcomes) <= 5
