"""Mean and spread of an effect over data sets.

The mean is unweighted, with the t interval over data sets: Hartung and Knapp's interval with equal weights. A t test of independent
normal values with unequal variances holds 5 % (Bakirov and Székely 2006; Ibragimov and Müller 2010), so the interval holds however
the precision differs between data sets. Weights that are estimated from three to ten seeds break that: simulated, the weighted
interval of Hartung and Knapp misses in up to 16 % instead of 5 %.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations

import numpy as np
from scipy.stats import t, ttest_ind_from_stats

from ablations.engine.analysis.datasets.findings import Heterogeneity
from ablations.engine.analysis.statistics.estimate import Estimate
from ablations.engine.analysis.statistics.inference import SIGNIFICANCE_LEVEL, zero_tolerance

MIN_FOR_P_VALUE = 3
"""Fewest data sets for which the mean effect has a p-value. The interval over two data sets is given, but claims nothing."""
MIN_FOR_PREDICTION = 3
"""Fewest data sets for a prediction interval: it has two degrees of freedom less (Higgins et al. 2009)."""


def mean_effect(effects: Sequence[Estimate], share: float = 1.0) -> Estimate:
    """Return the unweighted mean of effects, one per data set, with its t interval and test over data sets.

    Args:
        effects: effects that have a mean.
        share: fraction of the significance level that the present look at the studies may spend.
    """
    values = np.array([each.mean for each in effects], float)
    n = len(values)
    if not n:
        return Estimate(n=0)
    mean = float(values.mean())
    std = float(values.std(ddof=1)) if n > 1 else None
    found = Estimate(n=n, mean=mean, std=std, se=None if std is None else std / math.sqrt(n))
    if not found.se or std is None or std <= zero_tolerance(values):
        return found
    half = _critical(n - 1, share) * found.se
    p = min(1.0, float(2 * t.sf(abs(mean) / found.se, n - 1)) / share) if n >= MIN_FOR_P_VALUE else None
    return replace(found, low=mean - half, high=mean + half, p=p)


def heterogeneity(effects: Mapping[str, Estimate], share: float = 1.0) -> Heterogeneity | None:
    """Return how much the true effects differ; None unless at least two effects have a standard error.

    The test compares all pairs of data sets (Welch's t test, Bonferroni). Simulated with 3, 5 and 10 seeds on 2 to 7 data sets, it
    finds a difference that does not exist in 2 to 6 % of studies; Welch's joint test, and Cochran's Q more so, in up to 12 %.

    Args:
        effects: effects that have a mean, by data set.
        share: fraction of the significance level that the present look at the studies may spend.
    """
    known = {name: each for name, each in effects.items() if each.mean is not None and each.se}
    if len(known) < 2:
        return None
    q, tau_squared, _ = _random_effects(list(known.values()))
    df = len(known) - 1
    tests = {(a, b): _difference_p_value(known[a], known[b]) for a, b in combinations(known, 2)}
    pair = min(tests, key=tests.__getitem__)
    return Heterogeneity(
        q=q,
        df=df,
        i_squared=100 * max(0.0, (q - df) / q) if q else 0.0,
        tau=math.sqrt(tau_squared),
        pair=pair,
        p=min(1.0, len(tests) * tests[pair] / share),
    )


def _difference_p_value(one: Estimate, other: Estimate) -> float:
    """Return the p-value of Welch's t test that two effects are equal."""
    spreads = [(each.se or 0.0) * math.sqrt(each.n) for each in (one, other)]
    means = [each.mean or 0.0 for each in (one, other)]
    found = ttest_ind_from_stats(means[0], spreads[0], one.n, means[1], spreads[1], other.n, equal_var=False)
    return float(found.pvalue)


def prediction_interval(mean: Estimate, spread: Heterogeneity | None, share: float = 1.0) -> tuple[float, float] | None:
    """Return the 95 % prediction interval of the true effect on one more data set; None for fewer than three data sets."""
    if mean.n < MIN_FOR_PREDICTION or mean.mean is None or not mean.se or spread is None:
        return None
    half = _critical(mean.n - 2, share) * math.sqrt(spread.tau**2 + mean.se**2)
    return mean.mean - half, mean.mean + half


def weighted_mean(effects: Sequence[Estimate]) -> Estimate | None:
    """Return the weighted mean of the random-effects model with Hartung and Knapp's interval; None for fewer than two effects."""
    known = [each for each in effects if each.mean is not None and each.se]
    return _random_effects(known)[2] if len(known) > 1 else None


def _random_effects(known: Sequence[Estimate]) -> tuple[float, float, Estimate]:
    """Return Q, the variance of the true effects, and their weighted mean."""
    from statsmodels.stats.meta_analysis import combine_effects  # takes a second to import

    means, variances = np.array([each.mean for each in known], float), np.array([(each.se or 0) ** 2 for each in known])
    with np.errstate(divide="ignore", invalid="ignore"):  # it also computes 1 ÷ Q, which is 0 for equal effects
        found = combine_effects(means, variances, method_re="pm")
    mean, se, n = float(found.mean_effect_re), math.sqrt(float(found.var_hksj_re)), len(known)
    half = _critical(n - 1, 1.0) * se
    return float(found.q), float(found.tau2), Estimate(n=n, mean=mean, se=se, low=mean - half, high=mean + half)


def _critical(df: int, share: float) -> float:
    return float(t.isf(SIGNIFICANCE_LEVEL * share / 2, df))
