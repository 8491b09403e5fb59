"""Forecast of an adaptive study: how many runs its path takes at least, at most, and on average in simulation."""

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from ablations.engine.analysis.statistics.adaptive import follow_looks
from ablations.engine.analysis.statistics.inference import Array
from ablations.engine.analysis.statistics.looks import declared_shares
from ablations.engine.study.design import Design
from ablations.engine.submission.planning.cost_and_power import CostEstimate, difference_spread

SIMULATIONS = 100
"""Number of simulated studies; fewer if they take longer than `BUDGET_SECONDS`."""
BUDGET_SECONDS = 3.0


@dataclass(frozen=True, kw_only=True)
class PathCost:
    """The cost of a path."""

    runs: float
    """Number of runs, with those that are done."""
    missing: float
    """Number of runs to train."""
    seconds: float | None
    """Training time of these one after another; None if some have no estimate."""
    hours: float | None
    """Time until they have ended, without waiting at looks; None if the number of concurrent runs is not known."""


@dataclass(frozen=True, kw_only=True)
class SeedForecast:
    """Cost of an adaptive study."""

    looks: tuple[int, ...]
    best: PathCost
    """Every comparison is decided at the next look."""
    expected: PathCost | None
    """Mean of simulated studies; None if nothing is known about the spread between seeds, or if no comparison is open."""
    worst: PathCost
    """No comparison is decided before the last look."""
    source: str
    """Source of the spread; empty without one."""


def forecast_seeds(
    design: Design, results: Mapping[str, tuple[str, float]], estimate: CostEstimate, earlier: tuple[int, ...] = ()
) -> SeedForecast:
    """Return the cost of an adaptive study given its results so far.

    Runs that are not done are simulated with normal errors. Their cell has the mean of its results if it has two or more, which is
    uncertain as their spread says; otherwise the mean of all results, as if its levels had no effect.

    Args:
        design: Design with all seeds that its cells may get.
        results: Outcome and value of the runs that are done, by fingerprint; NaN without a value.
        estimate: Estimated duration of the others.
        earlier: Numbers of seeds at which the study was looked at before.
    """
    names = np.array([cell.fingerprints for cell in design.cells], object)
    outcomes = np.vectorize(lambda name: results.get(name, ("", math.nan))[0], otypes=[object])(names)
    values = np.vectorize(lambda name: results.get(name, ("", math.nan))[1], otypes=[float])(names)
    shares = declared_shares(design, earlier)
    path = follow_looks(design, values, outcomes.tolist(), shares)
    spread = difference_spread(design, {name: value for name, (_, value) in results.items() if math.isfinite(value)})
    costs: list[PathCost] = []
    if spread and not path.finished:
        draw, made, began = np.random.default_rng(0), replace(design, chance=None), time.monotonic()
        everything = np.where(outcomes == "", "completed", outcomes).tolist()
        while len(costs) < SIMULATIONS and (time.monotonic() < began + BUDGET_SECONDS or not costs):
            simulated = np.where(outcomes == "", _simulate(values, spread[0].std / math.sqrt(2), draw), values)
            costs.append(_cost(follow_looks(made, simulated, everything, shares).seeds, names, outcomes, estimate))
    return SeedForecast(
        looks=design.seed_looks,
        best=_cost(path.seeds, names, outcomes, estimate),
        expected=_mean(costs),
        worst=_cost(path.most_seeds, names, outcomes, estimate),
        source=spread[1] if spread else "",
    )


def _simulate(values: Array, std: float, draw: np.random.Generator) -> Array:
    known = np.isfinite(values)
    counts, grand = known.sum(axis=1), float(values[known].mean()) if known.any() else 0.0
    means = np.where(counts > 1, np.where(known, values, 0).sum(axis=1) / np.maximum(counts, 1), grand)
    means = means + np.where(counts > 1, std / np.sqrt(np.maximum(counts, 1)), 0) * draw.normal(size=len(values))
    return np.asarray(means[:, None] + std * draw.normal(size=values.shape))


def _cost(
    seeds: tuple[int, ...],
    names: "np.typing.NDArray[np.object_]",
    outcomes: "np.typing.NDArray[np.object_]",
    estimate: CostEstimate,
) -> PathCost:
    on_path = np.arange(names.shape[1]) < np.array(seeds)[:, None]
    missing = names[on_path & (outcomes == "")].tolist()
    known = [estimate.seconds[name] for name in missing if name in estimate.seconds]
    seconds = sum(known) if len(known) == len(missing) else None
    hours = seconds / estimate.at_once / 3600 if seconds is not None and estimate.at_once else None
    return PathCost(runs=sum(seeds), missing=len(missing), seconds=seconds, hours=hours)


def _mean(costs: list[PathCost]) -> PathCost | None:
    if not costs:
        return None

    def mean(name: str) -> float | None:
        values = [getattr(cost, name) for cost in costs]
        return None if None in values else sum(values) / len(values)

    return PathCost(runs=mean("runs") or 0.0, missing=mean("missing") or 0.0, seconds=mean("seconds"), hours=mean("hours"))
