"""The optimizer: suggestions, decisions, budgets, and resuming after a crash."""

import json
import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ablations.engine.search.optimizer import Decision, Optimizer, SearchSettings, Suggestion, TrialHistory
from ablations.engine.search.space import Space
from ablations.engine.task.metric import Metric, error_metric
from resnet_core import ConfigError
from tests.helpers.simulated_search import Search, curve, space

VALIDATION_ERROR = error_metric("validation")
SETTINGS = SearchSettings(sampler="tpe", scheduler="none", trials=12, seconds=None, epochs=27, seed=3, metric=VALIDATION_ERROR)
KINDS = [
    ("tpe", "none"),
    ("tpe", "asha"),
    ("random", "hyperband"),
    ("random", "pbt"),
    pytest.param("gp", "asha", marks=[pytest.mark.slow, pytest.mark.nightly]),
]


def begun(optimizer: Optimizer) -> Suggestion:
    suggestion = optimizer.ask()
    assert suggestion
    return suggestion


def branching(trial: Any) -> None:
    space(trial)
    if trial.suggest_categorical("schedule", ("step", "cosine")) == "step":
        trial.suggest_categorical("milestones", ("0.5,0.75", "0.3"))


def of_branching(values: Mapping[str, Any]) -> Any:
    return [error - 2 * (values["optim.schedule"] == "cosine") for error in curve(_known(values))]


def _known(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in ("optim.schedule", "optim.milestones")}


def remembered(trial: TrialHistory) -> TrialHistory:
    """Return a trial as it is read from MLflow: values as JSON types."""
    return replace(trial, values=json.loads(json.dumps(trial.values)), values_by_epoch=dict(trial.values_by_epoch))


def killed(settings: SearchSettings, *, after: int, workers: int = 1, again: bool = True) -> Search:
    """Return a search that is killed every `after` epochs and resumed with a new optimizer until it is finished."""
    search = Search(Optimizer(branching, settings), curve=of_branching)
    while (
        search.trials == {} or any(trial.outcome == "stopped" for trial in search.trials.values()) or not search.optimizer.finished
    ):
        search = Search(
            Optimizer(branching, settings), curve=of_branching, trials=search.trials, asked_numbers=search.asked_numbers
        )
        assert search.optimizer.load_history([remembered(trial) for trial in reversed(search.trials.values())]) == 0
        search.run(workers=workers, most_epochs=after)
    return search


@pytest.mark.slow
@pytest.mark.parametrize(("sampler", "scheduler"), KINDS)
def test_a_killed_search_resumes_with_the_same_results(sampler: str, scheduler: str) -> None:
    settings = replace(SETTINGS, sampler=sampler, scheduler=scheduler, trials=12)
    undisturbed = Search(Optimizer(branching, settings), curve=of_branching)
    undisturbed.run()
    assert str(killed(settings, after=11).trials) == str(undisturbed.trials)


@pytest.mark.slow
def test_a_population_does_not_depend_on_the_order_in_which_members_finish() -> None:
    settings = replace(SETTINGS, sampler="random", scheduler="pbt")
    alone = Search(Optimizer(branching, settings), curve=of_branching)
    alone.run()
    together = killed(settings, after=40, workers=5)
    assert sorted(map(str, together.trials.values())) == sorted(map(str, alone.trials.values()))
    assert [trial.outcome for trial in alone.trials.values()].count("completed") == 12


RANGES = st.sampled_from(
    [
        ("lr", 0.09, 0.1, False),
        ("lr", 0.1, math.nextafter(0.1, 1), False),
        ("lr", 1e-3, 1.0, True),
        ("momentum", 0.88, 0.9, False),
        ("momentum", 0.9995, 0.9999, True),
        ("label_smoothing", 0.0, 1e-9, False),
        ("weight_decay", 1e-4, 1.01e-4, True),
    ]
)


@pytest.mark.slow
@settings(max_examples=12, deadline=None)
@given(
    dimensions=st.lists(RANGES, min_size=1, max_size=2, unique_by=lambda dimension: dimension[0]),
    others=st.sampled_from(["", "warmup_steps", "nesterov"]),
    size=st.integers(4, 14),
    seed=st.integers(0, 99),
)
def test_a_population_finishes_in_any_space(
    dimensions: list[tuple[str, float, float, bool]], others: str, size: int, seed: int
) -> None:
    def narrow(trial: Any) -> None:
        for name, low, high, log in dimensions:
            trial.suggest_float(name, low, high, log=log)
        if others == "warmup_steps":
            trial.suggest_int("warmup_steps", 3, 5)
        elif others:
            trial.suggest_categorical(others, (True, False))

    def errors_of(values: Mapping[str, Any]) -> Sequence[float]:
        return [zlib.crc32(f"{epoch} {values}".encode()) % 9001 / 100 for epoch in range(5)]

    settings = SearchSettings(
        sampler="random", scheduler="pbt", trials=size, seconds=None, epochs=5, seed=seed, metric=VALIDATION_ERROR
    )
    search = Search(Optimizer(narrow, settings), epochs=5, curve=errors_of)
    search.run(workers=3)
    trained = [trial.values for trial in search.trials.values()]
    assert len({str(values) for values in trained}) == len(trained), "no configuration is trained twice"
    limits = {name: (low, high) for name, low, high, _ in dimensions}
    for values in trained:
        for text in values.get("optim.changes", ()):
            name, _, value = text.partition(":")[2].partition("=")
            assert limits[name][0] <= float(value) <= limits[name][1]


@pytest.mark.slow
def test_a_branch_has_the_same_configuration_with_and_without_its_parents_checkpoint() -> None:
    search = Search(Optimizer(space, replace(SETTINGS, sampler="random", scheduler="pbt")))
    search.run(workers=3)
    branches = [trial for trial in search.trials.values() if trial.number >= 12]
    assert len(branches) >= 15
    again = Optimizer(space, replace(SETTINGS, sampler="random", scheduler="pbt"))
    again.load_history(
        [
            *(trial for trial in search.trials.values() if trial.number < 14),
            replace(search.trials[14], outcome="stopped", values_by_epoch={}),
        ]
    )
    suggestion = begun(again)
    assert suggestion.number == 14
    assert suggestion.branch
    parent, epoch = suggestion.branch
    assert suggestion.values == {**search.trials[parent].values, "optim.changes": search.trials[14].values["optim.changes"]}
    assert all(again.report_epoch(14, k, 0.0) is Decision.CONTINUE for k in range(1, epoch + 1))  # trained again from the beginning


@pytest.mark.parametrize("outcome", ["stopped", "failed", "oom"])
def test_unfinished_trials_are_resumed_first_with_their_number_and_values(outcome: str) -> None:
    search = Search(Optimizer(space, SETTINGS))
    search.run(most_epochs=4 * 27)
    again = Optimizer(space, SETTINGS)
    again.load_history([search.trials[0], replace(search.trials[1], outcome=outcome), search.trials[3]])
    suggestion = begun(again)
    assert (suggestion.number, suggestion.values) == (1, search.trials[1].values)
    assert [begun(again).number for _ in range(2)] == [2, 4], "what nobody heard of is drawn again"


def test_an_epoch_reported_twice_counts_once_and_gets_the_same_decision() -> None:
    optimizer = Optimizer(space, replace(SETTINGS, sampler="random", scheduler="asha"))
    for _ in range(4):
        begun(optimizer)
    assert optimizer.report_epoch(0, 3, 50.0) is Decision.CONTINUE
    assert optimizer.report_epoch(1, 3, 60.0) is Decision.PRUNE
    for _ in range(9):
        assert optimizer.report_epoch(1, 3, 10.0) is Decision.PRUNE
    assert optimizer.report_epoch(2, 3, 40.0) is Decision.CONTINUE
    assert optimizer.report_epoch(0, 3, 50.0) is Decision.CONTINUE
    assert optimizer.report_epoch(3, 3, 45.0) is Decision.PRUNE  # of four, the best goes on


def test_the_budget_counts_failed_trials_but_not_rejected_suggestions() -> None:
    optimizer = Optimizer(space, replace(SETTINGS, trials=3))
    optimizer.end_trial(begun(optimizer).number, "oom")
    refused = begun(optimizer)
    optimizer.reject_suggestion(refused.number)
    other = begun(optimizer)
    assert (other.number, other.values == refused.values) == (1, False)
    assert begun(optimizer).number == 2
    assert optimizer.ask() is None
    assert optimizer.budget_spent[0] == 3
    finished = []
    for number in (1, 2):
        finished.append(optimizer.finished)
        optimizer.end_trial(number, "completed", (1.0,))
    assert [*finished, optimizer.finished] == [False, False, True]


def test_a_time_budget_counts_the_training_time_of_ended_trials() -> None:
    settings = replace(SETTINGS, trials=None, seconds=100)
    optimizer = Optimizer(space, settings)
    optimizer.end_trial(begun(optimizer).number, "completed", (1.0,), 60)
    last = begun(optimizer).number
    optimizer.end_trial(last, "diverged", (), 40)
    assert optimizer.budget_spent == (2, 100.0)
    assert optimizer.ask() is None
    assert optimizer.finished


def discrete(trial: Any) -> None:
    trial.suggest_categorical("schedule", ("step", "cosine", "constant"))
    trial.suggest_int("warmup_steps", 0, 9)


def of_discrete(values: Mapping[str, Any]) -> list[float]:
    return [values["optim.warmup_steps"] + 5.0 * (values["optim.schedule"] != "step")] * 27


@pytest.mark.versions
@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_no_configuration_is_trained_twice_and_a_space_can_be_exhausted(sampler: str) -> None:
    search = Search(Optimizer(discrete, replace(SETTINGS, sampler=sampler, trials=100)), curve=of_discrete)
    search.run(workers=4)
    assert len(search.trials) == len({str(trial.values) for trial in search.trials.values()}) >= 25  # of 30


@pytest.mark.slow
def test_repeated_suggestions_do_not_affect_later_ones() -> None:
    settings = replace(SETTINGS, trials=24)
    undisturbed = Search(Optimizer(discrete, settings), curve=of_discrete)
    undisturbed.run()
    trials = list(undisturbed.trials.values())
    again = Search(Optimizer(discrete, settings), curve=of_discrete, trials={trial.number: trial for trial in trials[:16]})
    again.optimizer.load_history(trials[:16])
    again.run()
    assert list(again.trials.values()) == trials


def test_tpe_learns_from_pruned_trials() -> None:
    optimizer = Optimizer(space, replace(SETTINGS, trials=40))
    rates = []
    while suggestion := optimizer.ask():
        rates.append(suggestion.values["optim.lr"])
        optimizer.report_epoch(suggestion.number, 1, 50 + math.log10(rates[-1]))
        optimizer.end_trial(suggestion.number, "pruned")
    assert sum(rate < 0.01 for rate in rates[20:]) > 15  # at random, a third of the 20


def test_a_rejected_suggestion_is_not_repeated() -> None:
    optimizer = Optimizer(lambda trial: trial.suggest_int("depth", 20, 23), SETTINGS)
    taken, refused = set(), 0
    while suggestion := optimizer.ask():
        if suggestion.values["model.depth"] == 20:
            taken.add(suggestion.number)
            optimizer.end_trial(suggestion.number, "completed", (1.0,))
        else:
            optimizer.reject_suggestion(suggestion.number)
            refused += 1
    assert (taken, refused) == ({0}, 3)
    assert optimizer.finished


def test_trials_outside_the_space_are_ignored_but_keep_their_numbers() -> None:
    search = Search(Optimizer(space, SETTINGS))
    search.run(most_epochs=3 * 27)
    outside = replace(search.trials[2], values={**search.trials[2].values, "optim.lr": 2.0})
    policy = replace(search.trials[1], values={**search.trials[1].values, "optim.changes": ["3:lr=0.1"]})
    again = Optimizer(space, SETTINGS)
    assert again.load_history([search.trials[0], policy, outside]) == 2
    assert again.budget_spent[0] == 1
    assert begun(again).number == 3


@pytest.mark.slow
@pytest.mark.parametrize("trials", [8, 24])
def test_a_population_rejects_the_history_of_another_search(trials: int) -> None:
    settings = replace(SETTINGS, sampler="random", scheduler="pbt")
    search = Search(Optimizer(space, settings))
    search.run()
    with pytest.raises(ConfigError, match="--scheduler=pbt: this search has trials"):
        Optimizer(space, replace(settings, trials=trials)).load_history(list(search.trials.values()))


@pytest.mark.parametrize("sampler", ["tpe", pytest.param("gp", marks=pytest.mark.slow)])
def test_samplers_avoid_a_region_that_diverges(sampler: str) -> None:
    def half(trial: Any) -> None:
        trial.suggest_float("lr", 1e-3, 1, log=True)
        trial.suggest_float("weight_decay", 1e-6, 1e-1, log=True)

    def diverging(values: Mapping[str, Any]) -> list[float]:
        return [math.nan] if values["optim.lr"] > 0.03 else [10 + values["optim.weight_decay"]] * 27

    trials = 24 if sampler == "gp" else 48
    search = Search(Optimizer(half, replace(SETTINGS, sampler=sampler, trials=trials)), curve=diverging)
    search.run(workers=2)
    late = [search.trials[number].outcome for number in range(trials // 2, trials)]
    assert late.count("diverged") < len(late) / 3  # at random, half of them do


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"sampler": "grid"}, "--sampler=grid: accepted: tpe, random"),
        ({"scheduler": "median"}, "--scheduler=median: accepted: asha"),
        ({"trials": None}, "--trials: a search needs a budget"),
        ({"trials": 0}, "--trials=0"),
        ({"seconds": 0.0}, "--time-budget=0.0"),
        ({"seconds": math.nan}, "--time-budget"),
        ({"objectives": 2, "scheduler": "asha"}, "--scheduler=asha.*none"),
        ({"objectives": 2, "sampler": "gp"}, "--sampler=gp.*tpe"),
        ({"scheduler": "pbt"}, "--sampler=tpe.*random"),
        ({"scheduler": "pbt", "sampler": "random", "trials": 3}, "--trials=3.*4 or more"),
        ({"scheduler": "pbt", "sampler": "random", "seconds": 60.0}, "--time-budget=60.0.*pbt"),
    ],
)
def test_settings_that_cannot_be_combined_are_rejected(changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        replace(SETTINGS, **changes)


@pytest.mark.parametrize(
    "unchanging",
    [
        lambda trial: trial.suggest_int("warmup_steps", 0, 3),
        lambda trial: trial.suggest_categorical("lr", (0.1, 0.2)),
        lambda trial: trial.suggest_categorical("nesterov", (True, False)) and trial.suggest_float("lr", 0.1, 0.2),
    ],
)
def test_a_population_needs_a_field_that_can_change_during_training(unchanging: Space) -> None:
    with pytest.raises(ConfigError, match=r"--scheduler=pbt: .*range.*optim\.lr"):
        Optimizer(unchanging, replace(SETTINGS, sampler="random", scheduler="pbt"))


@pytest.mark.slow
@pytest.mark.parametrize(("sampler", "scheduler"), KINDS)
def test_a_metric_of_which_more_is_better_is_maximized(sampler: str, scheduler: str) -> None:
    """Scores of minus the losses lead to the same trials, decisions and ends as the losses.

    Minus, not 100 minus: negating is exact, and a Gaussian process turns the rounding of a subtraction into other trials.
    """
    losses = replace(SETTINGS, sampler=sampler, scheduler=scheduler, metric=Metric("validation/loss", "nats"))
    scores = replace(losses, metric=Metric("validation/score", "nats", better="higher"))
    chosen_space = space if scheduler == "pbt" else branching
    loss_curve = curve if scheduler == "pbt" else of_branching
    lower = Search(Optimizer(chosen_space, losses), curve=loss_curve)
    higher = Search(Optimizer(chosen_space, scores), curve=lambda values: [-loss for loss in loss_curve(values)])
    lower.run()
    higher.run()
    assert higher.asked_numbers == lower.asked_numbers
    for one, other in zip(higher.trials.values(), lower.trials.values(), strict=True):
        assert (one.outcome, one.values) == (other.outcome, other.values)


def test_without_bounds_a_diverged_trial_counts_as_the_worst_value_so_far() -> None:
    settings = replace(SETTINGS, sampler="gp", metric=Metric("valid/loss", "nats"))
    optimizer = Optimizer(branching, settings)
    for values, outcome in (((5.0, 2.0), "completed"), ((9.0,), "pruned"), ((), "diverged")):
        number = begun(optimizer).number
        for epoch, value in enumerate(values, 1):
            optimizer.report_epoch(number, epoch, value)
        optimizer.end_trial(number, outcome, values[-1:] if outcome == "completed" else ())
    told = [trial.value for trial in optimizer._suggester._study.trials]
    assert told == [2.0, 9.0, 9.0]
