"""Failing to train as an outcome: which runs count, and exact tests."""

import math

import numpy as np
import pytest
from scipy.stats import fisher_exact, hypergeom

from ablations.engine.analysis.statistics.failures import FailureTable, can_be_significant, find_failures
from ablations.engine.task.metric import Metric
from tests.helpers.synthetic_study import TEST_ERROR

LOSS = Metric("valid/loss", "nats")


def table(failed: list[list[int]], counted: list[list[int]] | None = None) -> FailureTable:
    flags = np.array(failed, bool)
    known = np.ones_like(flags) if counted is None else np.array(counted, bool)
    return FailureTable(failed=flags, diverged=flags, outlying=np.zeros_like(flags), counted=known)


@pytest.mark.parametrize("failed", [0, 1, 2, 3, 5])
@pytest.mark.parametrize("reference", [0, 1, 4])
def test_two_cells_are_compared_by_fishers_exact_test(failed: int, reference: int) -> None:
    rows = [[1] * failed + [0] * (5 - failed), [1] * reference + [0] * (5 - reference)]
    test = table(rows).test([(0, 1)])
    if not failed + reference:
        assert test is None
        return
    assert test is not None
    assert (test.failed, test.runs, test.reference_failed, test.reference_runs) == (failed, 5, reference, 5)
    assert test.p == pytest.approx(fisher_exact(np.array([[failed, 5 - failed], [reference, 5 - reference]])).pvalue)


def test_several_combinations_are_strata_with_their_own_margins() -> None:
    """By hand: the number of failures of one side is a sum of two hypergeometric ones."""
    test = table([[1, 1, 1, 0], [0, 0, 0, 0], [1, 1, 0, 0], [1, 0, 0, 0]]).test([(0, 1), (2, 3)])
    assert test is not None
    assert (test.failed, test.reference_failed) == (5, 1)
    ways = {a + b: 0.0 for a in range(4) for b in range(4)}
    for a in range(4):
        for b in range(4):
            ways[a + b] += hypergeom.pmf(a, 8, 3, 4) * hypergeom.pmf(b, 8, 3, 4)
    assert test.p == pytest.approx(sum(way for way in ways.values() if way <= ways[5] * (1 + 1e-9)))


def test_runs_that_crashed_or_are_missing_say_nothing() -> None:
    test = table([[1, 0, 0], [0, 0, 0]], [[1, 1, 0], [1, 1, 1]]).test([(0, 1)])
    assert test is not None
    assert (test.failed, test.runs, test.reference_runs) == (1, 2, 3)


def test_failures_that_could_never_be_significant_do_not_count_as_a_test() -> None:
    one, five = table([[1, 0, 0, 0, 0], [0] * 5]).test([(0, 1)]), table([[1] * 5, [0] * 5]).test([(0, 1)])
    assert one is not None
    assert five is not None
    assert (can_be_significant(one), can_be_significant(five)) == (False, True)
    later = table([[1] * 5, [0] * 5]).test([(0, 1)], share=0.1)
    assert later is not None
    assert later.p == pytest.approx(10 * five.p)
    assert not can_be_significant(later)


def test_a_level_test_is_false_in_at_most_one_of_twenty() -> None:
    draw, false = np.random.default_rng(0), 0
    for _ in range(1000):
        test = table(draw.random((4, 5)).__lt__(0.4).astype(int).tolist()).test([(0, 1), (2, 3)])
        false += test is not None and test.p < 0.05
    assert false / 1000 <= 0.05


def found(values: list[list[float]], chance: float | None = 90.0, metric: Metric = TEST_ERROR) -> list[tuple[int, int]]:
    rows = np.array(values)
    outcomes = [["diverged" if math.isnan(value) else "completed" for value in row] for row in values]
    flags = find_failures(rows, outcomes, metric, chance).failed
    return [(int(row), int(seed)) for row, seed in np.argwhere(flags)]


def test_a_run_near_guessing_or_far_from_its_cell_failed_to_train() -> None:
    typical = [2.0, 2.3, 1.9, 2.2, 1.8]
    assert found([typical, [2.1, 60.0, 1.9, 2.0, 2.2]]) == [(1, 1)]
    assert found([typical, [88.0, 85.0, 89.0, 87.0, 90.0]]) == [(1, seed) for seed in range(5)]
    assert found([typical, [math.nan, 2.0, 2.1, 2.2, 1.9]]) == [(1, 0)]


def test_a_bad_cell_and_an_ordinary_scatter_did_train() -> None:
    assert found([[2.0, 2.3, 1.9], [60.0, 67.0, 55.0]]) == []
    assert found([[2.0, 2.0, 2.0, 2.0], [2.0, 2.0, 2.0, 3.5]]) == []
    draw = np.random.default_rng(0)
    assert sum(len(found(draw.normal(8, 0.3, (8, 3)).tolist())) for _ in range(200)) == 0


def test_a_run_that_is_far_from_its_cell_and_not_from_training_is_outlying() -> None:
    rows = np.array([[60.0, 61, 62, 61, 60], [61, 60, 73, 61, 62.0]])
    flags = find_failures(rows, [["completed"] * 5] * 2, TEST_ERROR, 90.0)
    assert not flags.failed.any()
    assert np.argwhere(flags.outlying).tolist() == [[1, 2]]


def test_a_tenth_of_a_thousand_classes_is_far_from_guessing() -> None:
    assert found([[91.0, 90.5, 92.0], [90.0, 91.0, 91.5]], 99.9) == []
    assert found([[99.85, 90.5, 92.0], [90.0, 91.0, 91.5]], 99.9) == [(0, 0)]


def test_without_a_value_of_guessing_a_run_that_is_far_from_its_cell_is_outlying() -> None:
    typical = [1.30, 1.32, 1.29, 1.31, 1.33]
    assert found([typical, [1.30, 1.31, 4.2, 1.29, 1.32]], None, LOSS) == []
    assert outlying([typical, [1.30, 1.31, 4.2, 1.29, 1.32]], LOSS) == [[1, 2]]
    scores = [[-value for value in typical], [-1.30, -1.31, -4.2, -1.29, -1.32]]
    assert outlying(scores, Metric("score", better="higher")) == [[1, 2]]
    assert outlying([typical, [1.30, 1.31, 0.2, 1.29, 1.32]], LOSS) == []  # far better is no fault


def outlying(values: list[list[float]], metric: Metric) -> list[list[int]]:
    rows = np.array(values)
    flags: list[list[int]] = np.argwhere(find_failures(rows, [["completed"] * 5] * 2, metric, None).outlying).tolist()
    return flags
