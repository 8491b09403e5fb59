"""The Pareto front of points with one or two objectives."""

import itertools
import math

import numpy as np
import pytest

from ablations.engine.study.pareto import pareto_front


def test_the_front_is_sorted_by_the_first_objective_and_holds_ties() -> None:
    assert pareto_front([(1, 9), (2, 9), (2, 5), (3, 6), (4, 5), (5, 1), (1, 9)]) == [0, 6, 2, 5]


def test_a_point_is_on_the_front_unless_another_point_dominates_it() -> None:
    for points in np.random.default_rng(0).integers(1, 6, (200, 8, 2)).tolist():
        dominated = {
            i
            for (i, one), (_, other) in itertools.product(enumerate(points), repeat=2)
            if other != one and other[0] <= one[0] and other[1] <= one[1]
        }
        assert set(pareto_front(points)) == set(range(len(points))) - dominated


def test_the_front_of_one_objective_is_every_minimum() -> None:
    assert pareto_front([(3,), (1,), (2,), (1,)]) == [1, 3]


@pytest.mark.parametrize("unknown", [math.nan, math.inf, -math.inf])
def test_a_point_with_an_unknown_objective_is_not_on_the_front_and_dominates_nothing(unknown: float) -> None:
    assert pareto_front([(unknown, 1), (1, unknown), (2, 2), (unknown,) * 2]) == [2]
    assert pareto_front([(unknown,), (5,)]) == [1]


def test_the_front_of_no_points_is_empty() -> None:
    assert pareto_front([]) == []
