"""Statistics: published examples, cases worked by hand, and what simulated studies show in the long run."""

import math
import subprocess
import sys
import warnings
from itertools import combinations

import numpy as np
import pytest
from scipy.stats import f
from statsmodels.stats.multitest import multipletests

from ablations.engine.analysis.findings import Anova
from ablations.engine.analysis.statistics.anova import fit_anova
from ablations.engine.analysis.statistics.inference import (
    Array,
    estimate_means,
    hedges_correction,
    holm_adjust,
    paired_tests,
)

SLEEP = np.array(
    [[0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0], [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]],
)
"""Hours of sleep gained with two drugs by ten patients: Student 1908, R's `sleep`."""
NPK = """1 0 1 1 49.5;1 1 1 0 62.8;1 0 0 0 46.8;1 1 0 1 57.0;2 1 0 0 59.8;2 1 1 1 58.5;2 0 0 1 55.5;2 0 1 0 56.0;3 0 1 0 62.8;
3 1 1 1 55.8;3 1 0 0 69.5;3 0 0 1 55.0;4 1 0 0 62.0;4 1 1 1 48.8;4 0 0 1 45.5;4 0 1 0 44.2;5 1 1 0 52.0;5 0 0 0 51.5;
5 1 0 1 49.8;5 0 1 1 48.8;6 1 0 1 57.2;6 1 1 0 59.0;6 0 1 1 53.2;6 0 0 0 56.0"""
"""Block, nitrogen, phosphate, potassium and yield of peas: Venables and Ripley, R's `npk`."""
STUDIES = 2000


def three_sigma(rate: float) -> float:
    """Return how far the share of simulated studies may be from its expectation."""
    return 3 * math.sqrt(rate * (1 - rate) / STUDIES)


def npk() -> tuple[Array, Array, dict[str, Array]]:
    rows = np.array([row.split() for row in NPK.split(";")], float)
    return rows[:, 4], rows[:, 0], {name: rows[:, i] for i, name in enumerate("NPK", 1)}


def analysed(errors: Array, seeds: Array, levels: dict[str, Array]) -> Anova | str:
    return fit_anova(errors.tolist(), seeds.astype(int).tolist(), {name: of.astype(int).tolist() for name, of in levels.items()})


def test_a_paired_comparison_is_that_of_r_on_students_sleep_data() -> None:
    (found,) = paired_tests([SLEEP[0] - SLEEP[1]])
    assert found.n == 10
    assert found.mean == pytest.approx(-1.58)
    assert found.p == pytest.approx(0.002833, abs=5e-7)
    assert [found.low, found.high] == pytest.approx([-2.4598858, -0.7001142], abs=5e-8)
    assert found.mean is not None
    assert found.std is not None
    assert found.mean / found.std * math.sqrt(10) == pytest.approx(-4.0621, abs=5e-5)


def test_three_seeds_by_hand() -> None:
    (found,) = paired_tests([[1.0, 2.0, 3.0]])
    assert (found.mean, found.std) == (2, 1)
    assert found.high == pytest.approx(2 + 4.302653 / math.sqrt(3), abs=1e-6)  # t of 2 degrees of freedom, from a table
    assert found.p == pytest.approx(1 - math.sqrt(12 / (12 + 2)))  # two-sided at t = √12: 1 - t / √(t² + 2)
    assert found.effect_size == pytest.approx(2 / math.sqrt(math.pi))  # Γ(1) ÷ (√1 Γ(½)) = 1/√π


@pytest.mark.parametrize(("df", "factor"), [(2, 0.5642), (3, 0.7236), (4, 0.7979), (9, 0.9139), (29, 0.9739)])
def test_the_correction_of_effect_sizes_is_that_of_hedges_table(df: int, factor: float) -> None:
    assert float(hedges_correction(df)) == pytest.approx(factor, abs=6e-5)


@pytest.mark.slow
def test_an_effect_size_is_right_in_the_mean_and_one_without_correction_is_not() -> None:
    found = paired_tests(np.random.default_rng(0).normal(1, 1, (20_000, 5)))
    assert np.mean([each.effect_size for each in found if each.effect_size]) == pytest.approx(1, abs=0.02)
    assert np.mean([each.mean / each.std for each in found if each.mean and each.std]) > 1.2


def test_missing_seeds_do_not_count() -> None:
    whole, part = (
        paired_tests([[1.0, 2.0, 4.0], [1.0, 2.0, 4.0]]),
        paired_tests([[1.0, 2.0, 4.0, math.nan], [math.nan, 1.0, 2.0, 4.0]]),
    )
    assert whole == part


def test_few_or_equal_values_say_only_what_they_can() -> None:
    nan = math.nan
    none, one, two, equal, rounded = paired_tests([[nan] * 3, [1, nan, nan], [1, 2, nan], [0.1] * 3, [0.3, 0.1 + 0.2, 0.3]])
    assert (none.n, none.mean, none.std, none.low) == (0, None, None, None)
    assert (one.n, one.mean, one.std, one.low) == (1, 1, None, None)
    assert (two.n, two.p, two.effect_size) == (2, None, None)
    assert two.low == pytest.approx(1.5 - 12.7062 * 0.5, abs=1e-4)
    for each in (equal, rounded):  # 0.1 + 0.2 is not 0.3: divided by a spread of 1e-17, p would be 0
        assert (each.n, each.std, each.low, each.p, each.p_adjusted) == (3, 0, None, 0.25, 0.5)  # of 8 sign flips, 2 are so extreme


def test_an_estimate_of_a_cell_has_no_test() -> None:
    (found,) = estimate_means([[8.0, 8.2, 8.1]])
    assert found.low is not None
    assert found.p is found.effect_size is None


def test_holms_correction_is_worked_out_by_hand_and_is_that_of_statsmodels() -> None:
    assert holm_adjust([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    drawn = np.random.default_rng(0).random(20) ** 3
    assert holm_adjust(drawn) == pytest.approx(multipletests(drawn, method="holm")[1])


def test_what_has_no_p_does_not_count_as_a_comparison() -> None:
    tested = paired_tests([[1.0, 2.0, 2.5], [0.0, 0.0, 0.0], [1.0, math.nan, 2.0], [0.1, -0.2, 0.4]])
    ps = [each.p for each in tested if each.p is not None]
    assert len(ps) == 2
    assert [each.p_adjusted for each in tested if each.p is not None] == pytest.approx(holm_adjust(ps))


def test_analysis_of_variance_is_that_of_r_on_the_npk_data() -> None:
    found = analysed(*npk())
    assert isinstance(found, Anova)
    terms = {term.term: term for term in found.terms}
    expected = {"seed": 4.447, "N": 12.259, "P": 0.544, "K": 6.166, "N × P": 1.378, "N × K": 2.146, "P × K": 0.031}
    assert {name: term.f for name, term in terms.items()} == pytest.approx(expected, abs=1e-3)
    p_values = [f.sf(terms[name].f, terms[name].df, found.residual_df) for name in ("seed", "N", "K")]
    assert p_values == pytest.approx([0.01594, 0.00437, 0.0288], abs=1e-5)
    assert (terms["seed"].df, terms["N"].df, found.residual_df) == (5, 1, 12)
    assert terms["N"].partial_eta_squared == pytest.approx(12.259 / (12.259 + 12), abs=1e-4)  # F df ÷ (F df + residual df)


def test_sums_of_squares_are_type_ii_where_runs_are_missing() -> None:
    """Each term is judged against the model of all terms that do not contain it, fitted here by least squares."""
    errors, seeds, levels = npk()
    keep = np.arange(len(errors)) != 7
    errors, seeds, levels = errors[keep], seeds[keep], {name: of[keep] for name, of in levels.items()}
    columns = {"seed": (seeds[:, None] == np.arange(2, 7)).astype(float), **{name: of[:, None] for name, of in levels.items()}}
    columns |= {f"{a} × {b}": columns[a] * columns[b] for a, b in combinations("NPK", 2)}

    def left(names: list[str]) -> float:
        design = np.hstack([np.ones((len(errors), 1)), *(columns[name] for name in names)])
        return float(((errors - design @ np.linalg.lstsq(design, errors)[0]) ** 2).sum())

    found = analysed(errors, seeds, levels)
    assert isinstance(found, Anova)
    scale = left(list(columns)) / found.residual_df
    for term in found.terms:
        without = [name for name in columns if not set(term.term.split(" × ")) <= set(name.split(" × "))]
        assert term.f == pytest.approx((left(without) - left([*without, term.term])) / term.df / scale), term.term


@pytest.mark.parametrize(
    ("errors", "seeds", "why"),
    [
        ([8.0] * 8, [0, 1, 2, 3] * 2, "same value"),
        ([8.0, 9, 10, 11, 9, 10, 11, 12], [0, 1, 2, 3] * 2, "explain every value"),
        ([8.0, 9, 10, 12], [0, 1] * 2, "needs 3 seeds"),
        ([8.0, 9, 10, 12], [0, 1, 2, 0], "no residual degrees of freedom"),
        ([8.0, 9, 10, 9, 8, 9.5], [0, 0, 1, 2, 2, 2], "cells from those of seeds"),
    ],
)
def test_why_there_is_no_analysis_of_variance(errors: list[float], seeds: list[int], why: str) -> None:
    factor = [0] * (len(errors) // 2) + [1] * (len(errors) - len(errors) // 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = fit_anova(errors, seeds, {"f": factor})
    assert isinstance(found, str)
    assert why in found


def test_too_many_levels_are_said_and_not_waited_for() -> None:
    a, b, seeds = np.array(np.meshgrid(range(40), range(40), range(3))).reshape(3, -1).tolist()
    found = fit_anova(np.random.default_rng(0).normal(size=len(seeds)).tolist(), seeds, {"a": a, "b": b})
    assert isinstance(found, str)
    assert "1,602 coefficients" in found


def simulated(effect: float) -> list[Array]:
    """Differences of studies of 4 × 2 cells: three against the fourth, at two levels of the other factor.

    Seeds share an offset, as a hard split of the data would give them, and one cell spreads as plain deep networks do.
    """
    draw = np.random.default_rng(0)
    spread = np.array([0.3, 5.0, 0.3, 1.0, 0.3, 0.3, 0.3, 1.0])[:, None]
    studies = []
    for _ in range(STUDIES):
        errors = 8 + draw.normal(0, 1, 5) + spread * draw.normal(size=(8, 5))
        errors[[1, 2, 3, 5, 6, 7]] += effect
        studies.append(np.vstack([errors[1:4] - errors[0], errors[5:] - errors[4]]))
    return studies


@pytest.mark.slow
def test_of_studies_without_effect_one_in_twenty_claims_one() -> None:
    false_claims = np.mean([any(each.significant for each in paired_tests(study)) for study in simulated(0)])
    assert 0.01 < false_claims <= 0.05 + three_sigma(0.05)


@pytest.mark.slow
def test_intervals_hold_the_true_effect_in_nineteen_of_twenty_studies() -> None:
    found = [paired_tests(study) for study in simulated(0.7)]
    covered = np.mean([each.low < 0.7 < each.high for study in found for each in study if each.low is not None and each.high])
    assert covered == pytest.approx(0.95, abs=three_sigma(0.05))


@pytest.mark.slow
def test_statistics_start_without_the_libraries_of_training_and_of_formulas() -> None:
    unwanted = "{'torch', 'ray', 'mlflow', 'statsmodels'}"
    program = f"import sys, ablations.engine.analysis.verdicts.conclusions; print({unwanted} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.strip() == "set()"
