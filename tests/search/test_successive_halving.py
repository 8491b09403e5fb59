"""Early stopping: which trials continue."""

import math

import pytest

from ablations.engine.search.successive_halving import bracket, rungs, should_continue


@pytest.mark.parametrize(
    ("epochs", "expected"), [(1, ()), (7, ()), (10, (3,)), (27, (3, 9)), (90, (3, 10, 30)), (164, (6, 18, 55))]
)
def test_rungs_are_a_27th_a_9th_and_a_third_of_a_training_but_not_its_first_epochs(epochs: int, expected: tuple[int, ...]) -> None:
    assert rungs(epochs) == expected


def test_the_best_third_continues() -> None:
    errors = {number: {3: float(number)} for number in range(9)}
    assert [should_continue(number, 3, errors, epochs=27) for number in range(9)] == [True] * 3 + [False] * 6


def test_the_best_trial_so_far_always_continues() -> None:
    errors = {0: {3: 50.0}}
    assert should_continue(0, 3, errors, epochs=27)
    errors[1] = {3: 40.0}
    assert should_continue(1, 3, errors, epochs=27)
    errors[2] = {3: 60.0}
    assert not should_continue(2, 3, errors, epochs=27)


def test_ties_continue() -> None:
    errors = {number: {3: 50.0} for number in range(9)}
    assert all(should_continue(number, 3, errors, epochs=27) for number in errors)


def test_only_trials_that_reached_the_rung_count() -> None:
    errors = {0: {3: 50.0}, **{number: {1: 1.0, 2: 1.0} for number in range(1, 9)}}
    assert should_continue(0, 3, errors, epochs=27)


@pytest.mark.parametrize("epoch", [1, 2, 3, 4])
def test_a_trial_with_a_non_finite_error_never_continues(epoch: int) -> None:
    assert not should_continue(0, epoch, {0: {epoch: math.nan}}, epochs=27)
    assert not should_continue(0, epoch, {0: {epoch: math.inf}}, epochs=27)


def test_between_rungs_all_trials_continue() -> None:
    errors = {number: {2: float(number)} for number in range(9)}
    assert all(should_continue(number, 2, errors, epochs=27) for number in errors)


def test_trials_are_compared_within_their_bracket_from_its_first_rung() -> None:
    numbers = range(200)
    errors = {number: dict.fromkeys((3, 27), number - 1000.0 * bracket(number, 81)) for number in numbers}
    for number in numbers:
        rivals = [other for other in numbers if bracket(other, 81) == bracket(number, 81)]
        best = rivals.index(number) < max(1, len(rivals) // 3)
        assert should_continue(number, 3, errors, epochs=81, hyperband=True) == (best or bracket(number, 81) > 0)
        assert should_continue(number, 27, errors, epochs=81, hyperband=True) == (best or bracket(number, 81) > 2)


@pytest.mark.parametrize("trials", [40, 1000])
def test_brackets_train_about_the_same_number_of_epochs(trials: int) -> None:
    cost = [3 + 6 / 3 + 18 / 9 + 54 / 27, 9 + 18 / 3 + 54 / 9, 27 + 54 / 3, 81]  # expected of a trial, by rungs that are passed
    spent = [0.0] * 4
    for number in range(trials):
        spent[bracket(number, 81)] += cost[bracket(number, 81)]
    assert max(spent) - min(spent) < 2 * 81
