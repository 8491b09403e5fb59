"""Studies of networks, images and trainings of one's own, on real Ray and MLflow."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed

from ablations import Context, Epoch, Metric, Study, Task
from tests.helpers.own_networks import Tiny
from tests.helpers.submission import Killer, Submitted

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("cluster")]


@dataclass(frozen=True, kw_only=True)
class Config:
    rate: float = 0.5
    epochs: int = 3
    pause: float = 0.0


def train(config: Config, context: Context) -> Iterator[Epoch]:
    """Halve a number with some noise; workers agree on its mean."""
    done, value = (context.restore["epoch"], context.restore["value"]) if context.restore else (0, torch.tensor(8.0))
    for epoch in range(done + 1, config.epochs + 1):
        seed = 1000 * context.seed + 10 * epoch + context.rank
        value = value * config.rate + torch.rand((), generator=torch.Generator().manual_seed(seed))
        if context.world_size > 1:
            distributed.all_reduce(value)
            value /= context.world_size
        time.sleep(config.pause)
        yield Epoch(metrics={"valid/score": -value, "train/score": 0}, checkpoint={"epoch": epoch, "value": value})


def space(trial: Any) -> None:
    trial.suggest_float("rate", 0.1, 0.9)


TASK = Task(name="walk", config=Config, train=train, metric=Metric("valid/score", unit="nats", better="higher"))
WALK = Study(name="walk", question="Does it walk?", task=TASK, factors={"rate": (0.5, 0.1)}, baseline={"rate": 0.5}, seeds=3)


def scores(study: Submitted, index: int = 0) -> list[float]:
    return [metric.value for metric in study.history("valid/score", index)]


def test_a_training_of_ones_own_has_results_in_its_unit_and_is_trained_once(home: Path) -> None:
    first = Submitted(home, study=WALK)
    assert first.code == 0
    assert first.outcomes() == ["completed"] * 6
    assert [metric.step for metric in first.history("valid/score")] == [1, 2, 3]
    params = first.entry().params
    assert (params["rate"], params["epochs"]) in {("0.5", "3"), ("0.1", "3")}
    assert first.entry().tags["task"] == "walk"
    assert "rate matters: going from 0.5 to 0.1 raises the valid score by 1.351 nats" in " ".join(first.text.split())
    assert "nats" in first.text
    assert "error" not in first.text
    again = Submitted(home, study=WALK)
    assert again.code == 0
    assert again.run_ids() == first.run_ids()


@pytest.mark.versions
@pytest.mark.nightly
def test_two_workers_train_together_and_count_as_another_configuration(home: Path) -> None:
    study = replace(WALK, factors={"rate": (0.5,)}, seeds=1)
    both = Submitted(home, "--workers", "2", study=study)
    assert (both.code, both.outcomes()) == (0, ["completed"])
    alone = Submitted(home, study=study)
    assert alone.entry().run_id != both.entry().run_id
    assert scores(alone) != scores(both)
    assert len(scores(both)) == 3


@pytest.mark.versions
@pytest.mark.nightly
def test_a_killed_training_continues_to_the_same_numbers(home: Path) -> None:
    study = replace(WALK, factors={"rate": (0.5,)}, seeds=1, settings={"epochs": 200, "pause": 0.05})
    killer = Killer("ray::RunTrainable", lambda: any(int(p.name[6:12]) >= 30 for p in home.glob("checkpoints/*/epoch-*.pt")))
    killed = Submitted(home, study=study)
    assert killer.join()
    assert (killed.code, killed.entry().outcome, killed.entry().tags["attempts"]) == (0, "completed", "2")
    undisturbed = [epoch.metrics["valid/score"] for epoch in train(Config(epochs=200), Context(seed=0))]
    assert scores(killed) == pytest.approx([float(value) for value in undisturbed])


@pytest.mark.versions
@pytest.mark.nightly
def test_a_search_maximizes_a_metric_that_is_better_higher(home: Path) -> None:
    study = replace(WALK, space=space, seeds=3)
    found = Submitted(home, "--trials", "6", "--scheduler", "none", "--sampler", "random", study=study)
    assert found.code == 0
    evidence = found.found()
    assert evidence.trials is not None
    best = evidence.trials.sort_values("value").iloc[-1]
    (tuned,) = [cell for cell in evidence.design.cells if cell.label.endswith("configuration=tuned")]
    assert tuned.spec["rate"] == best["rate"]


def test_a_network_of_ones_own_is_compared_like_a_built_in_one(home: Path) -> None:
    study = Study(
        name="norms",
        question="Which norm?",
        model=Tiny,
        preset="smoke",
        factors={"norm": ("batch", "none")},
        baseline={"norm": "batch"},
        settings={"probes": ("gradients",)},
        seeds=2,
    )
    found = Submitted(home, "--log-models", study=study)
    assert found.code == 0, found.text
    assert found.outcomes() == ["completed"] * 4
    assert found.entry().metrics["parameters"] > 0
    assert found.entry().tags["model"] == "pt2"
    assert found.entry().params["model.norm"] == "batch"
    assert set(found.evidence().probes["probe"]) == {"gradients"}
    both = Submitted(home, "--workers", "2", "--seeds", "1", study=study)
    assert both.code == 0


def bad(config: Config, context: Context) -> Iterator[Epoch]:
    yield Epoch(metrics={"loss": 1.0})


@pytest.mark.nightly
def test_a_training_without_its_metric_fails_with_one_line(home: Path) -> None:
    study = replace(WALK, task=replace(TASK, name="bad", train=bad), factors={"rate": (0.5,)}, seeds=1)
    failed = Submitted(home, study=study)
    assert failed.code == 1
    assert failed.entry().tags["message"] == "ConfigError: train of bad: yields no metric valid/score; it yields loss"
    assert failed.entry().tags["attempts"] == "1"
