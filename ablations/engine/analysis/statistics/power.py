"""Statistical power of paired t tests whose standard deviation is known from a few seeds only.

Two or three seeds often have too small a standard deviation by chance. A study that is planned as if that were the true one has
80 % power on paper and 50 to 70 % in fact. Here, power is averaged over the possible values of the true standard deviation
(assurance, O'Hagan et al. 2005): its square is `df` × the estimated variance ÷ a chi-square variable with `df` degrees of freedom.
Averaged over pilots, studies that are planned this way have the power that they were promised.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from scipy.special import gammaincinv, ndtr, stdtrit  # the imports of scipy.stats take a second, which a plan would wait for

from ablations.engine.analysis.statistics.estimate import CONFIDENCE_LEVEL, MIN_SEEDS_FOR_P_VALUE
from ablations.engine.analysis.statistics.inference import Array

POWER = 0.8
"""Fraction of studies that detect a difference."""
SPREAD_RANGE = 0.8
"""Probability that the range of a spread holds the true standard deviation."""
SHARED_BASELINE_CORRELATION = 0.5
"""Correlation of two differences to the same baseline, if all cells have the same standard deviation."""
NODES = 200
"""Number of quantiles that stand for the distribution of a standard deviation."""


@dataclass(frozen=True)
class Spread:
    """A standard deviation and how well it is known."""

    std: float
    df: float
    """Its degrees of freedom; infinite if it is known."""

    def range(self) -> tuple[float, float]:
        """Return the limits between which the true standard deviation is with 80 % probability (chi-square)."""
        if math.isinf(self.df):
            return self.std, self.std
        tail = (1 - SPREAD_RANGE) / 2
        low, high = (self.std * math.sqrt(self.df / _chi_square_quantile(p, self.df)) for p in (1 - tail, tail))
        return low, high


def pooled_spread(groups: Sequence[Sequence[tuple[float, int]]]) -> Spread:
    """Return the root mean square of standard deviations, weighted by their degrees of freedom.

    Args:
        groups: Standard deviations with their degrees of freedom. Those of a group are of differences to the same baseline. They
            are correlated, and so have fewer degrees of freedom than their sum.
    """
    every = [each for group in groups for each in group]
    total = sum(df for _, df in every)
    variance = sum(df * std**2 for std, df in every) / total
    # The covariance of two sums of squares is 2 × correlation² × shared degrees of freedom × variance²; that of one with itself
    # has a correlation of 1.
    shared = sum(
        (1 if i == j else SHARED_BASELINE_CORRELATION**2) * min(first, second)
        for group in groups
        for i, (_, first) in enumerate(group)
        for j, (_, second) in enumerate(group)
    )
    return Spread(math.sqrt(variance), total**2 / shared)


def expected_power(difference: float, spread: Spread, n: int, comparisons: float = 1) -> float:
    """Return the power of a two-sided paired t test over n seeds at 5 %, averaged over the possible standard deviations.

    Args:
        difference: True mean difference.
        spread: Standard deviation of the differences, in the same unit.
        n: Number of seeds.
        comparisons: Number of comparisons that share the 5 % significance level (Bonferroni's bound, which is Holm's bound for the
            smallest p-value), divided by the share of the look of an adaptive study.

    Returns:
        The power; 0 for fewer than 3 seeds, which give no p-value.
    """
    if n < MIN_SEEDS_FOR_P_VALUE:
        return 0.0
    critical = -float(stdtrit(n - 1, (1 - CONFIDENCE_LEVEL) / comparisons / 2))
    # SciPy's noncentral t distribution would give the power at a known standard deviation directly, but returns NaN for a third of
    # such arguments. So the power is a mean over the quantiles of the study's own standard deviation too.
    observed = critical * _relative_stds(n - 1)[:, None]
    shift = difference / spread.std * math.sqrt(n) * _relative_stds(spread.df)[None, :]
    return float(np.mean(ndtr(shift - observed) + ndtr(-shift - observed)))


def smallest_detectable(spread: Spread, n: int, comparisons: float = 1, power: float = POWER) -> float | None:
    """Return the smallest true difference whose expected power reaches `power`, as in `expected_power`.

    Returns:
        The difference, in the unit of the spread; None for fewer than 3 seeds, which give no p-value.
    """
    if n < MIN_SEEDS_FOR_P_VALUE:
        return None

    def missing_power(difference: float) -> float:
        return power - expected_power(difference, spread, n, comparisons)

    from scipy.optimize import brentq  # which a plan without results does not need

    most = spread.std
    while missing_power(most) > 0:
        most *= 2
    return float(brentq(missing_power, 0, most))


def _chi_square_quantile(probability: Any, df: float) -> Any:
    """Return the values below which a chi-square variable with `df` degrees of freedom is with these probabilities."""
    return 2 * gammaincinv(df / 2, probability)


@cache
def _relative_stds(df: float) -> Array:
    """Return quantiles of a sample standard deviation with `df` degrees of freedom ÷ the true one."""
    if math.isinf(df):
        return np.ones(1)
    return np.asarray(np.sqrt(_chi_square_quantile((np.arange(NODES) + 0.5) / NODES, df) / df))
