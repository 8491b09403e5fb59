"""Search spaces of studies, restricted and extended on the command line."""

import json
from typing import Any

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from ablations.engine.search.space import (
    Space,
    check_space,
    field_values,
    params_for_values,
    parse_space,
    restrict_space,
    sample_space,
)
from resnet_core import ConfigError, RunSpec


def branching(trial: Any) -> None:
    trial.suggest_float("lr", 1e-3, 1, log=True)
    trial.suggest_int("optim.warmup_steps", 0, 100, step=20)
    if trial.suggest_categorical("schedule", ("step", "cosine")) == "step":
        trial.suggest_categorical("milestones", ("0.5,0.75", "0.3"))


def found(space: Space) -> set[str]:
    return {name for trial in sample_space(space) for name in field_values(trial.params)}


def test_a_field_has_a_range_choices_or_the_dimension_of_the_study() -> None:
    texts = ["lr", "weight_decay=1e-6..0.01:log", "epochs=5..10", "model.width=8,none,24", "schedule=step,cosine"]
    assert parse_space(texts) == {
        "optim.lr": None,
        "optim.weight_decay": FloatDistribution(1e-6, 0.01, log=True),
        "optim.epochs": IntDistribution(5, 10),
        "model.width": CategoricalDistribution([8, None, 24]),
        "optim.schedule": CategoricalDistribution(["step", "cosine"]),
    }


@pytest.mark.parametrize(
    ("texts", "complaint"),
    [
        (["lrr"], "did you mean lr"),
        (["lr", "optim.lr=0.1,0.2"], "named twice"),
        (["lr="], "a number"),
        (["lr=0.1"], "two or more different values"),
        (["lr=0.1,1e-1"], "two or more different values"),
        (["lr=1..0.1"], "LOW < HIGH"),
        (["lr=0..inf"], "LOW < HIGH"),
        (["lr=0..1:log"], "LOW above 0"),
        (["lr=0.1..1:linear"], "LOW..HIGH:log"),
        (["lr=a..1"], "a number"),
        (["epochs=0.5..3"], "a whole number"),
        (["nesterov=0..1"], "optim.nesterov is not a number"),
        (["width=none..8"], "model.width is not a number"),
        (["milestones=0.5,0.75"], "lists"),
        (["schedule=step,other"], "accepted: step, cosine, constant"),
    ],
)
def test_an_invalid_field_is_rejected(texts: list[str], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint) as caught:
        parse_space(texts)
    assert "\n" not in str(caught.value)


def test_without_fields_the_whole_space_is_searched() -> None:
    space = restrict_space(branching, {}, RunSpec(), ())
    assert found(space) == {"optim.lr", "optim.warmup_steps", "optim.schedule", "optim.milestones"}


def test_fields_outside_the_search_keep_their_default_on_which_branches_depend() -> None:
    assert found(restrict_space(branching, parse_space(["milestones"]), RunSpec(), ())) == {"optim.milestones"}
    cosine = RunSpec().optim.__class__(schedule="cosine")
    with pytest.raises(ConfigError, match="suggests nothing"):  # no milestones with cosine
        check_space(restrict_space(branching, parse_space(["milestones"]), RunSpec(optim=cosine), ()), RunSpec())


def test_a_range_replaces_that_of_the_study_or_adds_a_field() -> None:
    space = restrict_space(
        branching, parse_space(["lr=0.1..0.2", "schedule=step,constant", "depth=8,14", "milestones"]), RunSpec(), ()
    )
    assert check_space(space, RunSpec()) == {
        "optim.lr": {"low": 0.1, "high": 0.2, "log": False},
        "optim.schedule": {"choices": ["step", "constant"]},
        "optim.milestones": {"choices": [[0.5, 0.75], [0.3]]},
        "model.depth": {"choices": [8, 14]},
    }


def test_without_a_space_fields_need_a_range() -> None:
    assert found(restrict_space(None, parse_space(["lr=0.1..0.2"]), RunSpec(), ())) == {"optim.lr"}
    with pytest.raises(ConfigError, match=r"optim\.lr=LOW\.\.HIGH"):
        restrict_space(None, parse_space(["lr"]), RunSpec(), ())


def test_a_fixed_field_keeps_its_value_and_cannot_be_searched() -> None:
    assert "optim.lr" not in found(restrict_space(branching, {}, RunSpec(), {"optim.lr"}))
    with pytest.raises(ConfigError, match=r"--space=optim\.lr: cannot be searched"):
        restrict_space(branching, parse_space(["lr=0.1..0.2"]), RunSpec(), {"optim.lr"})


def test_a_field_that_the_study_does_not_search_needs_a_range() -> None:
    with pytest.raises(ConfigError, match=r"--space=optim\.momentum: accepted: optim\.lr, .*optim\.momentum=LOW\.\.HIGH"):
        restrict_space(branching, parse_space(["momentum"]), RunSpec(), ())


def test_the_range_of_a_field_is_the_union_over_branches() -> None:
    def space(trial: Any) -> None:
        high = 0.1 if trial.suggest_categorical("nesterov", (True, False)) else 1.0
        trial.suggest_float("lr", high / 100, high, log=True)

    assert check_space(space, RunSpec()) == {
        "optim.nesterov": {"choices": [True, False]},
        "optim.lr": {"low": 0.001, "high": 1.0, "log": True},
    }


@pytest.mark.parametrize(
    ("space", "complaint"),
    [
        (lambda trial: None, "suggests nothing"),
        (lambda trial: trial.suggest_float("speed", 0, 1), "speed: no such field"),
        (lambda trial: trial.suggest_float("lr", 1, 0), "fails: ValueError"),
        (lambda trial: trial.suggest_normal("lr"), "fails: AttributeError"),
        (lambda trial: trial.suggest_categorical("depth", ("deep", "deeper")), "model.depth=.*a whole number"),
        (lambda trial: trial.suggest_int("depth", 21, 25), "no configuration of the space is valid.*.*6n"),
    ],
)
def test_a_space_that_cannot_be_searched_is_rejected(space: Space, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint) as caught:
        check_space(space, RunSpec())
    assert "\n" not in str(caught.value)


def test_a_space_with_some_valid_configurations_is_accepted() -> None:
    assert check_space(lambda trial: trial.suggest_int("depth", 18, 25), RunSpec()) == {
        "model.depth": {"low": 18, "high": 25, "log": False}
    }


def test_the_parameters_of_a_trial_are_recovered_from_its_values() -> None:
    for trial in sample_space(branching):
        values = field_values(trial.params)
        remembered = {
            **json.loads(json.dumps(values)),
            **({"optim.milestones": values["optim.milestones"]} if "milestones" in trial.params else {}),
        }
        assert params_for_values(branching, remembered) == trial.params


@pytest.mark.parametrize(
    "values",
    [
        {"optim.lr": 2.0, "optim.warmup_steps": 0, "optim.schedule": "cosine"},
        {"optim.lr": 0.1, "optim.warmup_steps": 5, "optim.schedule": "cosine"},
        {"optim.lr": 0.1, "optim.warmup_steps": 0, "optim.schedule": "constant"},
        {"optim.lr": 0.1, "optim.warmup_steps": 0, "optim.schedule": "step"},
        {"optim.lr": 0.1, "optim.warmup_steps": 0, "optim.schedule": "cosine", "optim.momentum": 0.8},
        {"optim.lr": 0.1, "optim.schedule": "cosine"},
    ],
)
def test_values_outside_the_space_have_no_parameters(values: dict[str, Any]) -> None:
    assert params_for_values(branching, values) is None
