"""The plan of a search: cells, budgets, trials and confirmed configurations."""

import dataclasses
import json
from dataclasses import replace
from typing import Any

import pytest

from ablations.engine.cli import options
from ablations.engine.search.plan import (
    FIRST_TRIAL_SEED,
    MAX_FRONT_CONFIGURATIONS,
    ChosenConfiguration,
    ScoredTrial,
    choose_configurations,
)
from ablations.engine.search.space import check_space
from ablations.engine.study.design import Design
from ablations.engine.study.expansion import MAX_RUNS
from ablations.engine.task.metric import Metric, error_metric
from resnet_core import ConfigError
from tests.helpers.submission import SEARCH, searched

VALIDATION_ERROR = error_metric("validation")


def scored(error: float, loss: float = 1.0, cost: float | None = None) -> ScoredTrial:
    return ScoredTrial(values={"optim.lr": error}, value=error, loss=loss, cost=cost)


def test_every_cell_has_a_search_and_a_default_configuration() -> None:
    plan = searched("--per-cell")
    assert [str(cell) for cell in plan.trial_specs] == ["shortcut=none", "shortcut=A"]
    assert {str(run.cell) for run in plan.runs} == {"shortcut=none configuration=default", "shortcut=A configuration=default"}
    assert plan.baseline == {"shortcut": "A"}, "variants are compared at equal configuration"


def test_without_factors_there_is_one_search_and_the_default_is_the_baseline() -> None:
    plan = searched()
    assert [str(cell) for cell in plan.trial_specs] == [""]
    assert plan.baseline == {"configuration": "default"}


def test_trials_use_neither_the_test_set_nor_the_seeds_of_reported_runs() -> None:
    plan = searched("--per-cell", "--set", "extra_tests=ten_crop", "--probe", "responses")
    for spec in plan.trial_specs.values():
        assert spec.data.evaluation_split == "validation"
        assert spec.seed == FIRST_TRIAL_SEED >= MAX_RUNS
        assert not spec.data.extra_tests
        assert not spec.probes
    assert len(plan.trial_data.test.labels) + len(plan.trial_data.train.labels) == len(plan.dataset.train.labels)
    assert {run.spec.data.evaluation_split for run in plan.runs} == {"test"}
    assert {run.spec.probes for run in plan.runs} == {("responses",)}


@pytest.mark.slow
def test_more_trials_another_sampler_or_more_seeds_are_the_same_study() -> None:
    ids = {searched(*more).base_id for more in ((), ("--trials", "99"), ("--sampler", "random"), ("--seeds", "9"))}
    assert len(ids) == 1
    others = {searched(*more).base_id for more in (("--space", "lr"), ("--set", "epochs=3"), ("--per-cell",))}
    assert not ids & others
    assert len(others) == 3


def test_chosen_and_default_configurations_are_trained_on_all_images_with_new_seeds() -> None:
    plan = searched("--per-cell")
    none, a = plan.specs
    choices = {none: (ChosenConfiguration(level="tuned", number=3, values={"optim.lr": 0.5}),), a: ()}
    confirmed = plan.confirmation_plan(choices)
    assert {str(cell) for cell in confirmed.cells} == {
        *("shortcut=none configuration=default", "shortcut=none configuration=tuned", "shortcut=A configuration=default"),
    }
    tuned = [run.spec for run in confirmed.runs if str(run.cell) == "shortcut=none configuration=tuned"]
    assert [spec.seed for spec in tuned] == [0, 1]
    assert {(spec.optim.lr, spec.data.evaluation_split) for spec in tuned} == {(0.5, "test")}
    assert confirmed.base_id == plan.base_id
    assert confirmed.to_design().chosen == {"shortcut=none": {"tuned": 3}, "shortcut=A": {}}


def test_a_chosen_configuration_equal_to_the_default_is_not_trained_twice() -> None:
    plan = searched()
    (cell,) = plan.specs
    values = {"optim.lr": plan.base.optim.lr, "optim.momentum": plan.base.optim.momentum}
    confirmed = plan.confirmation_plan({cell: (ChosenConfiguration(level="tuned", number=0, values=values),)})
    assert len(confirmed.runs) == len(plan.runs)
    assert [reason for _, reason in confirmed.skipped] == ["the search chose the default configuration"]


def test_of_accuracies_the_highest_is_chosen_and_fronts_end_at_it() -> None:
    accuracy = Metric("valid/accuracy", "%", better="higher")
    (chosen,) = choose_configurations({0: scored(90.0), 1: scored(95.0), 2: scored(80.0)}, accuracy)
    assert chosen.number == 1
    front = {0: scored(90.0, cost=1.0), 1: scored(95.0, cost=2.0), 2: scored(80.0, cost=3.0)}
    assert [each.number for each in choose_configurations(front, accuracy)] == [0, 1]


def test_the_lowest_error_is_chosen_and_the_loss_breaks_ties() -> None:
    (chosen,) = choose_configurations(
        {0: scored(2.0, 0.1), 1: scored(1.0, 0.3), 2: scored(1.0, 0.2), 3: scored(1.0, 0.2)}, VALIDATION_ERROR
    )
    assert (chosen.level, chosen.number) == ("tuned", 2)
    assert choose_configurations({}, VALIDATION_ERROR) == ()


def test_configurations_are_chosen_along_the_front_including_its_ends() -> None:
    front = {number: scored(10.0 - number, cost=float(number)) for number in range(8)}
    beaten = {20: scored(9.5, cost=3.0), 21: scored(3.5, cost=9.0)}
    chosen = choose_configurations({**front, **beaten}, VALIDATION_ERROR)
    assert [each.level for each in chosen] == [f"front-{i}" for i in range(1, MAX_FRONT_CONFIGURATIONS + 1)]
    numbers = [each.number for each in chosen]
    assert (numbers[0], numbers[-1]) == (0, 7)
    assert numbers == sorted(numbers)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--sampler", "best"), "--sampler=best: accepted: tpe, random, gp"),
        (("--scheduler", "median"), "--scheduler=median: accepted: asha, hyperband, pbt, none"),
        (("--objective", "fame"), "--objective=fame: accepted: flops, seconds"),
        (("--trials", "0"), "--trials=0: accepted: 1 or more"),
        (("--time-budget", "soon"), "--time-budget=soon: accepted: a time above 0, such as 90s, 30m or 8h"),
        (("--time-budget", "0"), "--time-budget=0: accepted"),
        (("--validation", "1"), "--validation=1"),
        (("--validation", "0.99"), "optim.global_batch_size=32: accepted: at most"),
        (("--search-seed", "-1"), "--search-seed=-1: accepted: 0 or more"),
        (("--space", "shortcut", "--per-cell"), "shortcut"),
        (("--space", "seed"), "seed"),
        (("--space", "lr=1..0.1"), "lr"),
        (("--space", "no_such_field"), "no_such_field"),
        (("--per-cell", "depth"), "--per-cell=depth: accepted: shortcut, or another field with its --levels"),
        (("--levels", "shortcut=A,none"), "--levels=shortcut: accepted with --per-cell"),
        (("--levels", "depth=8,14", "--per-cell", "shortcut"), "--levels=depth: accepted: shortcut"),
        (("--set", "data.validation=0.1"), "--set=data.validation: accepted: --validation"),
        (("--set", "optim.lr=0.1", "--space", "lr"), "optim.lr"),
        (("--rerun",), "--rerun: a search continues from its finished trials; accepted: another --search-seed"),
        (("--sampler", "gp", "--objective", "flops"), "--sampler"),
        (("--scheduler", "asha", "--objective", "flops"), "--scheduler"),
        (("--scheduler", "pbt", "--trials", "2"), "--trials"),
        (("--scheduler", "pbt", "--space", "width=8,16"), "--scheduler"),
        (("--scheduler", "pbt", "--set", "optim.iterations=20"), "--scheduler=pbt: needs a training"),
        (("--space", "lr", "epochs=1..3"), "--space=optim.epochs: cannot be searched"),
    ],
)
def test_an_invalid_request_is_rejected_with_its_option_and_value(arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        searched(*arguments)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def branching(trial: Any) -> None:
    if trial.suggest_categorical("optim.schedule", ("step", "cosine")) == "step":
        trial.suggest_categorical("optim.milestones", ("0.5,0.75", "0.3,0.6"))
    if trial.suggest_categorical("shortcut", ("none", "A")) == "none":
        trial.suggest_float("optim.lr", 1e-3, 1e-1, log=True)
    if trial.suggest_categorical("optim.milestones", ("0.5,0.75", "0.3,0.6")) == "0.5,0.75":
        trial.suggest_float("optim.momentum", 0.5, 0.9)


@pytest.mark.slow
def test_branches_of_a_space_depend_on_the_levels_of_the_cell() -> None:
    plan = searched("--per-cell", "--space", "lr", "schedule", study=replace(SEARCH, space=branching))
    fields = {str(cell): set(check_space(space, plan.trial_specs[cell])) for cell, space in plan.spaces.items()}
    assert fields == {"shortcut=none": {"optim.schedule", "optim.lr"}, "shortcut=A": {"optim.schedule"}}
    momentum = searched("--space", "momentum", study=replace(SEARCH, space=branching))
    assert list(momentum.fields) == ["optim.momentum"], "the preset's milestones are the choice 0.5,0.75"


def test_a_field_that_is_suggested_only_under_other_values_is_rejected() -> None:
    with pytest.raises(ConfigError, match=r"--space=optim.milestones: .*accepted: choices"):
        searched("--space", "lr=0.1..1", "milestones", "--set", "optim.schedule=cosine", study=replace(SEARCH, space=_under_step))


def _under_step(trial: Any) -> None:
    if trial.suggest_categorical("optim.schedule", ("step", "cosine")) == "step":
        trial.suggest_categorical("optim.milestones", ("0.5,0.75", "0.3,0.6"))


@pytest.mark.slow
def test_per_cell_accepts_a_field_with_its_levels() -> None:
    plan = searched("--per-cell", "width", "--levels", "width=8,16", "--space", "lr")
    assert [str(cell) for cell in plan.trial_specs] == ["width=8", "width=16"]
    assert list(plan.fields) == ["optim.lr"]


def test_options_of_a_search_are_rejected_without_a_search(capsys: pytest.CaptureFixture[str]) -> None:
    from tests.helpers.submission import STUDY

    with pytest.raises(ConfigError):
        options.parse_options(STUDY, ("--trials", "3"))
    assert options.parse_options(SEARCH, ("--time-budget", "30m")).search.seconds == 1800  # type: ignore[union-attr]


def test_a_stored_search_with_the_former_name_of_the_second_objective_is_read() -> None:
    plan = searched("--per-cell")
    search = dataclasses.replace(plan.to_design(), objective="flops")
    design = dataclasses.replace(Design.from_plan(plan, {}), search=search)
    stored = json.loads(design.to_json())
    stored["search"]["against"] = stored["search"].pop("objective")
    read = Design.from_json(json.dumps(stored))
    assert read.search
    assert read.search.objective == "flops"
