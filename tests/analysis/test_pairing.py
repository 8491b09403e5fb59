"""Correlation over seeds, and what pairing by seed costs and gains: the numbers of docs/evidence.md."""

import math
import re

import numpy as np
import pytest
from scipy.stats import pearsonr, ttest_ind, ttest_rel

from ablations.engine.analysis.statistics.pairing import seed_correlation
from tests.helpers.project import PROJECT

CORRELATIONS = (-0.2, 0.0, 0.2, 0.5)
POWER_AT = {3: 3.264, 5: 1.682, 10: 0.996, 20: 0.660}
"""Differences, in standard deviations of paired differences, that a paired t test over n seeds finds with 80 % power."""


@pytest.mark.parametrize("n", [4, 5, 20])
def test_the_correlation_and_its_interval_are_those_of_scipy(n: int) -> None:
    a, b = np.random.default_rng(n).normal(size=(2, n))
    expected = pearsonr(a, b)
    interval = expected.confidence_interval(0.95)
    assert seed_correlation(a, b) == pytest.approx((expected.statistic, interval.low, interval.high))


def test_only_seeds_that_both_cells_completed_count() -> None:
    a, b = [1.0, 2.0, math.nan, 4.0, 5.0, 7.0], [2.0, 1.0, 9.0, 3.0, 6.0, math.nan]
    assert seed_correlation(a, b) == seed_correlation([1.0, 2.0, 4.0, 5.0], [2.0, 1.0, 3.0, 6.0])
    assert seed_correlation(a[:5], b[:5]) is not None
    assert seed_correlation(a[:4], b[:4]) is None, "3 common seeds"
    assert seed_correlation([], []) is None


def test_cells_that_do_not_vary_have_no_correlation_and_equal_ones_no_interval() -> None:
    assert seed_correlation([1.0] * 5, [1.0, 2.0, 3.0, 4.0, 5.0]) is None
    assert seed_correlation([0.1 + 0.2, 0.3, 0.3, 0.3], [1.0, 2.0, 3.0, 4.0]) is None, "they vary by rounding only"
    found = seed_correlation([1.0, 2.0, 3.0, 5.0], [2.0, 4.0, 6.0, 10.0])
    assert found == pytest.approx((1, 1, 1))


def simulated(n: int, correlation: float, studies: int) -> tuple[float, float, float, float, float]:
    """Return the half-width of paired ÷ that of Welch intervals, the power of both, and the false positive rates of both.

    Half-widths are means over studies. The true difference is the one that the paired test would find with 80 % power without a
    correlation.
    """
    random = np.random.default_rng([n, round(10 * (correlation + 1))])
    covariance = [[1, correlation], [correlation, 1]]
    a, b = np.moveaxis(random.multivariate_normal([0, 0], covariance, (studies, n)), -1, 0)
    paired, welch = ttest_rel(a, b, axis=1).confidence_interval(), ttest_ind(a, b, axis=1, equal_var=False).confidence_interval()
    ratio = np.mean(paired.high - paired.low) / np.mean(welch.high - welch.low)
    shift = POWER_AT[n] * math.sqrt(2)
    power = [
        np.mean(test.pvalue < 0.05) for test in (ttest_rel(a + shift, b, axis=1), ttest_ind(a + shift, b, axis=1, equal_var=False))
    ]
    level = [np.mean(test.pvalue < 0.05) for test in (ttest_rel(a, b, axis=1), ttest_ind(a, b, axis=1, equal_var=False))]
    return ratio, *power, *level


def rows(studies: int) -> dict[tuple[int, float], tuple[float, ...]]:
    return {(n, correlation): simulated(n, correlation, studies) for n in POWER_AT for correlation in CORRELATIONS}


def documented() -> dict[tuple[int, float], list[float]]:
    """Return the rows of the table in docs/evidence.md: half-width ratio, and the other columns as fractions."""
    section = (PROJECT / "docs" / "evidence.md").read_text().partition("## Pairing")[2].partition("\n## ")[0]
    found = {}
    for line in re.findall(r"^\| (\d+ \|.*) \|$", section.replace("−", "-"), re.MULTILINE):
        n, correlation, ratio, *percentages = map(float, line.split(" | "))
        found[int(n), correlation] = [ratio, *(each / 100 for each in percentages)]
    return found


@pytest.mark.parametrize(
    ("studies", "tolerance"), [(4000, 0.035), pytest.param(100_000, 0.008, marks=pytest.mark.nightly)], ids=("reduced", "full")
)
def test_the_documented_costs_and_gains_of_pairing_are_those_of_simulated_studies(studies: int, tolerance: float) -> None:
    table, found = documented(), rows(studies)
    assert table.keys() == found.keys()
    for key, row in found.items():
        assert row == pytest.approx(table[key], abs=tolerance)


@pytest.mark.parametrize("studies", [4000, pytest.param(100_000, marks=pytest.mark.nightly)])
def test_the_paired_test_keeps_its_level_at_any_correlation_and_welchs_does_not(studies: int) -> None:
    slack = 4 * math.sqrt(0.05 * 0.95 / studies)
    for (n, correlation), (ratio, _, _, paired, welch) in rows(studies).items():
        assert paired == pytest.approx(0.05, abs=slack)
        if correlation < 0 and n > 3:
            assert welch > 0.05
        if (n, correlation) == (3, 0):
            assert ratio == pytest.approx(1.26, abs=0.05), "the cost of pairing"
