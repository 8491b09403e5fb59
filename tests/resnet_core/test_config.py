"""Configurations refuse what cannot be run in one line that helps, and survive every way they travel."""

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resnet_core import PRESETS, ConfigError, DataConfig, ModelConfig, OptimConfig, RunSpec, override, preset
from resnet_core.config import change
from resnet_core.overrides import SYNONYMS, assignments, convert, from_flat
from tests.helpers.own_networks import Rated
from tests.helpers.training_runs import paper_network

DEFAULT = RunSpec()
FIELDS = tuple(DEFAULT.flat())
CHANGE = "accepted: EPOCH:FIELD=NUMBER, such as 4:lr=0.04; epochs are counted from 1, fields are lr, weight_decay, momentum, "
CHANGE += "label_smoothing"
BAD_CHANGES = ["0:lr=0.1", "04:lr=0.1", "-1:lr=0.1", f"{'9' * 50}:lr=0.1", "lr=0.1", "4:lr", "4:lr=", "4:lr=x", "4:lr=0.1=0.2"]
BAD_CHANGES += ["4:optim.lr=0.1", "4:epochs=9", "x", "none"]
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=2),
    max_leaves=4,
)
thorough = settings(deadline=None, max_examples=100)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        # wrong types
        ({"optim.lr": "fast"}, "optim.lr=fast: accepted: a number"),
        ({"optim.lr": [0.1]}, "optim.lr=[0.1]: accepted: a number"),
        ({"optim.lr": None}, "optim.lr=None: accepted: a number"),
        ({"optim.epochs": 1.5}, "optim.epochs=1.5: accepted: a whole number"),
        ({"optim.epochs": "1.0"}, "optim.epochs=1.0: accepted: a whole number"),
        ({"optim.epochs": True}, "optim.epochs=true: accepted: a whole number"),
        ({"optim.nesterov": "maybe"}, "optim.nesterov=maybe: accepted: true, false"),
        ({"optim.nesterov": 1}, "optim.nesterov=1: accepted: true, false"),
        ({"data.root": 5}, "data.root=5: accepted: text"),
        ({"model.stages": 3}, "model.stages=3: accepted: a list such as 2,2,2"),
        ({"model.stages": "2,x"}, "model.stages=x: accepted: a whole number"),
        ({"seed": "two\nlines"}, r'seed="two\nlines": accepted: a whole number'),
        # unknown levels
        ({"shortcut": "D"}, "model.shortcut=D: accepted: none, A, B, C"),
        ({"shortcut": None}, "model.shortcut=None: accepted: none, A, B, C"),
        ({"precision": "fp8"}, "precision=fp8: accepted: fp32, tf32, bf16, fp16"),
        (
            {"data.name": "mnist"},
            "data.name=mnist: accepted: digits, mnist5k, fashion_mnist, cifar10, cifar100, imagenet, imagefolder, huggingface, "
            "parquet, own, synthetic",
        ),
        # impossible networks
        ({"depth": 21}, "model.depth=21: cifar with basic blocks has depths 6n+2: 8, 14, 20, 32, 44, 56, 110, …"),
        ({"depth": 2}, "model.depth=2: cifar with basic blocks has depths 6n+2: 8, 14, 20, 32, 44, 56, 110, …"),
        (
            {"depth": 21, "block": "bottleneck"},
            "model.depth=21: cifar with bottleneck blocks has depths 9n+2: 11, 20, 29, 47, 65, 83, 164, …",
        ),
        (
            {"family": "imagenet", "depth": 50},
            "model.depth=50: imagenet with basic blocks has depths 18, 34; others need model.stages",
        ),
        ({"stages": [2, 2, 2]}, "model.depth=20: stages (2, 2, 2) of basic blocks make depth 14"),
        ({"stages": []}, "model.stages=[]: accepted: one or more stages of at least one block"),
        ({"stages": [9, 0]}, "model.stages=[9, 0]: accepted: one or more stages of at least one block"),
        ({"width": 4}, "model.width=4: accepted: finite and at least 8"),
        ({"num_classes": 1}, "model.num_classes=1: accepted: finite and at least 2"),
        # impossible data and recipes
        ({"data.name": "cifar10"}, "data.root=None: cifar10 needs a folder: --set data.root=FOLDER"),
        ({"pad": -1}, "data.pad=-1: accepted: finite and at least 0"),
        ({"train_examples": 0}, "data.train_examples=0: accepted: finite and at least 1"),
        ({"milestones": "0.75,0.5"}, "optim.milestones=[0.75, 0.5]: accepted: rising fractions of the training, such as 0.5,0.75"),
        ({"milestones": [1.5]}, "optim.milestones=[1.5]: accepted: rising fractions of the training, such as 0.5,0.75"),
        ({"label_smoothing": 1.1}, "optim.label_smoothing=1.1: accepted: 0 to 1"),
        ({"momentum": 0, "nesterov": True}, "optim.nesterov=true: needs optim.momentum above 0"),
        # impossible policies
        *(({"changes": text}, f"optim.changes={text}: {CHANGE}") for text in BAD_CHANGES),
        ({"changes": [4]}, "optim.changes=4: accepted: text"),
        ({"changes": 4}, "optim.changes=4: accepted: a list such as 2,2,2"),
        (
            {"changes": "4:lr=0.1,2:lr=1"},
            "optim.changes=4:lr=0.1,2:lr=1: accepted: epochs that do not fall: 4:lr=0.04,6:lr=0.01",
        ),
        ({"changes": "4:lr=0.1,4:lr=1"}, "optim.changes=4:lr=0.1,4:lr=1: accepted: a field once in an epoch"),
        ({"changes": "4:lr=nan"}, "optim.changes=4:lr=nan: optim.lr=NaN: accepted: finite and at least 0"),
        (
            {"changes": "4:weight_decay=-1"},
            "optim.changes=4:weight_decay=-1.0: optim.weight_decay=-1.0: accepted: finite and at least 0",
        ),
        ({"changes": "4:label_smoothing=2"}, "optim.changes=4:label_smoothing=2.0: optim.label_smoothing=2.0: accepted: 0 to 1"),
        ({"changes": "4:momentum=0"}, "optim.changes=4:momentum=0.0: accepted: optim.momentum above 0, before and after"),
        (
            {"changes": "4:momentum=0.5", "momentum": 0},
            "optim.changes=4:momentum=0.5: accepted: optim.momentum above 0, before and after",
        ),
        (
            {"changes": "4:lr=0", "momentum_form": "caffe"},
            "optim.changes=4:lr=0.0: optim.momentum_form=caffe: caffe needs learning rates above 0 and no optim.nesterov",
        ),
        ({"iterations": 0}, "optim.iterations=0: accepted: finite and at least 1"),
        ({"seed": -1}, "seed=-1: accepted: finite and at least 0"),
        # indivisible batches
        ({"world_size": 3}, "optim.global_batch_size=128: accepted: a multiple of the 3 workers, such as 126"),
        (
            {"world_size": 4, "global_batch_size": 2},
            "optim.global_batch_size=2: accepted: a multiple of the 4 workers, such as 4",
        ),
        # unknown fields
        ({"zzz": 0.1}, f"zzz: no such field; accepted: {', '.join(FIELDS)}"),
    ],
)
def test_a_bad_request_is_refused_in_one_line_with_field_value_and_what_is_accepted(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        override(DEFAULT, changes)
    assert str(caught.value) == message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("typo", "meant"),
    [
        ("optim.lrr", "optim.lr"),  # not optim.ema, which has the section in common
        ("dept", "depth"),
        ("dpeth", "depth"),
        ("momentm", "momentum"),  # not bn_momentum, which is less similar
        ("optim.warmup", "optim.warmup_steps"),
        ("data.epcohs", "optim.epochs"),
    ],
)
def test_a_misspelt_field_is_answered_with_what_is_near_and_nothing_else(typo: str, meant: str) -> None:
    with pytest.raises(ConfigError) as caught:
        override(DEFAULT, {typo: 1})
    assert str(caught.value) == f"{typo}: no such field; did you mean {meant}?"


def test_a_name_like_no_field_of_its_section_is_answered_with_these_fields() -> None:
    of_section = ", ".join(name for name in FIELDS if name.startswith("optim."))
    with pytest.raises(ConfigError, match=f"^optim.zzz: no such field; accepted: {of_section}$"):
        override(DEFAULT, {"optim.zzz": 1})


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("optim.learning_rate", "optim.lr"),
        ("learning-rate", "optim.lr"),
        ("batch_size", "optim.global_batch_size"),
        ("n_layers", "model.depth"),
        ("data_dir", "data.root"),
        ("model.lr", "optim.lr"),  # the wrong section
        ("Depth", "model.depth"),
    ],
)
def test_a_field_under_the_name_of_another_library_is_answered_with_the_one_field_that_is_meant(name: str, meant: str) -> None:
    with pytest.raises(ConfigError) as caught:
        override(DEFAULT, {name: 1})
    assert str(caught.value) == f"{name}: no such field; did you mean {meant}?"


def test_synonyms_name_fields_and_are_no_names_of_fields_themselves() -> None:
    assert set(SYNONYMS.values()) <= set(FIELDS)
    leaves = {name.rpartition(".")[2] for name in FIELDS}
    assert not leaves & SYNONYMS.keys()


@pytest.mark.parametrize("number", ["nan", "inf", "-inf"])
@pytest.mark.parametrize(
    "name", [name for name, value in DEFAULT.flat().items() if isinstance(value, (int, float)) and not isinstance(value, bool)]
)
def test_no_number_may_be_infinite_or_nan(name: str, number: str) -> None:
    for value in (number, float(number)):
        with pytest.raises(ConfigError, match=rf"^{name}=.*: accepted: .+"):
            override(DEFAULT, {name: value})


@pytest.mark.parametrize("milestones", [[float("nan")], [0.5, float("inf")]])
def test_no_milestone_may_be_infinite_or_nan(milestones: list[float]) -> None:
    with pytest.raises(ConfigError, match=r"^optim\.milestones="):
        OptimConfig(milestones=tuple(milestones))


@thorough
@given(st.sampled_from(FIELDS), json_values)
def test_any_value_is_either_refused_in_one_line_or_survives_json(name: str, value: Any) -> None:
    try:
        spec = override(DEFAULT, {name: value})
    except ConfigError as error:
        assert len(str(error).splitlines()) == 1  # noqa: PT017 - being refused is one of two good ends
    else:
        assert from_flat(json.loads(json.dumps(spec.flat(), allow_nan=False))) == spec


@st.composite
def specs(draw: st.DrawFn) -> RunSpec:
    """Acceptable specs of every kind."""
    positive = st.integers(1, 10**6)
    number = st.floats(0, 1e6)
    stages = draw(st.none() | st.lists(st.integers(1, 9), min_size=1, max_size=5))
    world_size = draw(st.integers(1, 64))
    return RunSpec(
        model=ModelConfig(
            depth=8 if stages is None else 2 + 2 * sum(stages),
            shortcut=draw(st.sampled_from(["none", "A", "B", "C"])),
            width=draw(st.none() | st.integers(8, 512)),
            stages=None if stages is None else tuple(stages),
        ),
        data=DataConfig(
            name=draw(st.sampled_from(["digits", "cifar10", "imagefolder", "synthetic"])),
            root=draw(st.text().filter(lambda text: text.lower() != "none")),
            train_examples=draw(st.none() | positive),
        ),
        optim=OptimConfig(
            lr=draw(number),
            iterations=draw(st.none() | positive),
            milestones=tuple(sorted(draw(st.lists(st.floats(0, 1), max_size=4)))),
            global_batch_size=world_size * draw(positive),
            changes=tuple(change(epoch, "weight_decay", draw(number)) for epoch in sorted(draw(st.sets(positive, max_size=3)))),
        ),
        precision=draw(st.sampled_from(["fp32", "tf32", "bf16", "fp16"])),
        seed=draw(st.integers(0, 2**80)),
        world_size=world_size,
    )


@pytest.mark.slow
@thorough
@given(specs())
def test_a_spec_survives_flattening_and_json(spec: RunSpec) -> None:
    assert from_flat(spec.flat()) == spec
    assert from_flat(json.loads(json.dumps(spec.flat()))) == spec


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_found_by_name(name: str) -> None:
    assert preset(name) is PRESETS[name]


def test_an_unknown_preset_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=rf"^preset=mnist: accepted: {', '.join(PRESETS)}$"):
        preset("mnist")


def test_changes_survive_the_second_equals_sign_of_a_command_line() -> None:
    given = assignments("--set", ["optim.changes=4:lr=0.04,6:weight_decay=1e-3", "lr=0.2"])
    assert override(DEFAULT, given).optim.changes == ("4:lr=0.04", "6:weight_decay=0.001")


def test_override_takes_dotted_and_short_names_and_keeps_the_rest() -> None:
    changed = override(DEFAULT, {"optim.lr": 0.5, "depth": 32, "seed": 7})
    assert changed.flat() == DEFAULT.flat() | {"optim.lr": 0.5, "model.depth": 32, "seed": 7}


def test_rules_between_fields_see_only_the_final_values() -> None:
    changed = override(DEFAULT, {"world_size": 3, "global_batch_size": 129, "depth": 14, "stages": "2,2,2"})
    assert (changed.world_size, changed.optim.global_batch_size, paper_network(changed).stages) == (3, 129, (2, 2, 2))


def test_an_ambiguous_short_name_lists_its_meanings() -> None:
    spec = replace(DEFAULT, model=Rated())
    with pytest.raises(ConfigError, match=r"^lr: ambiguous; accepted: model\.lr, optim\.lr$"):
        override(spec, {"lr": 1})


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("optim.epochs", "3", 3),
        ("optim.epochs", 3.0, 3),
        ("optim.epochs", "9007199254740993", 9007199254740993),
        ("optim.lr", "1e-3", 1e-3),
        ("optim.lr", 1, 1.0),
        ("optim.nesterov", "True", True),
        ("optim.nesterov", "no", False),
        ("optim.iterations", "none", None),
        ("model.shortcut", "none", "none"),
        ("model.stages", "3,4,6,3", (3, 4, 6, 3)),
        ("model.stages", "(3, 4, 6, 3)", (3, 4, 6, 3)),
        ("model.stages", "None", None),
        ("optim.milestones", "0.25", (0.25,)),
        ("optim.milestones", "", ()),
        ("optim.changes", "4:lr=4e-2,6:weight_decay=1e-3", ("4:lr=0.04", "6:weight_decay=0.001")),
        ("optim.changes", "", ()),
        ("data.root", "~/x", "~/x"),
    ],
)
def test_text_from_a_command_line_becomes_the_fields_type(name: str, text: Any, value: Any) -> None:
    converted = convert(name, text)
    assert (converted, type(converted)) == (value, type(value))


@pytest.mark.parametrize(
    ("config", "depth"),
    [
        (ModelConfig(stages=(1, 2, 3, 4), depth=22), 22),
        (ModelConfig(family="imagenet", stages=(3, 8, 3), depth=44, block="bottleneck"), 44),
    ],
)
def test_any_stage_list_is_accepted_if_it_makes_the_depth(config: ModelConfig, depth: int) -> None:
    assert config.resolved().stages == config.stages
    assert config.depth == depth


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (ModelConfig(depth=20), (16, (3, 3, 3), 10, 3)),
        (ModelConfig(depth=29, block="bottleneck"), (16, (3, 3, 3), 10, 3)),
        (ModelConfig(family="imagenet", depth=50, block="bottleneck"), (64, (3, 4, 6, 3), 1000, 3)),
    ],
)
def test_open_fields_resolve_to_the_papers_values(config: ModelConfig, expected: tuple[Any, ...]) -> None:
    resolved = config.resolved()
    assert (resolved.width, resolved.stages, resolved.num_classes, resolved.in_channels) == expected
    assert resolved.resolved() == resolved


def test_a_network_that_contradicts_the_data_set_is_refused() -> None:
    assert ModelConfig().resolved(num_classes=7, in_channels=1) == ModelConfig(num_classes=7, in_channels=1).resolved()
    with pytest.raises(ConfigError, match=r"^model\.num_classes=10: the data set has 7$"):
        ModelConfig(num_classes=10).resolved(num_classes=7)


@pytest.mark.parametrize(
    ("optim", "images", "steps", "epochs"),
    [
        (OptimConfig(epochs=3, global_batch_size=32), 128, 12, 3),
        (OptimConfig(epochs=3, global_batch_size=32), 130, 12, 3),  # the rest of an epoch is not a step
        (OptimConfig(iterations=9, global_batch_size=32), 130, 9, 3),  # the last epoch is partial
        (OptimConfig(iterations=64_000), 50_000, 64_000, 165),  # the paper: 390 steps an epoch
    ],
)
def test_steps_and_epochs_count_full_batches(optim: OptimConfig, images: int, steps: int, epochs: int) -> None:
    assert (optim.total_steps(images), optim.total_epochs(images)) == (steps, epochs)
