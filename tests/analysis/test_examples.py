"""Results per test example: coverage of intervals over seeds and examples, McNemar's test, and the examples that changed."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import binom

from ablations.engine.analysis.examples import (
    analyze_examples,
    changed_examples,
    crossed_estimate,
    mcnemar_test,
    scope_sentence,
)
from ablations.engine.analysis.statistics.estimate import Estimate
from ablations.engine.analysis.statistics.inference import estimate_means
from ablations.engine.analysis.study_analysis import analyze_study
from tests.helpers.other_metrics import LOSS
from tests.helpers.synthetic_predictions import DIGITS, HARD, Population, with_predictions
from tests.helpers.synthetic_study import design, evidence, without

OF_CELL, OF_DIFFERENCE = (0.0, 100.0), (-100.0, 100.0)


def coverage(population: Population, seeds: int, studies: int) -> dict[str, float]:
    """Return how many of 100 intervals hold the true value: over seeds and examples, and over seeds alone."""
    first, second = population.true_errors()
    hits: dict[str, list[bool]] = {}
    for wrong, other in population.studies(studies, seeds):
        for name, values, truth, bounds in (
            ("cell", 100.0 * wrong, first, OF_CELL),
            ("difference", 100.0 * (other.astype(float) - wrong), second - first, OF_DIFFERENCE),
        ):
            alone = estimate_means([values.mean(axis=1)])[0]
            for kind, each in (("", crossed_estimate(values, bounds, alone)), (" over seeds", alone)):
                hit = each.low is not None and each.high is not None and each.low <= truth <= each.high
                hits.setdefault(f"{name}{kind}", []).append(hit)
    return {name: 100 * float(np.mean(each)) for name, each in hits.items()}


@pytest.mark.slow
def test_intervals_cover_new_seeds_and_new_examples_where_those_over_seeds_do_not() -> None:
    found = coverage(DIGITS, 5, 500)
    assert 92 < found["cell"] < 98
    assert 93 < found["difference"] < 99
    assert 65 < found["cell over seeds"] < 85
    assert found["difference over seeds"] < found["difference"]


@pytest.mark.nightly
@pytest.mark.parametrize("population", [DIGITS, HARD], ids=["digits", "hard"])
@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_coverage_is_near_95_percent_at_each_number_of_seeds(population: Population, seeds: int) -> None:
    found = coverage(population, seeds, 3000)
    assert 92 < found["cell"] < 98.5
    assert 93.5 < found["difference"] < 98
    assert found["cell over seeds"] < {3: 92, 5: 85, 10: 70}[seeds]


@pytest.mark.nightly
def test_resampled_seeds_and_examples_of_real_size_are_covered() -> None:
    """The runs of one drawn study stand for all seeds and examples, as in Owen's pigeonhole bootstrap."""
    rng = np.random.default_rng(2)
    (everything, _), *_ = DIGITS.studies(1, 30)
    for seeds in (3, 5, 10):
        hits = []
        for _ in range(1000):
            rows, columns = rng.integers(30, size=seeds), rng.integers(everything.shape[1], size=everything.shape[1])
            found = crossed_estimate(100.0 * everything[np.ix_(rows, columns)], OF_CELL)
            hits.append(found.low is not None and found.high is not None and found.low <= 100 * everything.mean() <= found.high)
        assert 91 < 100 * np.mean(hits) < 98.5


def test_the_variance_of_a_mean_is_that_of_the_random_effects_model() -> None:
    rng, seeds, examples = np.random.default_rng(0), 4, 50
    values = 50 + rng.normal(0, 2, (seeds, 1)) + rng.normal(0, 3, examples) + rng.normal(0, 5, (seeds, examples))
    found = crossed_estimate(values, (-1e6, 1e6))  # far from its bounds, Wilson's interval is mean ± 1.96 standard errors
    of_seeds, of_examples = values.mean(axis=1), values.mean(axis=0)
    # the covariance of two seeds over examples estimates the variance of examples, without the mean squares of an ANOVA
    pairs = [np.cov(values[i], values[j])[0, 1] for i in range(seeds) for j in range(i)]
    by_examples = 1.959964 * np.sqrt(np.mean(pairs) / examples)
    by_seeds = 3.182446 * of_seeds.std(ddof=1) / np.sqrt(seeds)
    assert found.low is not None
    assert found.mean == pytest.approx(of_examples.mean())
    assert found.mean - found.low == pytest.approx(np.hypot(by_seeds, by_examples), rel=1e-5)


def test_an_interval_is_never_narrower_than_that_over_seeds() -> None:
    for population in (DIGITS, HARD):
        for seeds in (2, 3, 8):
            for wrong, other in population.studies(50, seeds):
                for values, bounds in ((100.0 * wrong, OF_CELL), (100.0 * (other.astype(float) - wrong), OF_DIFFERENCE)):
                    (alone,) = estimate_means([values.mean(axis=1)])
                    if alone.low is None or alone.high is None or alone.mean is None:
                        continue
                    looked = replace(alone, low=alone.mean - 2 * (alone.mean - alone.low), high=alone.high)
                    for given in (alone, looked):
                        found = crossed_estimate(values, bounds, given)
                        assert found.low is not None
                        assert found.high is not None
                        assert found.low <= max(given.low or 0, bounds[0]) + 1e-9
                        assert found.high >= min(given.high or 0, bounds[1]) - 1e-9
                        assert bounds[0] <= found.low <= found.mean <= found.high <= bounds[1]


def test_without_variation_or_a_second_seed_there_is_no_interval() -> None:
    for values in (np.zeros((3, 5)), np.full((3, 5), 100.0), np.array([[0.0, 100.0, 0.0]])):
        found = crossed_estimate(values, OF_CELL)
        assert (found.low, found.high) == (None, None)
        assert found.mean == values.mean()
    always_the_same_image = np.tile([100.0, 0, 0, 0], (3, 1))
    found = crossed_estimate(always_the_same_image, OF_CELL, Estimate(n=3, mean=25.0, std=0.0))
    assert found.low is not None
    assert 0 <= found.low < 25


@pytest.mark.parametrize(("worse", "better"), [(0, 0), (1, 0), (8, 1), (5, 5), (3, 12)])
def test_mcnemar_is_the_exact_sign_test_of_the_examples_that_differ(worse: int, better: int) -> None:
    wrong, baseline = np.zeros(40, bool), np.zeros(40, bool)
    wrong[:worse] = baseline[worse : worse + better] = True
    wrong[30:] = baseline[30:] = True  # both wrong: no evidence
    found = mcnemar_test(wrong, baseline)
    expected = min(1, 2 * binom.cdf(min(worse, better), worse + better, 0.5))
    assert (found.worse, found.better) == (worse, better)
    assert found.p == pytest.approx(expected)


def test_an_example_changed_if_most_seeds_of_one_cell_are_wrong_and_most_of_the_other_right() -> None:
    wrong = np.array([[1, 1, 0, 0, 1], [1, 1, 0, 1, 1], [1, 0, 0, 0, 1]], bool)
    baseline = np.array([[0, 0, 1, 1, 1], [0, 0, 1, 0, 1], [0, 1, 1, 0, 1]], bool)
    found = changed_examples(wrong, baseline)
    assert (found.worse, found.better) == ((0, 1), (2,))
    for of_other in (0, 2):  # wrong in one of two seeds is neither, whether the baseline is right or wrong
        half = changed_examples(wrong[:2, 3:4], baseline[:2, of_other : of_other + 1])
        assert (half.worse, half.better) == ((), ())


def test_a_study_is_compared_example_by_example_over_the_seeds_that_have_predictions() -> None:
    given = with_predictions(without(evidence(), "shortcut=none depth=20/1"))
    findings = analyze_study(given)
    found = analyze_examples(given, findings)
    assert found is not None
    assert [each.value.seeds for each in found.cells] == [2, 3, 3, 3, 3, 3]
    (plain,) = (each for each in found.comparisons if each.cell == "shortcut=none depth=20")
    assert (plain.baseline, plain.difference.seeds, plain.mcnemar) == ("shortcut=A depth=20", 2, None)
    wrong, other = (np.array([~given.correct[f"{cell}/{seed}"] for seed in (0, 2)]) for cell in (plain.cell, plain.baseline))
    assert plain.difference.mean == pytest.approx(100 * (wrong.mean() - other.mean()))
    (deep,) = (each for each in found.comparisons if each.cell == "shortcut=none depth=56")
    assert len(deep.changed.worse) > 20
    assert not deep.changed.better
    means = {cell.label: cell.value.mean for cell in findings.cells}
    for each in found.cells:
        assert each.value.mean == pytest.approx(means[each.cell], abs=0.2)  # errors of whole images


def test_runs_with_another_number_of_predictions_and_studies_without_any_have_no_part() -> None:
    given = with_predictions(evidence())
    odd = replace(given, correct={**given.correct, "shortcut=A depth=20/0": np.ones(7, bool)})
    found = analyze_examples(odd, analyze_study(odd))
    assert found is not None
    assert found.examples == 360
    assert [each.value.seeds for each in found.cells if each.cell == "shortcut=A depth=20"] == [2]
    assert analyze_examples(evidence(), analyze_study(evidence())) is None


def test_one_seed_has_mcnemars_test_adjusted_over_the_study() -> None:
    given = with_predictions(evidence(design(seeds=1)))
    found = analyze_examples(given, analyze_study(given))
    assert found is not None
    tests = [each.mcnemar for each in found.comparisons if each.mcnemar]
    assert len(tests) == 4
    smallest = min(tests, key=lambda each: each.p)
    assert smallest.p < 0.001
    assert smallest.p_adjusted == pytest.approx(4 * smallest.p)
    assert all(each.difference.low is None for each in found.comparisons)


def test_the_scope_names_images_only_where_they_are_known() -> None:
    made = design()
    assert scope_sentence(replace(made, test_examples=360)) == (
        "Intervals are over seeds, on these 360 test images, with this recipe and machine; 1 image = 0.28 points."
    )
    assert scope_sentence(replace(made, test_examples=10_000)).endswith(
        "these 10,000 test images, with this recipe and machine; 1 image = 0.01 points."
    )
    assert scope_sentence(replace(made, task="chars", metric=LOSS)) == "Intervals are over seeds, with this recipe and machine."
