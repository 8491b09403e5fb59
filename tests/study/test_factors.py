"""Any field can be a factor if its cells stay comparable, named in a study's file or on the command line."""

import json
from collections import Counter
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ablations.engine.cli import options
from ablations.engine.scheduling.capacity import RunResources
from ablations.engine.search.plan import plan_search
from ablations.engine.study.definition import Study
from ablations.engine.study.design import Design
from ablations.engine.study.expansion import MAX_SETTING_CHARACTERS, make_plan
from ablations.engine.study.factors import is_level, split_levels
from ablations.engine.study.plan import Plan
from ablations.engine.study.request import SearchRequest, StudyRequest
from ablations.engine.submission.jobs import make_job
from ablations.engine.task.image_data import TRANSFORM_FIELDS, image_selection, selects_images
from resnet_core import ConfigError, DataConfig, build_model, load_dataset
from resnet_core.data.cache import cache_key
from resnet_core.data.splits import Split
from resnet_core.overrides import run_schema
from tests.helpers.training_runs import paper_network

BASE: dict[str, Any] = {"name": "x", "question": "?", "settings": {"depth": 8}, "seeds": 2}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Decoded data, read once."""
    return tmp_path_factory.mktemp("cache")


def in_file(cache: Path, factors: dict[str, Any], **study: Any) -> Plan:
    """Return the plan of a study whose file has these factors."""
    return make_plan(Study(**BASE | {"factors": factors} | study), StudyRequest(), cache=cache)


def on_command_line(cache: Path, *levels: str, **study: Any) -> Plan:
    """Return the plan of a study with these factors from the command line, besides its own."""
    asked = Study(**BASE | {"factors": {"shortcut": ("A",)}} | study)
    return make_plan(asked, options.parse_options(asked, ["--levels", *levels]).request, cache=cache)


@pytest.mark.parametrize(
    ("name", "levels", "values"),
    [
        ("flip", "true,false", (True, False)),
        ("data.normalize", "channel,pixel", ("channel", "pixel")),
        ("pad", "0,1", (0, 1)),
        ("precision", "fp32,bf16", ("fp32", "bf16")),
        ("width", "none,8", (None, 8)),
        ("train_examples", "300,1437", (300, 1437)),
        ("train_examples", "300,none", (300, None)),
        ("milestones", "[0.5,0.75],[0.3,0.6]", ([0.5, 0.75], [0.3, 0.6])),
        ("stages", "[1,1,1]", ((1, 1, 1),)),
        ("optim.changes", "[],[2:lr=0.04,3:lr=0.01]", ((), ("2:lr=0.04", "3:lr=0.01"))),
        ("probes", "[],[responses]", ((), ["responses"])),
    ],
)
def test_a_factor_is_the_same_in_a_studys_file_and_on_the_command_line(
    cache: Path, name: str, levels: str, values: tuple[Any, ...]
) -> None:
    plans = in_file(cache, {"shortcut": ("A",), name: values}), on_command_line(cache, f"{name}={levels}")
    for plan in plans:
        assert len(plan.cells) == len(values)
        assert len({run.fingerprint for run in plan.runs}) == len(plan.runs) == 2 * len(values)
    assert [run.fingerprint for run in plans[0].runs] == [run.fingerprint for run in plans[1].runs]
    assert plans[0].factors == plans[1].factors
    assert plans[0].base_id == plans[1].base_id
    assert Design.from_json(Design.from_plan(plans[0], {}).to_json()) == Design.from_plan(plans[0], {})


@pytest.mark.parametrize(
    ("name", "levels", "named"),
    [
        ("seed", (0, 1), "seed=0,1: cannot be a factor: every cell is trained with the same seeds; accepted: --seeds N"),
        ("world_size", (1, 2), "world_size=1,2: cannot be a factor: every cell is trained with the same workers"),
        (
            "validation",
            (0.0, 0.2),
            "cells would be scored on different images; accepted: --set data.validation=SHARE",
        ),
        ("data.test_examples", (100, 200), "data.test_examples=100,200: cannot be a factor"),
        ("extra_tests", ("[]", "[ten_crop]"), "extra_tests=[],[ten_crop]: cannot be a factor: cells would be scored differently"),
        (
            "data.name",
            ("digits", "synthetic"),
            "data.name=digits,synthetic: cannot be a factor: cells would be",
        ),
        ("mood", ("good", "bad"), "mood: no such field"),
        ("lr", ("fast", "0.1"), "optim.lr=fast: accepted: a number"),
        ("shortcut", ("A", "D"), "model.shortcut=D: accepted: none, A, B, C"),
        ("flip", ("true", "yes"), "flip=True,True: a level is named twice"),
        ("width", ("16", "16"), "width=16,16: a level is named twice"),
        ("depth", ("9",), "model.depth=9: cifar with basic blocks has depths 6n+2"),
        ("train_examples", ("30", "300"), "optim.global_batch_size=64: accepted: at most 30, the training images of digits"),
        ("train_examples", ("0", "300"), "data.train_examples=0: accepted: finite and at least 1"),
    ],
)
def test_incomparable_or_invalid_levels_are_rejected_in_both_places(
    cache: Path, name: str, levels: tuple[Any, ...], named: str
) -> None:
    with pytest.raises(ConfigError) as by_file:
        in_file(cache, {name: levels})
    with pytest.raises(ConfigError) as by_command_line:
        on_command_line(cache, f"{name}={','.join(map(str, levels))}")
    for error in (by_file, by_command_line):
        assert named in str(error.value)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("names", [("depth", "model.depth"), ("model.depth", "depth")])
def test_a_field_is_one_factor_by_its_short_and_its_dotted_name(cache: Path, names: tuple[str, str]) -> None:
    with pytest.raises(ConfigError, match=f"^factors={names[1]}: is the same field as {names[0]}; accepted: one of them"):
        in_file(cache, dict.fromkeys(names, (8, 14)))
    plan = on_command_line(cache, f"{names[1]}=14,20", factors={names[0]: (8, 14)})
    assert plan.factors == {names[0]: (14, 20)}
    adapted = Study(**BASE | {"factors": {names[0]: (8, 14)}, "on": {"digits": {"factors": {names[1]: (14,)}}}})
    assert adapted.for_preset("digits").factors == {names[0]: (14,)}


# --- training data ---


def test_runs_have_training_images_of_their_own_and_shared_test_images(cache: Path) -> None:
    plan = in_file(cache, {"train_examples": (300, 1437), "flip": (False, True)})
    chosen = options.parse_options(plan.study, [])
    tests = []
    for run in plan.runs:
        trained = load_dataset(run.spec.data, cache)
        assert make_job(run, plan.dataset_for_run(run).version, 1, RunResources(), chosen).data_version == trained.version
        assert plan.training_examples(run) == len(trained.train.labels) == run.spec.data.train_examples
        assert isinstance(trained.test, Split)
        tests.append(trained.test)
    assert all(np.array_equal(test.images, tests[0].images) and np.array_equal(test.labels, tests[0].labels) for test in tests)
    assert len({plan.dataset_for_run(run).version for run in plan.runs}) == 2
    assert Counter(plan.training_examples(run) for run in plan.runs) == {300: 4, 1437: 4}
    seeds = {cell: sorted(run.seed for run in plan.runs if run.cell == cell) for cell in plan.cells}
    assert list(seeds.values()) == [[0, 1]] * 4


def test_a_network_is_logged_with_the_normalization_of_its_own_training_examples(cache: Path) -> None:
    from ablations.engine.submission.model_logging import pixels_to_scores  # imports torch

    plan = in_file(cache, {"train_examples": (300, 1437)}, seeds=1)
    for run in plan.runs:
        model = pixels_to_scores(plan, run, build_model(paper_network(run.spec)).state_dict())
        assert model.mean.item() == pytest.approx(load_dataset(run.spec.data, cache).mean[0])
    assert len({plan.dataset_for_run(run).mean for run in plan.runs}) == 2


def test_more_training_images_than_exist_mean_all(cache: Path) -> None:
    plan = in_file(cache, {"train_examples": (300, 1437, 5000, None)})
    assert [str(cell) for cell in plan.cells] == ["train_examples=300", "train_examples=1437"]
    assert [reason for _, reason in plan.skipped] == ["the same training as train_examples=1437"] * 2


def test_the_full_number_of_images_and_no_number_are_the_same_run(cache: Path) -> None:
    factor = in_file(cache, {"train_examples": (300, 1437)})
    alone = in_file(cache, {"depth": (8,)})
    assert alone.base.data.train_examples is None
    assert {run.fingerprint for run in alone.runs} == {
        run.fingerprint for run in factor.runs if factor.training_examples(run) == 1437
    }
    tested = [in_file(cache, {"depth": (8,)}, settings={"test_examples": count}) for count in (None, 360, 100)]
    one, same, other = ({run.fingerprint for run in plan.runs} for plan in tested)
    assert one == same
    assert not one & other


@pytest.mark.parametrize(("baseline", "stays"), [(None, "None"), (5000, "5000"), (1437, "1437"), (300, "1437")])
def test_of_equal_cells_the_one_with_the_baseline_is_kept(cache: Path, baseline: int | None, stays: str) -> None:
    levels = (300, 1437, 5000, None)
    plan = in_file(cache, {"train_examples": levels}, baseline={"train_examples": baseline})
    assert [str(cell) for cell in plan.cells] == ["train_examples=300", f"train_examples={stays}"]
    said = {str(cell): reason for cell, reason in plan.skipped}
    assert said == {
        f"train_examples={level}": f"the same training as train_examples={stays}" for level in levels[1:] if str(level) != stays
    }
    design = Design.from_plan(plan, {})
    assert [design.baseline_label(cell) for cell in design.cells if dict(cell.levels)["train_examples"] != str(baseline)] == [
        f"train_examples={baseline}"
    ]


def test_the_data_summary_names_every_number_of_training_examples(cache: Path) -> None:
    two = in_file(cache, {"train_examples": (None, 300), "flip": (False, True)}).data_summary
    assert two.startswith("300 or 1,437 images to train, 360 images to score (")
    assert in_file(cache, {"train_examples": (1437, 64, 300)}).data_summary.startswith("64, 300 or 1,437 images to train, ")
    same = in_file(cache, {"depth": (8, 14)})
    assert same.data_summary == same.dataset.summary


def test_a_run_is_the_same_whether_its_amount_of_data_is_a_factor_or_set(cache: Path) -> None:
    factor = in_file(cache, {"train_examples": (300, 1437)})
    alone = in_file(cache, {"depth": (8,)}, settings={"train_examples": 300})
    assert {run.fingerprint for run in alone.runs} < {run.fingerprint for run in factor.runs}


def test_the_base_id_does_not_depend_on_the_requested_numbers_of_images(cache: Path) -> None:
    study = {"factors": {"train_examples": (300, 1437)}}
    ids = {on_command_line(cache, f"train_examples={levels}", **study).base_id for levels in ("300,1437", "1437,300", "600")}
    assert len(ids) == 1
    assert in_file(cache, {"flip": (False,)}).base_id not in ids


def test_a_design_has_the_training_images_of_each_cell(cache: Path) -> None:
    plan = in_file(cache, {"depth": (8, 14), "train_examples": (300, 5000)})
    design = Design.from_plan(plan, {})
    assert [cell.train_examples for cell in design.cells] == [300, 1437, 300, 1437]
    assert design.training_examples == {"train_examples=300": 300, "train_examples=5000": 1437}
    assert [design.examples_per_epoch(cell) for cell in design.cells] == [256, 1408, 256, 1408]
    assert {cell.data_version for cell in design.cells} == {plan.dataset_for_run(run).version for run in plan.runs}
    assert not Design.from_plan(in_file(cache, {"depth": (8, 14)}), {}).training_examples


def test_a_design_of_an_earlier_version_is_read(cache: Path) -> None:
    design = Design.from_plan(in_file(cache, {"depth": (8, 14)}), {})
    stored = json.loads(design.to_json())
    del stored["metric"]
    for cell in stored["cells"]:
        of_all = {"data_version": cell.pop("data_version"), "train_images": cell.pop("train_examples")}
    assert Design.from_json(json.dumps(stored | {"evaluation_split": "test"} | of_all)) == design


def test_the_training_images_of_the_cells_of_an_earlier_design_are_read(cache: Path) -> None:
    design = Design.from_plan(in_file(cache, {"data.train_examples": (300, 5000)}), {})
    stored = json.loads(design.to_json())
    for cell in stored["cells"]:
        cell["train_images"] = cell.pop("train_examples")
    assert Design.from_json(json.dumps(stored)) == design


def test_a_design_under_former_names_of_fields_is_read(cache: Path) -> None:
    design = Design.from_plan(in_file(cache, {"momentum_form": ("pytorch", "caffe"), "optim.bn_recalibration": (False, True)}), {})
    stored = json.loads(design.to_json())
    del stored["metric"]
    stored["scored_on"] = "test"
    stored["factors"] = {"velocity": ["gradients", "updates"], "optim.bn_statistics": ["running", "averaged"]}
    forms, statistics = {"pytorch": "gradients", "caffe": "updates"}, {"False": "running", "True": "averaged"}
    for cell in stored["cells"]:
        form, recalibrated = cell["levels"].values()
        cell["levels"] = {"velocity": forms[form], "optim.bn_statistics": statistics[recalibrated]}
        spec = cell["spec"]
        spec["optim.velocity"], spec["optim.bn_statistics"] = forms[form], statistics[recalibrated]
        del spec["optim.momentum_form"], spec["optim.bn_recalibration"]
    assert Design.from_json(json.dumps(stored)) == design


def folder(root: Path, *, train: int, test: int = 4, shade: int = 0) -> str:
    for split, count in (("train", train), ("test", test)):
        for label in range(2):
            (root / split / f"class-{label}").mkdir(parents=True)
            for i in range(count):
                color = (40 * i, 100 * label, (split == "test") * shade)
                Image.new("RGB", (16, 16), color).save(root / split / f"class-{label}" / f"{i}.png")
    return str(root)


@pytest.mark.parametrize("stream", [False, True])
def test_image_folders_can_be_levels_if_their_test_images_are_the_same(tmp_path: Path, stream: bool) -> None:
    full, half = folder(tmp_path / "full", train=6), folder(tmp_path / "half", train=3)
    other = folder(tmp_path / "other", train=6, shade=200)
    settings = {"depth": 8, "data.name": "imagefolder", "global_batch_size": 4, "stream": stream, "image_size": 16}
    plan = in_file(tmp_path / "cache", {"data.root": (full, half)}, settings=settings)
    assert Counter(plan.training_examples(run) for run in plan.runs) == {12: 2, 6: 2}
    for others in ({"data.root": (full, other)}, {"data.root": (full,), "image_size": (16, 32)}):
        with pytest.raises(ConfigError, match="cannot be a factor: cells would be scored on different images of imagefolder"):
            in_file(tmp_path / "cache", others, settings=settings)


def test_the_number_of_generated_images_is_not_a_factor_as_it_changes_the_test_images(cache: Path) -> None:
    with pytest.raises(ConfigError, match=r"^train_examples=64,128: cannot be a factor: cells would be scored on different images"):
        in_file(cache, {"train_examples": (64, 128)}, preset="smoke")


def test_fields_that_transform_images_do_not_select_them(tmp_path: Path) -> None:
    base = DataConfig(name="imagefolder", root=folder(tmp_path, train=2), stream=True, image_size=16)
    changed: dict[str, Any] = {"scale": (20, 30), "color_augmentation": True, "decode_workers": 2, "pad": 1, "flip": False}
    changed |= {"extra_tests": ("ten_crop",), "mixup": 0.2, "cutmix": 1.0, "erasing": 0.25}
    for name, value in changed.items():
        assert cache_key(replace(base, **{name: value}), "state") == cache_key(base, "state")
        assert image_selection(replace(base, **{name: value})) == image_selection(base)
    assert {*changed, "normalize"} == set(TRANSFORM_FIELDS), "normalize is of images in memory"
    digits = DataConfig(pad=0)
    assert cache_key(replace(digits, normalize="pixel"), "state") == cache_key(digits, "state")
    assert {f.name for f in fields(DataConfig) if selects_images(f"data.{f.name}")} == {
        *("name", "root", "stream", "image_size", "validation", "train_examples", "test_examples")
    }, "every field is decided on here"


def test_all_cells_of_a_search_use_the_same_images(cache: Path) -> None:
    def space(trial: Any) -> None:
        trial.suggest_float("lr", 0.01, 0.1)

    study = Study(**BASE | {"factors": {"train_examples": (300, 1437)}, "space": space})
    request = SearchRequest(per_cell=["train_examples"], space=(), trials=2)
    with pytest.raises(ConfigError, match=r"^--per-cell=data\.train_examples: .*the same images"):
        plan_search(study, StudyRequest(), request, cache=cache)


# --- lists as levels, and settings that are too long ---


@pytest.mark.parametrize(
    ("name", "text", "levels"),
    [
        ("depth", "20,56", ("20", "56")),
        ("milestones", "[0.5,0.75],[0.3]", ("[0.5,0.75]", "[0.3]")),
        ("stages", "none,[1,1,1]", ("none", "[1,1,1]")),
        ("changes", "[],[4:lr=0.1]", ("[]", "[4:lr=0.1]")),
    ],
)
def test_levels_are_split_at_commas_outside_of_brackets(name: str, text: str, levels: tuple[str, ...]) -> None:
    assert split_levels(run_schema(), name, text) == levels


@pytest.mark.parametrize("text", ["0.5,0.75", "0.5", "[0.5,0.75", "0.5,0.75]", "[[0.5],[0.75]]", "[0.5],0.75", "[0.5][0.75]"])
def test_a_list_without_brackets_is_rejected(cache: Path, text: str) -> None:
    with pytest.raises(ConfigError, match=r"^--levels=milestones=.*: each level is a list; accepted: lists in brackets"):
        on_command_line(cache, f"milestones={text}")


def test_a_list_level_has_the_text_that_was_given(cache: Path) -> None:
    plan = in_file(cache, {"milestones": ([0.5, 0.75], [0.3])}, baseline={"milestones": [0.3]})
    assert [str(cell) for cell in plan.cells] == ["milestones=[0.5,0.75]", "milestones=[0.3]"]
    assert Design.from_plan(plan, {}).baseline == {"milestones": "[0.3]"}


def test_a_setting_that_mlflow_would_truncate_is_rejected(cache: Path) -> None:
    from mlflow.utils.validation import MAX_PARAM_VAL_LENGTH

    assert MAX_SETTING_CHARACTERS == MAX_PARAM_VAL_LENGTH
    epochs = [",".join(map(str, range(1, count + 1))) for count in (1000, 1600)]
    asked = {"probes": "gradients", "epochs": "2000"}
    study = Study(**BASE | {"factors": {"shortcut": ("A",)}})
    plan = make_plan(study, StudyRequest(overrides=asked | {"probe_epochs": epochs[0]}), cache=cache)
    assert len(plan.runs[0].spec.probe_epochs) == 1000
    with pytest.raises(ConfigError, match=r"^probe_epochs=\(1, 2, .*…: 8,\d\d\d characters; accepted: at most 6,000"):
        make_plan(study, StudyRequest(overrides=asked | {"probe_epochs": epochs[1]}), cache=cache)


@pytest.mark.parametrize(
    ("level", "text", "same"),
    [
        (0.001, "1e-3", True),
        (0.1, "0.10", True),
        (16, "16", True),
        (16, "16.5", False),
        (True, "true", True),
        (False, "False", True),
        (True, "1", False),
        (None, "none", True),
        ("none", "none", True),
        ("A", "a", False),
        ((0.5, 0.75), "[0.5,0.75]", True),
    ],
)
def test_a_level_is_recognized_in_another_notation(level: object, text: str, same: bool) -> None:
    assert is_level(level, text) == same
