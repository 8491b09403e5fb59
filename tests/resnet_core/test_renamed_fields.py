"""Runs and command lines with former names of fields mean what they meant, and no fingerprint moves with a name."""

import json
from typing import Any

import pytest

from resnet_core import PRESETS, ConfigError, RunSpec, fingerprint, override
from resnet_core.overrides import assignments, convert, field_name, from_flat
from resnet_core.renamed_fields import NAMES, VALUES, current_fields, identity_name, identity_value

STREAMED = {"data.name": "imagefolder", "data.root": "/images", "data.stream": True, "data.image_size": 32}
RECORDED: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "velocity": ({"optim.velocity": "updates"}, {"optim.momentum_form": "caffe"}, "12b9710d047a243a7664"),
    "statistics": ({"optim.bn_statistics": "averaged"}, {"optim.bn_recalibration": True}, "1b49bce6bb5664aebe2f"),
    "mean": ({"data.normalise": "pixel"}, {"data.normalize": "pixel"}, "9a10255c627511d83468"),
    "colors": (STREAMED | {"data.colour": True}, STREAMED | {"data.color_augmentation": True}, "bd5f73ec3f3f62ade713"),
}
"""Fields under former and under current names, with the fingerprint on data version 1 from before the names changed."""


@pytest.mark.parametrize("name", RECORDED)
def test_former_and_current_names_are_the_same_run_with_the_fingerprint_of_before(name: str) -> None:
    former, current, recorded = RECORDED[name]
    assert override(RunSpec(), former) == override(RunSpec(), current) != RunSpec()
    assert fingerprint(override(RunSpec(), current), data_version="1") == recorded


def test_a_stored_run_under_former_names_is_read_from_json_and_from_text() -> None:
    spec = override(PRESETS["cifar10"], {"momentum_form": "caffe", "bn_recalibration": True, "normalize": "pixel"})
    stored = {identity_name(name): identity_value(name, value) for name, value in spec.flat().items()}
    assert {*NAMES} <= stored.keys(), "the stored form is the former one"
    assert (stored["optim.velocity"], stored["optim.bn_statistics"]) == ("updates", "averaged")
    assert from_flat(json.loads(json.dumps(stored))) == spec
    assert current_fields(stored) == spec.flat()


def test_the_command_line_takes_former_names_and_values() -> None:
    given = assignments("--set", ["velocity=updates", "optim.bn_statistics=averaged", "optim.weight_decay=0"])
    spec = override(RunSpec(), given)
    assert (spec.optim.momentum_form, spec.optim.bn_recalibration) == ("caffe", True)
    assert convert(field_name("bn_statistics"), "running") is False


def test_a_field_under_both_names_is_named_twice() -> None:
    with pytest.raises(ConfigError, match="is named twice"):
        assignments("--set", ["velocity=updates", "momentum_form=caffe"])
    with pytest.raises(ConfigError, match="is named twice"):
        override(RunSpec(), {"optim.velocity": "updates", "momentum_form": "caffe"})


def test_messages_name_current_fields_and_values_only() -> None:
    with pytest.raises(ConfigError) as caught:
        override(RunSpec(), {"velocity": "x"})
    assert str(caught.value) == "optim.momentum_form=x: accepted: pytorch, caffe"


def test_the_table_names_fields_that_exist() -> None:
    fields = RunSpec().flat()
    assert {*NAMES.values(), *VALUES} <= fields.keys()
    assert not NAMES.keys() & fields.keys()
