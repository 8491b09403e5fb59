"""Population-based training as a function of the scores of its members."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ablations.engine.search.population_based import (
    CHANGES,
    PERTURBABLE,
    PERTURBATION_FACTORS,
    GenerationState,
    Member,
    evicted_members,
    perturb,
    ready_members,
    replay_generations,
)
from resnet_core.overrides import convert

RANGES = {"optim.lr": (0.001, 1.0)}


def at(started: dict[int, Member], size: int = 8, epochs: int = 10) -> GenerationState:
    return replay_generations(started, RANGES, size=size, epochs=epochs, seed=0)


def members(scores: list[float], epoch: int = 2) -> dict[int, Member]:
    return {number: Member(values={"optim.lr": 0.01 * (number + 1)}, scores={epoch: score}) for number, score in enumerate(scores)}


def test_members_are_paused_until_all_have_reached_the_epoch() -> None:
    started = members([float(number) for number in range(8)])
    started[3].scores.clear()
    assert at(started).epoch == 2
    assert not at(started).branches
    assert ready_members(at(started), started, ()) == [3]
    started[3].scores[2] = 3.0
    assert at(started).epoch == 4


def test_the_worst_quarter_is_replaced_by_branches_of_the_best() -> None:
    started = members([5.0, 1.0, 4.0, 9.0, 0.0, 8.0, 2.0, 3.0])
    state = at(started)
    assert sorted(state.members) == [0, 1, 2, 4, 6, 7, 8, 9]
    assert evicted_members(state, started, ()) == [3, 5]
    for branch in state.branches.values():
        assert branch.parent in (1, 4)
        assert branch.epoch == 2
        text = branch.values[CHANGES][0]
        parent = started[branch.parent].values["optim.lr"]
        assert text in (f"2:lr={parent * 0.8!r}", f"2:lr={parent * 1.25!r}")


def test_branches_are_started_before_their_parents_are_resumed() -> None:
    started = members([5.0, 1.0, 4.0, 9.0, 0.0, 8.0, 2.0, 3.0])
    order = ready_members(at(started), started, ())
    assert order[:2] == [8, 9]
    assert order[-2:] == [4, 1]


def test_failed_members_rank_last_and_are_all_replaced() -> None:
    started = members([math.nan, 1.0, math.nan, 9.0, 0.0, 8.0, 2.0, math.nan])
    for number in (0, 2, 7):
        started[number].outcome = "diverged"
    state = at(started)
    assert sorted(state.members) == [1, 3, 4, 5, 6, 8, 9, 10]


def test_a_population_whose_members_all_failed_is_finished() -> None:
    started = members([math.nan] * 8)
    for member in started.values():
        member.outcome = "diverged"
    assert not at(started).members


def test_an_unfinished_member_is_awaited_until_a_branch_has_started() -> None:
    started = members([5.0, 1.0, 4.0, 9.0, 0.0, 8.0, 2.0, 3.0])
    started[1].scores.clear()  # an earlier submission left it without a result
    assert ready_members(at(started), started, ()) == [1]
    started[8] = Member(values={"optim.lr": 0.05, CHANGES: ("2:lr=0.04",)})
    assert at(started).epoch == 4
    assert 1 not in at(started).members


def test_branches_are_new_configurations() -> None:
    started = members([0.0] * 16 + [math.nan] * 16)  # sixteen branches of eight parents, each with two ways to go
    for number in range(16, 32):
        started[number].outcome = "diverged"
    branches = at(started, size=32).branches.values()
    assert len(branches) == 16
    assert len({str(branch.values) for branch in branches}) == 16


def test_in_a_range_too_narrow_to_perturb_values_are_sampled() -> None:
    started = members([float(number) for number in range(16)])
    for member in started.values():
        member.values = {"optim.lr": 0.09}
    branches = replay_generations(started, {"optim.lr": (0.088, 0.09)}, size=16, epochs=10, seed=0).branches.values()
    rates = [float(branch.values[CHANGES][0].removeprefix("2:lr=")) for branch in branches]
    assert len(set(rates)) == len(rates) == 4
    assert all(0.088 <= rate < 0.09 for rate in rates)


def test_without_a_new_configuration_a_place_stays_empty_and_its_number_unused() -> None:
    ranges = {"optim.lr": (0.1, math.nextafter(0.1, 1))}
    started = members([float(number) for number in range(16)])
    for number, member in started.items():
        member.values = {"optim.lr": ranges["optim.lr"][number % 2]}

    def state() -> GenerationState:
        return replay_generations(started, ranges, size=16, epochs=10, seed=0)

    first = state()
    assert 0 < len(first.branches) < 4, "a parent has one other value, so there are at most as many branches as parents"
    assert sorted(first.members) == [*range(12), *first.branches]
    for number, branch in first.branches.items():
        started[number] = Member(values=branch.values)
    for number in first.members:
        started[number].scores[4] = float(number)
    second = state()
    assert {number: branch for number, branch in second.branches.items() if number < 20} == first.branches
    assert second.epoch == 6
    assert all(number >= 20 for number in second.branches.keys() - first.branches.keys())


def test_a_later_branch_perturbs_the_value_after_all_changes() -> None:
    started = members([5.0, 1.0, 4.0, 9.0, 0.0, 8.0, 2.0, 3.0])
    for number, branch in at(started).branches.items():
        started[number] = Member(values=branch.values)
    for number in at(started).members:
        started[number].scores[4] = float(number not in (8, 9))
    for branch in list(at(started).branches.values())[2:]:
        first, second = branch.values[CHANGES]
        assert first in (started[8].values[CHANGES][0], started[9].values[CHANGES][0])
        ratio = float(second.removeprefix("4:lr=")) / float(first.removeprefix("2:lr="))
        assert min(abs(ratio - 0.8), abs(ratio - 1.25)) < 1e-9
        assert convert(CHANGES, list(branch.values[CHANGES])) == branch.values[CHANGES]


@pytest.mark.parametrize(
    ("name", "value", "factor", "expected"),
    [
        ("optim.lr", 0.1, 0.8, 0.08),
        ("optim.lr", 0.9, 1.25, 1.0),
        ("optim.momentum", 0.9, 0.8, 0.92),
        ("optim.momentum", 0.9, 1.25, 0.875),
        ("optim.label_smoothing", 0.0, 1.25, 0.001),
    ],
)
def test_values_are_perturbed_within_their_range(name: str, value: float, factor: float, expected: float) -> None:
    assert perturb(name, value, 0.0, 1.0, factor) == pytest.approx(expected)


@given(
    name=st.sampled_from(PERTURBABLE),
    ends=st.lists(st.floats(0, 1, exclude_max=True) | st.floats(0.99, 1), min_size=2, max_size=2, unique=True),
    share=st.floats(0, 1),
    factor=st.sampled_from(PERTURBATION_FACTORS),
)
def test_values_never_leave_their_range(name: str, ends: list[float], share: float, factor: float) -> None:
    low, high = sorted(ends)
    value = min(max(low + share * (high - low), low), high)
    assert low <= perturb(name, value, low, high, factor) <= high


def test_a_range_next_to_one_is_used_to_its_end() -> None:
    assert perturb("optim.momentum", 0.99985, 0.9995, 0.9999, 0.8) == pytest.approx(0.99988)
    assert perturb("optim.momentum", 0.9999, 0.9995, 0.9999, 0.8) == 0.9999


def test_momentum_stays_below_one() -> None:
    assert perturb("optim.momentum", 0.9999, 0.0, 1.0, 0.8) < 1
