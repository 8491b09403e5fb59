"""Expansion of studies into cells and runs, and rejection of invalid requests."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ablations import tricks
from ablations.engine.study.definition import Study
from ablations.engine.study.design import Design
from ablations.engine.study.expansion import make_plan
from ablations.engine.study.plan import Plan
from ablations.engine.study.request import StudyRequest
from resnet_core import ConfigError, measure_cost
from tests.helpers.training_runs import paper_network


def small_study(**changes: Any) -> Study:
    fields: dict[str, Any] = {
        "name": "small",
        "question": "Does it expand?",
        "factors": {"shortcut": ("none", "A"), "depth": (8, 14)},
        "baseline": {"shortcut": "A"},
        "seeds": 2,
        "preset": "smoke",
    }
    return Study(**{**fields, **changes})


def plan_of(cache: Path, study: Study | None = None, **request: Any) -> Plan:
    return make_plan(study or small_study(), StudyRequest(**request), cache=cache)


def test_different_levels_have_different_texts(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, levels={"optim.lr": ("0.1", "0.1000001", "1e-5")})
    assert len({str(cell) for cell in plan.cells}) == len(plan.cells) == 12
    assert {dict(cell.levels)["optim.lr"] for cell in plan.cells} == {0.1, 0.1000001, 1e-5}


def test_every_cell_has_the_same_seeds(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, seeds=3)
    seeds = {cell: [run.seed for run in plan.runs if run.cell == cell] for cell in plan.cells}
    assert len(seeds) == 4
    assert set(map(tuple, seeds.values())) == {(0, 1, 2)}


def test_runs_are_ordered_by_seed_and_then_deepest_first(tmp_path: Path) -> None:
    runs = [(run.seed, run.spec.depth) for run in plan_of(tmp_path).runs]
    assert runs == [(0, 14), (0, 14), (0, 8), (0, 8), (1, 14), (1, 14), (1, 8), (1, 8)]


def test_runs_are_resolved_from_the_data_and_have_distinct_fingerprints(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    assert {paper_network(run.spec).num_classes for run in plan.runs} == {10}
    assert all(paper_network(run.spec).stages for run in plan.runs)
    assert len({run.fingerprint for run in plan.runs}) == len(plan.runs)


def test_two_studies_share_the_runs_that_they_have_in_common(tmp_path: Path) -> None:
    one = plan_of(tmp_path)
    other = plan_of(tmp_path, small_study(name="other", factors={"shortcut": ("A", "B")}), overrides={"depth": "14"})
    shared = {run.fingerprint for run in one.runs} & {run.fingerprint for run in other.runs}
    assert len(shared) == 2  # option A at depth 14, two seeds


def test_adding_seeds_and_levels_keeps_every_run_that_was_there(tmp_path: Path) -> None:
    before = {run.fingerprint for run in plan_of(tmp_path).runs}
    after = {run.fingerprint for run in plan_of(tmp_path, seeds=3, levels={"depth": ("8", "14", "20")}).runs}
    assert before < after


def test_an_invalid_combination_is_skipped_with_its_reason(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, small_study(factors={"block": ("basic", "bottleneck"), "depth": (8, 20)}, baseline={}))
    assert [str(cell) for cell in plan.cells] == ["block=basic depth=8", "block=basic depth=20", "block=bottleneck depth=20"]
    assert [(str(cell), "9n+2" in reason) for cell, reason in plan.skipped] == [("block=bottleneck depth=8", True)]


def test_a_level_may_be_added_for_a_factor_that_the_study_does_not_have(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, levels={"optim.lr": ("0.1", "0.01")})
    assert {run.spec.optim.lr for run in plan.runs} == {0.1, 0.01}
    assert len(plan.cells) == 8


def test_the_base_configuration_does_not_depend_on_levels_or_seeds(tmp_path: Path) -> None:
    base = plan_of(tmp_path).base_id
    assert plan_of(tmp_path, seeds=5, levels={"depth": ("14", "20")}).base_id == base
    assert plan_of(tmp_path, overrides={"optim.lr": "0.3"}).base_id != base


def test_a_margin_changes_neither_the_base_configuration_nor_a_run_and_that_of_the_request_wins(tmp_path: Path) -> None:
    plain, own = plan_of(tmp_path), plan_of(tmp_path, small_study(margin=1))
    asked = plan_of(tmp_path, small_study(margin=1), margin=0.5)
    assert [Design.from_plan(plan, {}).margin for plan in (plain, own, asked)] == [None, 1, 0.5]
    assert plain.base_id == own.base_id == asked.base_id
    assert {run.fingerprint for run in plain.runs} == {run.fingerprint for run in asked.runs}


def test_a_study_plans_its_own_seeds_or_those_of_the_request_if_they_are_more(tmp_path: Path) -> None:
    assert [Design.from_plan(plan_of(tmp_path, seeds=seeds), {}).planned_seeds for seeds in (None, 1, 3)] == [2, 2, 3]


@pytest.mark.parametrize(
    ("request_fields", "message"),
    [
        ({"preset": "mnist"}, "--preset=mnist: accepted: smoke"),
        ({"seeds": 0}, "--seeds=0: accepted: 1 or more"),
        ({"levels": {"shortcut": ("A", "D")}}, "model.shortcut=D: accepted: none, A, B, C"),
        ({"levels": {"shortcut": ("B", "C")}}, "the baseline A"),
        ({"levels": {"depth": ("8", "8")}}, "a level is named twice"),
        ({"levels": {"depth": ()}}, "--levels depth: accepted: one or more levels"),
        ({"levels": {"depth": ("9",)}}, "model.depth=9: cifar with basic blocks has depths 6n+2"),
        ({"levels": {"seed": ("1", "2")}}, "cannot be a factor"),
        ({"levels": {"mood": ("good",)}}, "mood: no such field"),
        ({"overrides": {"optim.lrr": "1"}}, "optim.lrr: no such field; did you mean optim.lr"),
        ({"overrides": {"depth": "20"}}, "--set model.depth: is a factor of this study"),
        ({"overrides": {"optim.lr": "fast"}}, "optim.lr=fast: accepted: a number"),
        ({"overrides": {"model.num_classes": "7"}}, "model.num_classes=7: the data set has 10"),
        ({"overrides": {"optim.global_batch_size": "4096"}}, "accepted: at most 128, the training images of synthetic"),
        ({"overrides": {"data.name": "digits"}}, "data.image_size=8: the images of digits keep their size"),
        ({"workers": 5}, "optim.global_batch_size=32: accepted: a multiple of the 5 workers"),
        ({"overrides": {"data.name": "imagefolder"}}, "data.root=None: imagefolder needs a folder"),
        (
            {"overrides": {"data.name": "imagefolder", "data.root": "/nowhere/at/all"}},
            "data.root=/nowhere/at/all: accepted: an existing",
        ),
    ],
)
def test_an_invalid_request_is_rejected(tmp_path: Path, request_fields: Mapping[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        plan_of(tmp_path, **request_fields)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("field", [{"name": "../etc"}, {"preset": "mnist"}, {"baseline": {"width": 8}}])
def test_an_invalid_study_is_rejected(field: Mapping[str, Any]) -> None:
    with pytest.raises(ConfigError, match="accepted"):
        small_study(**field)


def test_settings_override_the_preset_and_a_request_overrides_both(tmp_path: Path) -> None:
    study = small_study(settings={"lr": 0.3, "optim.momentum": 0.5})
    assert plan_of(tmp_path, study).base.optim.lr == 0.3
    asked = plan_of(tmp_path, study, overrides={"optim.lr": "0.2"}).base.optim
    assert (asked.lr, asked.momentum) == (0.2, 0.5)


def test_a_study_is_adapted_to_a_preset(tmp_path: Path) -> None:
    changes = {"factors": {"depth": (20,), "width": (8, 16)}, "baseline": {"width": 8}, "settings": {"lr": 0.3}}
    plan = plan_of(tmp_path, small_study(on={"smoke": changes}))
    assert plan.factors == {"shortcut": ("none", "A"), "depth": (20,), "width": (8, 16)}
    assert (plan.study.baseline, plan.base.optim.lr) == ({"shortcut": "A", "width": 8}, 0.3)
    assert plan_of(tmp_path, small_study(on={"digits": changes})).factors == small_study().factors


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"on": {"mnist": {}}}, "preset=mnist: accepted: smoke"),
        ({"on": {"smoke": {"levels": {}}}}, "on smoke=levels: accepted: factors, baseline, settings"),
        ({"baseline": {"width": 8}}, "baseline=width: not a factor; accepted: shortcut, depth"),
    ],
)
def test_a_contradictory_study_is_rejected_on_creation(changes: Mapping[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        small_study(**changes)
    assert message in str(error.value)


@pytest.mark.slow
def test_a_width_that_matches_costs_is_resolved_to_a_number_and_shared_with_that_number(tmp_path: Path) -> None:
    factors = {"block": ("basic", "bottleneck"), "match_flops": (None, "basic"), "depth": (20,)}
    study = small_study(factors=factors, baseline={"block": "basic"}, settings={"width": None})
    plan = plan_of(tmp_path, study, seeds=1)
    assert [str(cell) for cell, _ in plan.skipped] == ["block=basic match_flops=basic depth=20"]
    costs = {str(run.cell): measure_cost(run.spec.model, 8).flops for run in plan.runs}
    equal = costs["block=bottleneck match_flops=basic depth=20"] / costs["block=basic match_flops=None depth=20"]
    assert 0.9 < equal < 1.1
    matched = next(run for run in plan.runs if "match_flops=basic" in str(run.cell))
    assert paper_network(matched.spec).match_flops is None
    by_number = {"block": "bottleneck", "depth": 20, "width": paper_network(matched.spec).width}
    again = plan_of(tmp_path, small_study(factors={"shortcut": ("A",)}), seeds=1, overrides=by_number)
    assert [run.fingerprint for run in again.runs] == [matched.fingerprint]


def test_a_study_scored_on_a_validation_split_has_another_base(tmp_path: Path) -> None:
    plan, held_out = plan_of(tmp_path), plan_of(tmp_path, overrides={"validation": "0.25"})
    assert not {run.fingerprint for run in plan.runs} & {run.fingerprint for run in held_out.runs}
    assert (len(held_out.dataset.train.labels), len(held_out.dataset.test.labels)) == (96, 32)


def test_cells_with_the_same_network_are_trained_once(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, small_study(factors={"width": (None, 8, 16)}, baseline={}, settings={"width": None}))
    assert [str(cell) for cell in plan.cells] == ["width=None", "width=8"]
    assert [(str(cell), reason) for cell, reason in plan.skipped] == [("width=16", "the same training as width=None")]
    assert len({run.fingerprint for run in plan.runs}) == len(plan.runs) == 4


def test_a_level_may_make_a_setting_or_the_preset_valid(tmp_path: Path) -> None:
    bottleneck = plan_of(tmp_path, overrides={"block": "bottleneck"}, levels={"depth": ("11",)})  # the preset has depth 8
    assert {paper_network(run.spec).stages for run in bottleneck.runs} == {(1, 1, 1)}
    by_epochs = small_study(factors={"epochs": (1, 2)}, baseline={}, preset="cifar10")
    plan = plan_of(tmp_path, by_epochs, overrides={"data.name": "synthetic"})
    assert {plan.base.optim.iterations, *(run.spec.optim.iterations for run in plan.runs)} == {None}


@pytest.mark.parametrize("name", ["seed", "world_size"])
def test_seeds_and_workers_are_not_set_as_fields(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=rf"^--set={name}: accepted: --"):
        plan_of(tmp_path, overrides={name: "2"})


def test_probes_beyond_the_training_are_refused_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^probe_epochs=9: accepted: 1 to 2, "):
        plan_of(tmp_path, overrides={"probes": "gradients", "probe_epochs": "9"})


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["smoke", "digits"])
def test_all_256_combinations_of_the_tricks_are_different_trainings_and_the_baseline_has_all(preset: str, tmp_path: Path) -> None:
    study = replace(tricks.STUDY.for_preset(preset), design="factorial", seeds=1)
    plan = make_plan(study, StudyRequest(preset=preset), cache=tmp_path)
    assert (len({run.fingerprint for run in plan.runs}), plan.skipped) == (256, ())
    left_out = make_plan(study, StudyRequest(preset=preset, design="one-at-a-time"), cache=tmp_path)
    assert left_out.baseline == {name: levels[0] for name, levels in study.factors.items()}
    assert len(left_out.cells) == 9
