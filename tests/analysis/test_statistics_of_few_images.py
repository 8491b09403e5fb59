"""Values that are counts of few test images: what a t test cannot say there, and what exact tests can."""

import itertools
import math

import numpy as np
import pytest
from scipy.stats import ttest_1samp

from ablations.engine.analysis.statistics.inference import (
    Scale,
    effect_size_interval,
    equivalence_p_value,
    estimate_average,
    estimate_differences,
    selected_interval,
    sign_flip_p_value,
)

IMAGE = 100 / 360
FEW = Scale(step=IMAGE, tolerance=1e-9)


@pytest.mark.parametrize("counts", [[1, 1, 1, 1, 2], [3, -1, 2, 0, 4, 1], [1] * 10, [5, 5, -5, 5]])
def test_the_sign_flip_test_is_the_share_of_all_signs_with_so_large_a_sum(counts: list[int]) -> None:
    sums = [abs(sum(s * c for s, c in zip(signs, counts, strict=True))) for signs in itertools.product((-1, 1), repeat=len(counts))]
    expected = np.mean([each >= abs(sum(counts)) for each in sums])
    assert sign_flip_p_value(np.array(counts) * IMAGE, IMAGE) == pytest.approx(expected)


def test_one_image_worse_in_ten_of_ten_seeds_is_certain() -> None:
    (found,) = estimate_differences([[IMAGE] * 10], FEW)
    assert found.p == pytest.approx(2 / 2**10)
    assert found.low is not None
    assert 0 < found.low < IMAGE


def test_one_to_two_images_in_five_seeds_are_not() -> None:
    differences = [IMAGE] * 4 + [2 * IMAGE]
    (found,) = estimate_differences([differences], FEW)
    assert ttest_1samp(differences, 0).pvalue == pytest.approx(0.0039, abs=1e-4)
    assert found.p is not None
    assert 0.05 < found.p <= 0.0625
    assert found.low is not None
    assert found.low < 0


def test_a_difference_of_many_images_is_certain_though_it_hardly_varies() -> None:
    (found,) = estimate_differences([[58.0, 58.1, 57.9]], FEW)
    assert found.p is not None
    assert found.p < 0.001


def test_differences_that_vary_by_more_than_an_image_have_the_t_test() -> None:
    differences = np.array([1, 4, -2, 3, 6]) * IMAGE
    (found,) = estimate_differences([differences], FEW)
    assert found.p == pytest.approx(ttest_1samp(differences, 0).pvalue)


@pytest.mark.slow
def test_counts_of_images_without_effect_are_significant_in_at_most_one_of_twenty() -> None:
    """Whatever the spread, below one image or above, with and without the same images in most seeds."""
    draw = np.random.default_rng(0)
    for n, spread in itertools.product((3, 5, 10), (0.2, 0.5, 1.0, 3.0)):
        counts = np.rint(draw.normal(0, spread, (3000, n))) * IMAGE
        false = np.mean([each.p is not None and each.p < 0.05 for each in estimate_differences(counts, FEW)])
        assert false <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 3000), (n, spread)


def test_a_mean_that_is_zero_is_zero() -> None:
    (found,) = estimate_differences([np.array([0 - 5, 7 - 6, 11 - 7]) * IMAGE], FEW)
    assert (found.mean, math.copysign(1, found.mean or 0.0)) == (0.0, 1.0)


def test_without_missing_results_an_average_is_the_mean_of_each_seed() -> None:
    parts = np.random.default_rng(0).normal(1, 1, (3, 5))
    found, used = estimate_average(parts, Scale())
    assert used == (0, 1, 2)
    assert found.p == pytest.approx(ttest_1samp(parts.mean(axis=0), 0).pvalue)


def test_a_missing_run_costs_its_combination_a_seed_and_not_the_average() -> None:
    parts = np.random.default_rng(0).normal(1, 1, (3, 5))
    parts[0, 0] = parts[1, 3] = parts[2, 4] = math.nan
    found, used = estimate_average(parts, Scale())
    assert (found.n, used) == (4, (0, 1, 2))
    assert found.mean == pytest.approx(np.mean([np.nanmean(row) for row in parts]))
    assert found.p is not None


def test_a_combination_without_enough_seeds_is_left_out_and_counted() -> None:
    parts = np.random.default_rng(0).normal(1, 1, (3, 5))
    parts[0] = math.nan
    parts[1, 2:] = math.nan
    found, used = estimate_average(parts, Scale())
    assert (found.n, used) == (5, (2,))
    assert found.mean == pytest.approx(parts[2].mean())


@pytest.mark.slow
@pytest.mark.parametrize(("seeds", "combinations"), [(4, 2), (5, 4), (8, 3)])
@pytest.mark.parametrize("correlation", [pytest.param(0.0, marks=pytest.mark.nightly), 0.8])
def test_averages_with_missing_runs_are_significant_in_at_most_one_of_twenty(
    seeds: int, combinations: int, correlation: float
) -> None:
    draw, false, studies = np.random.default_rng(0), 0, 1500
    for _ in range(studies):
        parts = math.sqrt(correlation) * draw.normal(size=seeds) + math.sqrt(1 - correlation) * draw.normal(
            size=(combinations, seeds)
        )
        for row in range(combinations - 1):
            parts[row, draw.integers(seeds)] = math.nan
        found, _ = estimate_average(parts, Scale())
        false += found.p is not None and found.p < 0.05
    assert false / studies <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / studies)


def test_looks_and_selection_widen_intervals_and_raise_p() -> None:
    differences = np.random.default_rng(0).normal(1, 1, (1, 6))
    (one,), (later,) = (estimate_differences(differences, Scale(share=share)) for share in (1.0, 0.25))
    assert later.p == pytest.approx(4 * (one.p or 0))
    assert (later.low or 0) < (one.low or 0)
    chosen = selected_interval(one, 1 / 4, 1.0)
    assert (chosen.selected_low, chosen.selected_high) == pytest.approx((later.low, later.high))
    assert (selected_interval(one, 1.0, 1.0).selected_low) == pytest.approx(one.low)


def test_two_one_sided_tests_are_those_of_scipy() -> None:
    differences = np.random.default_rng(0).normal(0.1, 0.3, 12)
    (found,) = estimate_differences([differences], Scale())
    expected = max(
        ttest_1samp(differences, -0.5, alternative="greater").pvalue, ttest_1samp(differences, 0.5, alternative="less").pvalue
    )
    assert equivalence_p_value(found, 0.5, 1.0) == pytest.approx(expected)
    assert equivalence_p_value(found, 0.5, 0.5) == pytest.approx(2 * expected)


@pytest.mark.slow
def test_intervals_of_effect_sizes_cover_the_true_one() -> None:
    draw = np.random.default_rng(0)
    for n in (3, 5, 12):
        found = [effect_size_interval(each) for each in estimate_differences(draw.normal(0.8, 1, (2000, n)), Scale())]
        # The interval is for mean ÷ standard deviation times the correction, whose expectation is the true value.
        correction = math.exp(math.lgamma((n - 1) / 2) - math.lgamma((n - 2) / 2)) / math.sqrt((n - 1) / 2)
        covered = np.mean([low < 0.8 * correction < high for low, high in filter(None, found)])
        assert covered == pytest.approx(0.95, abs=0.015)
