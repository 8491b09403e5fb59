"""Power of paired t tests, if the standard deviation is known and if few seeds estimate it."""

import math
from bisect import bisect_left
from functools import partial

import numpy as np
import pytest
from scipy.stats import chi2, ttest_1samp
from statsmodels.stats.power import TTestPower

from ablations.engine.analysis.statistics.power import Spread, expected_power, pooled_spread, smallest_detectable

KNOWN = Spread(1.0, math.inf)


@pytest.mark.parametrize(("n", "comparisons"), [(3, 1), (3, 100), (4, 1), (5, 1), (10, 10), (50, 1)])
def test_at_a_known_spread_the_power_is_the_textbook_one(n: int, comparisons: int) -> None:
    difference = smallest_detectable(Spread(2.0, math.inf), n, comparisons)
    assert difference is not None
    assert TTestPower().power(difference / 2, n, 0.05 / comparisons) == pytest.approx(0.8, abs=1e-3)


def test_the_smallest_detectable_difference_falls_with_seeds_and_rises_with_comparisons() -> None:
    by_seeds = [smallest_detectable(KNOWN, n) or 0 for n in range(3, 30)]
    assert by_seeds == sorted(by_seeds, reverse=True)
    by_comparisons = [smallest_detectable(KNOWN, 5, k) or 0 for k in (1, 3, 10, 100, 1000)]
    assert by_comparisons == sorted(by_comparisons)
    assert by_comparisons[-1] < math.inf
    assert smallest_detectable(KNOWN, 2) is None
    assert expected_power(100, KNOWN, 2) == 0


@pytest.mark.parametrize("df", [1, 2, 4, 20])
def test_studies_planned_from_a_few_seeds_have_the_promised_power_on_average(df: int) -> None:
    random = np.random.default_rng(df)
    estimated = np.sqrt(random.chisquare(df, 5000) / df)
    planned = estimated * (smallest_detectable(Spread(1.0, df), 5) or 0)
    drawn = random.normal(planned[:, None], 1, (5000, 5))
    assert np.mean(ttest_1samp(drawn, 0, axis=1).pvalue < 0.05) == pytest.approx(0.8, abs=0.02)


def _reaches(spread: Spread, n: int) -> bool:
    return expected_power(0.6, spread, n) >= 0.8


@pytest.mark.slow
@pytest.mark.parametrize("pilots", [30, pytest.param(300, marks=pytest.mark.nightly)])
@pytest.mark.parametrize("df", [1, 2, 8 / 3, 4])
def test_the_number_of_seeds_that_is_needed_gives_the_promised_power_on_average(df: float, pilots: int) -> None:
    """Studies that look for 0.6 standard deviations, which takes 24 seeds at a known spread; one plan per quantile of pilots."""
    given = []
    for std in np.sqrt(chi2.ppf((np.arange(pilots) + 0.5) / pilots, df) / df):
        enough = partial(_reaches, Spread(float(std), df))
        given.append(expected_power(0.6, KNOWN, bisect_left(range(1000), True, lo=2, key=enough)))
    assert 0.75 < np.mean(given) < 0.85


def test_the_less_a_spread_is_known_the_larger_the_difference_and_the_wider_the_range() -> None:
    detectable = [smallest_detectable(Spread(1.0, df), 5) or 0 for df in (1, 2, 4, 20, math.inf)]
    assert detectable == sorted(detectable, reverse=True)
    low, high = Spread(2.0, 4).range()
    assert (4 * 4 / low**2, 4 * 4 / high**2) == pytest.approx((chi2.ppf(0.9, 4), chi2.ppf(0.1, 4)))
    assert KNOWN.range() == (1, 1)


def test_pooling_is_the_root_mean_square_weighted_by_degrees_of_freedom() -> None:
    assert pooled_spread([[(3.0, 2)]]) == Spread(3.0, 2)
    found = pooled_spread([[(1.0, 2)], [(2.0, 6)]])
    assert found == Spread(math.sqrt((2 * 1 + 6 * 4) / 8), 8)


def test_comparisons_with_the_same_baseline_have_fewer_degrees_of_freedom_than_their_sum() -> None:
    """The variance of a pooled variance is 2 ÷ its degrees of freedom."""
    cells = np.random.default_rng(0).normal(size=(40_000, 7, 3))
    differences = cells[:, 1:] - cells[:, :1]
    pooled = differences.var(axis=2, ddof=1).mean(axis=1) / 2
    assert pooled_spread([[(1.0, 2)] * 6]).df == pytest.approx(2 / pooled.var(), rel=0.05)
