"""Searches side by side: suggestions, adopted trials and choices."""

from collections import Counter
from collections.abc import Callable

import pytest

from ablations.engine.search.optimizer import Decision
from ablations.engine.search.plan import SearchPlan
from ablations.engine.study.plan import Run, SearchTrial
from ablations.engine.submission.search_state import MAX_INVALID_SUGGESTIONS, SearchState
from ablations.engine.tracking.run_queries import RunRecord
from ablations.engine.tracking.search_trials import PastTrial
from resnet_core.fields import reject
from tests.helpers.submission import searched
from tests.helpers.training_runs import paper_network

PER_CELL = ("--per-cell", "--space", "lr", "--sampler", "random", "--scheduler", "none")


def entry(outcome: str, error: float) -> RunRecord:
    metrics = {"validation/error": error, "validation/loss": error / 10, "train_seconds": 3.0, "flops": 100.0}
    status = "FINISHED" if outcome in ("completed", "diverged") else "KILLED"
    return RunRecord("run", "experiment", status, {"outcome": outcome}, {}, metrics)


def past(cell: str, number: int, lr: float, error: float = 50.0, outcome: str = "completed") -> PastTrial:
    epochs = {1: {"value": 80.0, "seconds": 1.0}, 2: {"value": error, "seconds": 2.0}}
    trial = SearchTrial(number=number, tag="trial.x", values={"optim.lr": lr})
    return PastTrial(cell=cell, trial=trial, record=entry(outcome, error), epochs=epochs)


def nothing(_: Run) -> None:
    return None


def trained(state: SearchState, error: Callable[[Run], float], *, most: int = 1000) -> list[Run]:
    """Train the suggested runs, one after another."""
    runs: list[Run] = []
    while len(runs) < most and (run := state.next_run(lambda _: True)):
        metrics = {"validation/error": error(run), "validation/loss": 1.0, "epoch_seconds": 1.0, "flops": 100.0}
        assert state.report_epoch(run, 1, metrics) is Decision.CONTINUE
        state.record_end(run, "completed")
        runs.append(run)
    return runs


def lr_of(run: Run) -> float:
    return float(run.spec.optim.lr)


@pytest.fixture(scope="module")
def plan() -> SearchPlan:
    return searched(*PER_CELL, "--trials", "6")


def test_all_searches_come_along_alike(plan: SearchPlan) -> None:
    runs = trained(SearchState(plan, (), nothing), lr_of, most=6)
    assert Counter(str(run.cell) for run in runs) == {"shortcut=none": 3, "shortcut=A": 3}
    assert [run.trial.number for run in runs if run.trial] == [0, 0, 1, 1, 2, 2]


def test_each_search_ends_with_its_own_budget_and_chooses_its_own_best(plan: SearchPlan) -> None:
    state = SearchState(plan, (), nothing)
    runs = trained(state, lambda run: lr_of(run) if paper_network(run.spec).shortcut == "A" else 1 - lr_of(run))
    assert state.is_finished
    assert state.ended_trials == len(runs) == 12
    assert state.fraction_done == 1
    for cell, (chosen,) in state.choices().items():
        own = [lr_of(run) for run in runs if run.cell == cell]
        assert chosen.values["optim.lr"] == (min(own) if "A" in str(cell) else max(own))


def test_what_was_found_before_is_told_and_not_asked_for_again(plan: SearchPlan) -> None:
    whole = trained(SearchState(plan, (), nothing), lr_of)
    known = [past(str(run.cell), run.trial.number, lr_of(run), lr_of(run)) for run in whole[:5] if run.trial]
    state = SearchState(plan, known, nothing)
    assert state.ended_trials == 5
    rest = trained(state, lr_of)
    assert sorted(map(str, rest)) == sorted(map(str, whole[5:]))
    assert {run.fingerprint for run in rest} == {run.fingerprint for run in whole[5:]}
    best = {str(cell): chosen[0].values["optim.lr"] for cell, chosen in state.choices().items()}
    assert best == {cell: min(lr_of(run) for run in whole if str(run.cell) == cell) for cell in best}


def test_what_did_not_end_is_the_first_to_be_asked_for(plan: SearchPlan) -> None:
    state = SearchState(plan, [past("shortcut=A", 0, 0.1), past("shortcut=A", 1, 0.2, outcome="stopped")], nothing)
    asked = [run for run in trained(state, lr_of, most=4) if "A" in str(run.cell)]
    assert asked[0].trial
    assert (asked[0].trial.number, lr_of(asked[0])) == (1, 0.2)


def test_trials_outside_of_the_space_are_counted_and_never_chosen(plan: SearchPlan) -> None:
    state = SearchState(plan, [past("shortcut=A", 0, 5.0, error=0.0)], nothing)
    assert state.trials_outside_space == 1
    trained(state, lr_of)
    assert all(chosen[0].values["optim.lr"] <= 1 for chosen in state.choices().values())


def test_a_result_from_elsewhere_is_taken_over_and_not_trained(plan: SearchPlan) -> None:
    first = trained(SearchState(plan, (), nothing), lr_of)[0]
    taken: list[str] = []

    def adopt(run: Run) -> PastTrial | None:
        if run.fingerprint != first.fingerprint or run.trial is None:
            return None
        taken.append(run.fingerprint)
        return past(str(run.cell), run.trial.number, lr_of(run), error=0.0)

    state = SearchState(plan, (), adopt)
    runs = trained(state, lr_of)
    assert taken == [first.fingerprint]
    assert first.fingerprint not in {run.fingerprint for run in runs}
    assert state.choices()[first.cell][0].number == 0, "it was the best"


def test_a_run_that_another_study_is_at_is_left_to_it(plan: SearchPlan) -> None:
    first = trained(SearchState(plan, (), nothing), lr_of)[0]
    state = SearchState(plan, (), nothing)
    begun = state.next_run(lambda run: run.fingerprint != first.fingerprint)
    assert begun
    assert begun.trial
    assert begun.trial.number == 0, "the number is given to another configuration"
    assert begun.fingerprint != first.fingerprint


def test_a_search_of_what_hardly_exists_gives_up_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = searched("--space", "lr", "--trials", "3")

    def refuse(self: SearchPlan, cell: object, trial: SearchTrial) -> Run:
        raise reject("optim.lr", trial.values["optim.lr"], "not on a Sunday")

    monkeypatch.setattr(SearchPlan, "trial_run", refuse)
    state = SearchState(plan, (), nothing)
    assert state.next_run(lambda _: True) is None
    assert state.is_finished
    (error,) = state.errors.values()
    assert f"{MAX_INVALID_SUGGESTIONS} suggested configurations in a row" in str(error)
    assert "not on a Sunday" in str(error)


def test_of_two_objectives_the_cost_of_a_trial_is_told_too() -> None:
    plan = searched("--search", "lr", "--against", "flops", "--trials", "4")
    state = SearchState(plan, (), nothing)
    assert len(trained(state, lr_of)) == 4
    (chosen,) = state.choices().values()
    assert [each.level for each in chosen] == ["front-1"], "all cost the same"


def test_trials_of_another_length_are_compared_at_the_same_share_of_it() -> None:
    plan = searched(
        "--space", "lr", "global_batch_size=16,32", "--set", "optim.iterations=30", "--scheduler", "asha", "--trials", "9"
    )
    state = SearchState(plan, (), nothing)
    whole = {16: 5, 32: 10}  # 96 images to train
    assert plan.settings.epochs == 10
    decided: dict[int, list[tuple[int, Decision]]] = {16: [], 32: []}
    while run := state.next_run(lambda _: True):
        batch, error = run.spec.optim.global_batch_size, 50.0 + len(decided[16]) + len(decided[32])  # each worse than those before
        for epoch in range(1, whole[batch] + 1):
            metrics = {"validation/error": error, "validation/loss": 1.0, "epoch_seconds": 1.0}
            if (decision := state.report_epoch(run, epoch, metrics)) is not Decision.CONTINUE:
                break
        decided[batch].append((epoch, decision))
        state.record_end(run, "completed" if decision is Decision.CONTINUE else "pruned")
    ended = {batch: {epoch for epoch, decision in found if decision is Decision.PRUNE} for batch, found in decided.items()}
    assert ended == {16: {2}, 32: {3}}, "the rung is after 3 of 10 epochs"


def test_where_nothing_ends_early_what_was_ended_goes_on() -> None:
    plan = searched("--search", "lr", "--trials", "2", "--scheduler", "none")
    state = SearchState(plan, [past("", 0, 0.1, outcome="pruned"), past("", 1, 0.2)], nothing)
    assert not state.is_finished
    assert state.ended_trials == 1
    (run,) = trained(state, lr_of)
    assert (run.trial and run.trial.number, lr_of(run)) == (0, 0.1)


def test_a_narrower_space_counts_none_of_the_trials_outside(plan: SearchPlan) -> None:
    narrow = searched("--search", "lr=0.01..0.1", "--sampler", "random", "--scheduler", "none", "--trials", "3")
    state = SearchState(narrow, [past("", number, 0.5) for number in range(3)], nothing)
    assert (state.trials_outside_space, state.ended_trials, state.fraction_done) == (3, 0, 0)
    assert [run.trial.number for run in trained(state, lr_of) if run.trial] == [3, 4, 5]
