"""Designs: which combinations they have, against published tables, and their resolution and aliases."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pydoe
import pytest

from ablations.engine.study.dataset_studies import split_by_dataset
from ablations.engine.study.design import Design
from ablations.engine.study.designs import GENERATORS, alias_groups, combinations, fraction, resolution
from ablations.engine.study.expansion import make_plan
from ablations.engine.study.factors import Level
from ablations.engine.study.request import StudyRequest
from resnet_core import ConfigError
from tests.study.test_expansion import plan_of, small_study

PUBLISHED = {
    # factors: (cells, words of three letters, words of four letters) of the design of minimum aberration
    # (NIST/SEMATECH e-Handbook of Statistical Methods, table 5.3.3.4.7; Chen, Sun and Wu 1993)
    3: {
        3: (4, 1, 0),
        5: (8, 2, 1),
        6: (8, 4, 3),
        7: (8, 7, 7),
        9: (16, 4, 14),
        10: (16, 8, 18),
        11: (16, 12, 26),
        15: (16, 35, 105),
    },
    4: {4: (8, 0, 1), 5: (16, 0, 0), 6: (16, 0, 3), 7: (16, 0, 7), 8: (16, 0, 14), 9: (32, 0, 6), 10: (32, 0, 10), 11: (32, 0, 25)}
    | {12: (32, 0, 38), 13: (32, 0, 55), 14: (32, 0, 77), 15: (32, 0, 105)},
}
THREE = dict.fromkeys(("flip", "nesterov", "zero_init_residual"), (False, True))
TRICKS = dict.fromkeys("abcdefgh", (False, True))


def signs_of(points: Sequence[Sequence[Level]]) -> npt.NDArray[np.int_]:
    return np.array([[1 if level else -1 for level in point] for point in points])


def words(signs: npt.NDArray[np.int_], length: int) -> int:
    """Return the number of words of a length in the defining relation."""
    columns = itertools.combinations(range(signs.shape[1]), length)
    return sum(abs(signs[:, chosen].prod(axis=1).sum()) == len(signs) for chosen in columns)


@pytest.mark.parametrize(("least", "factors"), [(least, n) for least, table in PUBLISHED.items() for n in table])
def test_a_screening_is_the_published_design(least: int, factors: int) -> None:
    kind = {3: "screening-iii", 4: "screening"}[least]
    found = combinations(kind, {f"f{i}": (False, True) for i in range(factors)}, {})
    signs = signs_of(found)
    assert (len(found), words(signs, 3), words(signs, 4)) == PUBLISHED[least][factors]
    assert resolution(signs) >= least
    assert not signs.sum(axis=0).any()
    assert found[0] == (False,) * factors  # the baseline is a cell


@pytest.mark.parametrize(("least", "factors"), [(3, 7), (3, 11), (4, 8), (4, 10), (4, 13)])
def test_fractions_are_those_of_an_independent_library(least: int, factors: int) -> None:
    generators = next(text.split() for most, text in GENERATORS[least].items() if factors <= most)
    letters = sorted({letter for word in generators for letter in word})
    theirs = pydoe.fracfact(" ".join([*letters, *generators][:factors]))
    assert sorted(map(tuple, fraction(factors, least).tolist())) == sorted(map(tuple, theirs.astype(int).tolist()))


def test_a_screening_of_eight_factors_has_the_published_aliases() -> None:
    # 2^(8-4) of resolution IV: seven sums of four two-way interactions each, and every interaction is in one of them
    signs = signs_of(combinations("screening", TRICKS, {}))
    groups = [terms for terms, _ in alias_groups(signs, list(TRICKS))]
    assert groups[:8] == [[name] for name in TRICKS]
    assert [len(terms) for terms in groups[8:]] == [4] * 7
    assert len({term.removeprefix("−") for terms in groups[8:] for term in terms}) == 28


def test_the_signs_of_aliases_are_those_of_the_design() -> None:
    signs = signs_of(combinations("screening-iii", dict.fromkeys("abc", (0, 1)), {}))
    (first, *_) = alias_groups(signs, list("abc"))
    text = first[0][1]
    product = signs[:, 1] * signs[:, 2] * (-1 if text.startswith("−") else 1)
    assert text.removeprefix("−") == "b × c"
    assert (product == signs[:, 0]).all()


def test_one_factor_at_a_time_is_the_baseline_and_each_other_level() -> None:
    factors: Mapping[str, Sequence[Level]] = {"a": (1, 2, 3), "b": ("x", "y"), "c": (0,)}
    assert combinations("one-at-a-time", factors, {"a": 2, "b": "x"}) == ((2, "x", 0), (1, "x", 0), (3, "x", 0), (2, "y", 0))


def test_a_ladder_keeps_what_it_has_added() -> None:
    factors: Mapping[str, Sequence[Level]] = {"a": (1, 2, 3), "b": ("x", "y")}
    assert combinations("ladder", factors, {}) == ((1, "x"), (2, "x"), (3, "x"), (3, "y"))


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "three levels": ({"factors": {"depth": (8, 14, 20), **THREE}},
                     "design=screening: depth has 3 levels (8, 14, 20); accepted: two of each factor"),
    "three factors": ({"factors": THREE, "baseline": {}},
                      "design=screening: the study has 3 factors with two levels; accepted: 4 to 15"),
    "one factor": ({"factors": {"depth": (8, 14), "width": (8,)}, "baseline": {}},
                   "design=screening: the study has 1 factor with several levels; accepted: two such factors or more"),
    "an invalid combination": ({"factors": {"depth": (8, 20), "block": ("basic", "bottleneck"), "flip": (False, True),
                                            "nesterov": (False, True)}, "baseline": {}},
                               "design=screening: needs each of its 8 combinations, and depth=8 block=bottleneck"),
}  # fmt: skip


@pytest.mark.parametrize(("changes", "message"), WRONG.values(), ids=WRONG)
def test_a_wrong_screening_is_one_line(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        plan_of(tmp_path, small_study(**{"baseline": {}, **changes}), design="screening")
    assert str(error.value).startswith(message)


def test_the_number_of_runs_is_limited_in_each_design(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^--seeds=5000: with 3 cells, accepted: at most 10,000 runs"):
        plan_of(tmp_path, design="ladder", seeds=5000)


def test_designs_share_their_runs(tmp_path: Path) -> None:
    study = small_study(factors={**THREE, "width": (8, 12)}, baseline={})
    every = {run.fingerprint for run in plan_of(tmp_path, study).runs}
    for design, cells in (("one-at-a-time", 5), ("ladder", 5), ("screening", 8), ("screening-iii", 8)):
        plan = plan_of(tmp_path, study, design=design)
        assert len(plan.cells) == cells
        assert {run.fingerprint for run in plan.runs} <= every
        assert Design.from_plan(plan, {}).kind == design


def test_each_design_has_a_run_of_its_own_in_mlflow(tmp_path: Path) -> None:
    study = small_study()
    plans = [plan_of(tmp_path, study, design=design) for design in ("factorial", "one-at-a-time", "ladder")]
    assert len({plan.base_id for plan in plans}) == 3
    assert [plan.title for plan in plans] == ["small · smoke", "small · smoke · one-at-a-time", "small · smoke · ladder"]
    assert plan_of(tmp_path, small_study(design="ladder")).base_id == plans[2].base_id


def test_the_name_of_a_studys_run_says_what_differs_from_the_study_itself(tmp_path: Path) -> None:
    study = small_study(settings={"lr": 0.05, "epochs": 3})
    asked: list[tuple[dict[str, Any], str]] = [
        ({}, ""),
        ({"optim.lr": 0.05}, ""),  # what the study sets itself
        ({"global_batch_size": "16"}, " · batch 16"),
        ({"lr": "0.1", "weight_decay": "0.01"}, " · lr 0.1 · weight decay 0.01"),
        ({"train_examples": "100"}, " · train examples 100"),
    ]
    titles = [plan_of(tmp_path, study, overrides=overrides).title for overrides, _ in asked]
    assert titles == [f"small · smoke{rest}" for _, rest in asked]
    many = {"lr": "0.1", "momentum": "0.8", "weight_decay": "0", "warmup_steps": "1", "label_smoothing": "0.1", "nesterov": "true"}
    assert plan_of(tmp_path, study, overrides=many).title.endswith(
        " · lr 0.1 · momentum 0.8 · nesterov · weight decay 0 · 2 more settings"
    )
    assert plan_of(tmp_path, small_study(), workers=2).title == "small · smoke · workers 2"


def test_data_sets_under_one_preset_have_names_of_their_own(tmp_path: Path) -> None:
    study = small_study(datasets={"few": {"train_examples": 64}, "other": {"data.name": "digits", "data.image_size": None}})
    parts = split_by_dataset(study, StudyRequest())
    titles = [make_plan(each.study, each.request, cache=tmp_path).title for each in parts]
    assert titles == ["small · smoke · train examples 64", "small · smoke · digits · no image size"]


def test_arms_are_levels_of_one_factor(tmp_path: Path) -> None:
    arms = {"paper": {}, "modern": {"nesterov": True, "label_smoothing": 0.1}, "wide": {"width": 12}}
    plan = plan_of(tmp_path, small_study(arms=arms, factors={"depth": (8, 14)}, baseline={"depth": 8}))
    assert [str(cell) for cell in plan.cells][:3] == ["arm=paper depth=8", "arm=paper depth=14", "arm=modern depth=8"]
    assert plan.baseline == {"arm": "paper", "depth": 8}
    modern = next(run.spec for run in plan.runs if str(run.cell) == "arm=modern depth=14")
    assert (modern.optim.nesterov, modern.optim.label_smoothing, modern.depth) == (True, 0.1, 14)
    assert not {"optim.nesterov", "model.width", "model.depth"} & plan.shared_fields().keys()
    alone = plan_of(tmp_path, small_study(arms=arms, factors={}, baseline={"arm": "wide"}), levels={"arm": ("wide", "modern")})
    assert [str(cell) for cell in alone.cells] == ["arm=wide", "arm=modern"]
    assert alone.baseline == {"arm": "wide"}


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"levels": {"arm": ("papers",)}}, "--levels arm=papers: accepted: paper, modern"),
        ({"levels": {"arm": "paper"}}, "--levels arm=paper: accepted: a list of paper, modern"),
        ({"levels": {"arm": 5}}, "--levels arm=5: accepted: a list of paper, modern"),
        (
            {"levels": {"nesterov": ("true", "false")}},
            "--levels=nesterov: is set by arms of the study; accepted: fields",
        ),
        ({"levels": {"arm": ("modern",)}}, "--levels=arm=modern: must include the baseline paper"),
        ({"overrides": {"nesterov": "true"}}, "--set optim.nesterov: is set by arm, a factor of this study; set its levels"),
    ],
)
def test_a_wrong_request_for_arms_is_one_line(request_: dict[str, Any], message: str, tmp_path: Path) -> None:
    arms = {"paper": {}, "modern": {"nesterov": True}}
    with pytest.raises(ConfigError) as error:
        plan_of(tmp_path, small_study(arms=arms), **request_)
    assert str(error.value).startswith(message)


def test_paired_factors_are_one_factor(tmp_path: Path) -> None:
    study = small_study(
        factors={"depth": (8, 14), "width": (12, 8), "nesterov": (False, True)}, zip=("depth", "width"), baseline={"depth": 14}
    )
    plan = plan_of(tmp_path, study)
    assert [str(cell) for cell in plan.cells] == [
        "depth+width=8+12 nesterov=False",
        "depth+width=8+12 nesterov=True",
        "depth+width=14+8 nesterov=False",
        "depth+width=14+8 nesterov=True",
    ]
    assert plan.baseline == {"depth+width": "14+8"}
    assert {(run.spec.depth, run.spec.model.width) for run in plan.runs} == {(8, 12), (14, 8)}
    for name in ("depth", "model.depth"):
        with pytest.raises(ConfigError, match=rf"^--levels={name}: is paired with others; accepted: depth\+width=…"):
            plan_of(tmp_path, study, levels={name: ("8",)})
    assert not {"model.depth", "model.width"} & plan.shared_fields().keys()
    assert plan_of(tmp_path, study, levels={"depth+width": ("14+8",)}).base_id == plan.base_id
    assert plan_of(tmp_path, replace(study, zip=())).base_id != plan.base_id


def test_a_length_replaces_that_of_the_settings_only_where_a_cell_has_one(tmp_path: Path) -> None:
    study = small_study(arms={"long": {}, "short": {"epochs": 1}}, factors={}, baseline={}, settings={"epochs": 3})
    assert {str(run.cell): run.spec.optim.epochs for run in plan_of(tmp_path, study).runs} == {"arm=long": 3, "arm=short": 1}


def test_a_preset_may_have_another_arm_as_baseline(tmp_path: Path) -> None:
    arms = {"paper": {}, "modern": {"nesterov": True}}
    study = small_study(arms=arms, factors={}, baseline={"arm": "paper"}, on={"smoke": {"baseline": {"arm": "modern"}}})
    assert plan_of(tmp_path, study).baseline == {"arm": "modern"}
