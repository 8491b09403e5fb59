"""Networks go to torchvision and come back with the same outputs; what cannot is refused."""

from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

from resnet_core import ConfigError, ModelConfig, build_model
from resnet_core.model.torchvision import from_torchvision, to_torchvision

IMAGES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
DEPTHS = [18, 50, *(pytest.param(depth, marks=[pytest.mark.slow, pytest.mark.nightly]) for depth in (34, 101, 152))]


def like_torchvision(depth: int, **options: Any) -> ModelConfig:
    block: Any = {"block": "basic"} if depth < 50 else {"block": "bottleneck", "stride_in": "3x3"}
    return ModelConfig(**{"family": "imagenet", "depth": depth, "shortcut": "B", "num_classes": 7} | block | options)


def randomised(net: Any) -> Any:
    """Scales, shifts and statistics unlike the initial ones, so that a mix-up shows. Convolutions are random already."""
    generator = torch.Generator().manual_seed(0)
    for tensor in (*net.parameters(), *net.buffers()):
        if tensor.ndim == 1:
            tensor.data.uniform_(0.5, 1.5, generator=generator)
        elif tensor.ndim == 0:
            tensor.fill_(3)
    return net.eval()


def assert_same_outputs(one: nn.Module, other: nn.Module) -> None:
    with torch.inference_mode():
        expected: Tensor = one(IMAGES)
        torch.testing.assert_close(other(IMAGES), expected, rtol=1e-5, atol=1e-5)
    assert expected.std() > 0.01, "outputs that tell networks apart"


@pytest.mark.slow
@pytest.mark.parametrize("depth", DEPTHS)
def test_ours_and_torchvisions_agree_both_ways(depth: int) -> None:
    ours = randomised(build_model(like_torchvision(depth)))
    theirs = to_torchvision(ours)
    assert isinstance(theirs, torchvision.models.ResNet)
    assert_same_outputs(ours, theirs)
    back = from_torchvision(theirs, depth=depth)
    assert back.config == ours.config
    assert all(torch.equal(a, b) for a, b in zip(ours.state_dict().values(), back.state_dict().values(), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("depth", DEPTHS)
def test_torchvisions_own_network_comes_over(depth: int) -> None:
    theirs = randomised(getattr(torchvision.models, f"resnet{depth}")(weights=None, num_classes=11))
    ours = from_torchvision(theirs.state_dict(), depth=depth).eval()
    assert ours.config == like_torchvision(depth, num_classes=11).resolved()
    assert_same_outputs(theirs, ours)


def test_copies_train_by_themselves() -> None:
    ours = build_model(like_torchvision(18, bn_momentum=0.3)).train()
    theirs = to_torchvision(ours)
    assert theirs.training
    assert all(p.requires_grad for p in theirs.parameters())
    assert theirs.bn1.momentum == 0.3
    assert from_torchvision(theirs, depth=18).config.bn_momentum == 0.3
    before = ours.fc.bias.detach().clone()
    with torch.no_grad():
        theirs.fc.bias += 1
    assert torch.equal(ours.fc.bias, before)


def test_weights_from_before_batches_were_counted_come_over() -> None:
    state = torchvision.models.resnet18(weights=None).state_dict()
    old = {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}
    assert from_torchvision(old, depth=18).bn1.num_batches_tracked == 0


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (ModelConfig(depth=8), "model.family=cifar: torchvision's networks have imagenet"),
        (like_torchvision(18, shortcut="A"), "model.shortcut=A: torchvision's networks have B"),
        (like_torchvision(18, shortcut="C"), "model.shortcut=C: torchvision's networks have B"),
        (like_torchvision(18, shortcut="none"), "model.shortcut=none: torchvision's networks have B"),
        (like_torchvision(18, width=32), "model.width=32: torchvision's networks have 64"),
        (like_torchvision(18, in_channels=1), "model.in_channels=1: torchvision's networks have 3"),
        (like_torchvision(50, stride_in="1x1"), "model.stride_in=1x1: torchvision's networks have 3x3"),
        (like_torchvision(10, stages=(1, 1, 1, 1)), r"model.stages=\[1, 1, 1, 1\]: torchvision's networks have those of depths 18"),
    ],
)
def test_what_torchvision_has_not_is_refused_in_one_line(config: ModelConfig, message: str) -> None:
    with torch.device("meta"):
        net = build_model(config)
    with pytest.raises(ConfigError, match=f"^{message}") as error:
        to_torchvision(net)
    assert "\n" not in str(error.value)


def state(**changes: Tensor | None) -> dict[str, Tensor]:
    with torch.device("meta"):
        found = torchvision.models.resnet18(weights=None).state_dict()
    return {name: tensor for name, tensor in (found | changes).items() if tensor is not None}


@pytest.mark.parametrize(
    ("source", "depth", "message"),
    [
        (state(), 20, "depth=20: accepted: 18, 34, 50, 101, 152"),
        ({}, 18, "source=fc.weight: missing"),
        (state(), 34, "source=layer1.2.bn1.bias: missing; accepted: torchvision's resnet34 or its state dict"),
        (state(odd=torch.zeros(1)), 18, "source=odd: unknown"),
        (state(**{"conv1.weight": torch.zeros(64, 1, 7, 7)}), 18, "source=conv1.weight: has shape 64×1×7×7, not 64×3×7×7"),
        (state(**{"bn1.bias": None}), 18, "source=bn1.bias: missing"),
    ],
    ids=["depth", "empty", "other depth", "unknown", "shape", "missing"],
)
def test_a_source_that_is_no_such_network_is_refused_in_one_line(source: Any, depth: int, message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{message}") as error:
        from_torchvision(source, depth=depth)
    assert "\n" not in str(error.value)


def test_strides_that_a_state_dict_does_not_tell_of_are_refused() -> None:
    with torch.device("meta"):
        source = build_model(like_torchvision(50, stride_in="1x1"))
    with pytest.raises(ConfigError, match=r"^source=layer2\.0\.conv1: has stride \(2, 2\), not \(1, 1\)"):
        from_torchvision(source, depth=50)
