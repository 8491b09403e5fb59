"""Networks of torchvision and timm train by their name, with their own identity, and what is wrong is said in one line."""

from dataclasses import replace
from typing import Any

import pytest
import torch
import torchvision

from resnet_core import ConfigError, ModelConfig, RunSpec, build_model, build_network, fingerprint, measure_cost, override, preset
from resnet_core import identity as identities
from resnet_core.data.datasets import load_dataset, resolve
from resnet_core.model.library import AUXILIARY
from tests.helpers.training_runs import learned, train, weights_differ

SMOKE = override(preset("smoke"), {"data.image_size": 32, "train_examples": 64})
SMALL = ["torchvision:shufflenet_v2_x0_5", "timm:resnet10t"]


def named(name: str, **changes: Any) -> RunSpec:
    return override(SMOKE, {"model.name": name} | changes)


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_a_network_by_name_trains_and_resumes_to_the_same_weights(name: str) -> None:
    spec = named(name, probes=("responses", "gradients"))
    results, checkpoints = train(spec)
    _, (resumed,) = train(spec, restore=checkpoints[0])
    assert not weights_differ(checkpoints[1]["model"], resumed["model"])
    assert learned(checkpoints[1]["history"]) == learned(resumed["history"])
    assert {row["probe"] for row in resumed["probes"]} == {"responses", "gradients"}
    net: Any = build_network(ModelConfig(name=name), 32, num_classes=10)
    assert results[-1].metrics["parameters"] == sum(p.numel() for p in net.parameters())


def test_the_network_is_the_library_s() -> None:
    torch.manual_seed(0)
    ours = build_network(ModelConfig(name="torchvision:resnet18"), 32, num_classes=7)
    torch.manual_seed(0)
    theirs = torchvision.models.resnet18(num_classes=7)
    assert not weights_differ(ours.state_dict(), theirs.state_dict())


def test_costs_are_those_of_the_same_network_of_he() -> None:
    by_name = measure_cost(ModelConfig(name="torchvision:resnet18"), 224, num_classes=1000)
    ours = measure_cost(ModelConfig(family="imagenet", depth=18, shortcut="B"), 224)
    assert (by_name.parameters, by_name.flops, by_name.activation_bytes) == (ours.parameters, ours.flops, ours.activation_bytes)


def test_torchvision_sees_a_gray_image_as_three_equal_channels() -> None:
    torch.manual_seed(0)
    gray = build_network(ModelConfig(name="torchvision:shufflenet_v2_x0_5"), 32, in_channels=1).eval()
    torch.manual_seed(0)
    color = build_network(ModelConfig(name="torchvision:shufflenet_v2_x0_5"), 32, in_channels=3).eval()
    image = torch.rand(2, 1, 32, 32)
    assert torch.equal(gray(image), color(image.repeat(1, 3, 1, 1)))


def test_the_version_of_the_library_is_part_of_these_runs_identity_only(monkeypatch: pytest.MonkeyPatch) -> None:
    specs = [SMOKE, named(SMALL[0]), named(SMALL[1])]

    def identities_with(version: str) -> list[str]:
        monkeypatch.setattr(identities, "version", lambda _: version)
        return [fingerprint(spec, data_version="1") for spec in specs]

    before, after, build = (identities_with(version) for version in ("0.26.0", "0.27.0", "0.26.0+cpu"))
    assert before[0] == after[0]
    assert len({*before, *after}) == 5
    assert build == before


def test_a_preset_s_network_gives_way_to_a_name_and_returns_with_none() -> None:
    levels = [override(SMOKE, {"model.name": level}) for level in ("torchvision:resnet18", "torchvision:resnet34", "none")]
    assert [spec.model for spec in levels] == [
        ModelConfig(name="torchvision:resnet18"),
        ModelConfig(name="torchvision:resnet34"),
        SMOKE.model,
    ]


def test_the_short_name_is_the_data_set_s() -> None:
    assert override(RunSpec(), {"name": "synthetic"}).data.name == "synthetic"


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "form": ({"model.name": "resnet18"}, r"^model.name=resnet18: accepted: torchvision:NAME or timm:NAME, such as"),
    "fields of He et al.": (
        {"model.name": "torchvision:resnet18", "depth": 20, "shortcut": "B"},
        r"^model.shortcut=B: is a field of the networks of He et al.; accepted with model.name=torchvision:resnet18: "
        r"shortcut=A, the default$",
    ),
    "several fields of He et al.": (
        {"model.name": "torchvision:resnet18", "depth": 8, "shortcut": "B"},
        r"^model.depth=8: .*: depth=20 shortcut=A, the defaults$",
    ),
    "unknown of torchvision": (
        {"model.name": "torchvision:resnet19"},
        r"^model.name=torchvision:resnet19: no network of torchvision; did you mean torchvision:resnet\d+ or",
    ),
    "unknown of timm": (
        {"model.name": "timm:resnet50x"},
        r"^model.name=timm:resnet50x: no network of timm; did you mean timm:resnet50",
    ),
    "size of the images": (
        {"model.name": "torchvision:vit_b_16"},
        r"^torchvision:vit_b_16, images \(2, 3, 32, 32\): AssertionError: Wrong image height! Expected 224 but got 32!$",
    ),
    "recomputed activations": (
        {"model.name": "torchvision:resnet18", "checkpoint_activations": True},
        r"^checkpoint_activations=true: the module of torchvision:resnet18 has no attribute",
    ),
    "channels": ({"model.name": "torchvision:resnet18", "in_channels": 4}, r"^model.in_channels=4: the data set has 3$"),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", REFUSED)
def test_a_wrong_name_is_refused_in_one_line_before_training(kind: str) -> None:
    changes, message = REFUSED[kind]
    with pytest.raises(ConfigError, match=message):
        resolve(override(SMOKE, changes), load_dataset(SMOKE.data))


@pytest.mark.slow
@pytest.mark.parametrize("name", AUXILIARY)
def test_auxiliary_outputs_of_torchvision_are_left_out(name: str) -> None:
    assert measure_cost(ModelConfig(name=f"torchvision:{name}"), 96).flops > 0


def test_a_number_of_channels_that_torchvision_lacks_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^model.in_channels=4: torchvision's networks take color images; accepted: 3, or 1"):
        build_network(ModelConfig(name="torchvision:resnet18"), 32, in_channels=4)
    assert build_network(ModelConfig(name="timm:resnet10t"), 32, in_channels=4)(torch.zeros(2, 4, 32, 32)).shape == (2, 10)


def test_a_library_that_is_missing_is_named_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "timm", None)
    with pytest.raises(
        ConfigError, match=r'^model.name=timm:resnet50d: timm cannot be imported \(.*\); accepted: pip install "resnet-ab'
    ):
        build_network(ModelConfig(name="timm:resnet50d"), 32)


def test_a_network_of_he_is_not_built_by_name() -> None:
    with pytest.raises(
        ConfigError, match=r"^model.name=timm:resnet10t: is no network of He et al.; call resnet_core.build_network$"
    ):
        build_model(replace(ModelConfig(), name="timm:resnet10t"))
