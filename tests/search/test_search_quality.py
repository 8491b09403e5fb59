"""Samplers and early stopping find better configurations than random search at equal cost, on a known response.

Learning curves and workers are simulated (`simulated.py`), so a search takes about a second. Every search has four workers and as
many epochs as some whole trainings of random configurations. What it found is the true error of the configuration whose last error
is lowest. Improvements are paired by the seed of the search.
"""

import math
from collections.abc import Mapping
from functools import cache, partial
from typing import Any

import numpy as np
import pytest
from scipy import stats

from ablations.engine.search.optimizer import Optimizer, SearchSettings
from ablations.engine.task.metric import error_metric
from tests.helpers.simulated_search import EPOCHS, Search, curve, space, true_error

REPETITIONS = 20
NO_LIMIT = 10_000


@cache
def found(sampler: str, scheduler: str, seed: int, epochs: int, trainings: int) -> float:
    """Return the true error, in percent, of the configuration that a search found."""
    trials = trainings if scheduler in ("none", "pbt") else NO_LIMIT
    settings = SearchSettings(
        sampler=sampler,
        scheduler=scheduler,
        trials=trials,
        seconds=None,
        epochs=epochs,
        seed=seed,
        metric=error_metric("validation"),
    )
    search = Search(Optimizer(space, settings), epochs=epochs, curve=partial(curve, epochs=epochs))
    search.run(workers=4, most_epochs=trainings * epochs)
    return true_error(search.best)


def interval(first: list[float], second: list[float]) -> tuple[float, float]:
    """Return the 95 % interval of the mean of paired differences."""
    differences = np.subtract(first, second)
    mean, half = differences.mean(), stats.t.ppf(0.975, len(differences) - 1) * stats.sem(differences)
    print(f"{mean:+.2f} [{mean - half:+.2f}, {mean + half:+.2f}], n = {len(differences)}")
    return mean - half, mean + half


@pytest.mark.slow
@pytest.mark.nightly
@pytest.mark.parametrize(
    ("sampler", "scheduler", "epochs", "trainings"),
    [
        ("random", "asha", 81, 27),
        ("random", "hyperband", 81, 27),
        ("random", "pbt", 27, 27),
        ("tpe", "none", 27, 27),
    ],
)
def test_a_search_beats_random_search_at_equal_cost(sampler: str, scheduler: str, epochs: int, trainings: int) -> None:
    at_random = [found("random", "none", seed, epochs, trainings) for seed in range(REPETITIONS)]
    assert interval(at_random, [found(sampler, scheduler, seed, epochs, trainings) for seed in range(REPETITIONS)])[0] > 0


def two_objectives(trial: Any) -> None:
    space(trial)
    trial.suggest_int("width", 8, 64, log=True)


def front(sampler: str, seed: int) -> float:
    """Return the percentage of the plane, error 0 to 100 % by log2 of the width 3 to 6, that a front of 200 trials dominates."""
    settings = SearchSettings(
        sampler=sampler,
        scheduler="none",
        trials=200,
        seconds=None,
        epochs=EPOCHS,
        seed=seed,
        objectives=2,
        metric=error_metric("validation"),
    )
    search = Search(Optimizer(two_objectives, settings), curve=of_width, results=against_width)
    search.run(workers=4)
    points = sorted((of_width(told.values, noise=0)[-1], told.results[1]) for told in search.trials.values() if told.results)
    area, lowest = 0.0, 6.0
    for error, width in points:
        area += (100 - error) * max(0.0, lowest - width)
        lowest = min(lowest, width)
    return area / 3


def of_width(values: Mapping[str, Any], noise: float = 0.5) -> list[float]:
    rest = {name: value for name, value in values.items() if name != "model.width"}
    return [error + 5 * (6 - math.log2(values["model.width"])) for error in curve(rest, noise)]


def against_width(values: Mapping[str, Any], error: float) -> tuple[float, float]:
    return error, math.log2(values["model.width"])


@pytest.mark.slow
@pytest.mark.nightly
def test_with_two_objectives_tpe_dominates_more_than_random_search() -> None:
    seeds = range(REPETITIONS // 2)
    assert interval([front("tpe", seed) for seed in seeds], [front("random", seed) for seed in seeds])[0] > 0
