"""Costs are those of the network itself, and widths are chosen to match them."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from resnet_core import ConfigError, Cost, ModelConfig, build_model, measure_cost
from resnet_core.model.cost import matched, measure_parts

NETWORKS = [
    ModelConfig(depth=20),
    ModelConfig(depth=32, width=8, shortcut="none"),
    ModelConfig(depth=29, block="bottleneck", shortcut="C"),
    ModelConfig(depth=16, stages=(1, 4, 2), shortcut="B", num_classes=3, in_channels=1),
    ModelConfig(family="imagenet", depth=18, shortcut="B"),
    ModelConfig(family="imagenet", depth=50, block="bottleneck", shortcut="B", width=8, num_classes=2),
]


@pytest.mark.parametrize(
    ("depth", "stride_in", "parameters", "flops"),
    [(18, "1x1", 11_689_512, 1_814_073_344), (34, "1x1", 21_797_672, 3_663_761_408), (50, "3x3", 25_557_032, 4_089_184_256)],
)
def test_cost_is_what_torchvision_documents_of_its_own(depth: int, stride_in: Any, parameters: int, flops: int) -> None:
    """1.81, 3.66 and 4.09 GFLOPS in its table of weights."""
    block: Any = "basic" if depth < 50 else "bottleneck"
    cost = measure_cost(ModelConfig(family="imagenet", depth=depth, block=block, shortcut="B", stride_in=stride_in), 224)
    assert (cost.parameters, cost.flops) == (parameters, flops)


def counted(config: ModelConfig, image_size: int) -> Cost:
    """The cost by computing the whole network in training, with real numbers."""
    net = build_model(config)
    flops = 0

    def count(module: Any, inputs: Any, output: torch.Tensor) -> None:
        nonlocal flops
        flops += output.numel() // 2 * module.weight[0].numel()

    for module in net.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.register_forward_hook(count)

    def kept(images: int) -> int:
        known = {tensor.data_ptr() for tensor in (*net.parameters(), *net.buffers())}
        saved: dict[int, torch.Tensor] = {}  # holds them, so that no address is used twice

        def save(tensor: torch.Tensor) -> torch.Tensor:
            saved.setdefault(tensor.untyped_storage().data_ptr(), tensor)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
            net(torch.randn(images, net.conv1.in_channels, image_size, image_size))
        return sum(tensor.untyped_storage().nbytes() for address, tensor in saved.items() if address not in known)

    two = kept(2)
    flops, of_two = 0, flops
    per_image = kept(3) - two  # what does not depend on the batch, such as its mean, cancels
    return Cost(sum(p.numel() for p in net.parameters()), of_two, per_image)


@pytest.mark.slow
@pytest.mark.parametrize("config", NETWORKS, ids=lambda config: f"{config.family} {config.depth}{config.shortcut}")
def test_the_predicted_cost_is_that_of_a_real_training_step(config: ModelConfig) -> None:
    assert measure_cost(config, 40) == counted(config, 40)


@pytest.mark.parametrize("config", NETWORKS, ids=lambda config: f"{config.family} {config.depth}{config.shortcut}")
def test_parts_are_the_children_in_order_and_make_up_the_whole(config: ModelConfig) -> None:
    parts, cost = measure_parts(config, 40), measure_cost(config, 40)
    with torch.device("meta"):
        assert [part.name for part in parts] == [name for name, _ in build_model(config).named_children()]
    assert sum(part.cost.parameters for part in parts) == cost.parameters
    assert sum(part.cost.flops for part in parts) == cost.flops
    assert sum(part.cost.activation_bytes for part in parts) == cost.activation_bytes


def test_activations_count_those_worked_out_by_hand() -> None:
    """A block keeps the results of its two convolutions and of its two rectifications, and so does the stem of its one."""
    numbers = 3 * 64 + 2 * 8 * 64 + 4 * 8 * 64 + 8  # image, stem, one block of 8 channels and 8×8 pixels, pooled features
    assert measure_cost(ModelConfig(depth=4, stages=(1,), width=8), 8).activation_bytes == 4 * numbers


@pytest.mark.slow
@pytest.mark.parametrize(
    "config", [ModelConfig(depth=20), ModelConfig(depth=29, block="bottleneck"), ModelConfig(family="imagenet", depth=34)]
)
def test_identity_shortcuts_cost_nothing_and_projections_do(config: ModelConfig) -> None:
    plain, a, b, c = (measure_cost(replace(config, shortcut=option), 32) for option in ("none", "A", "B", "C"))
    assert plain == a
    assert a.parameters < b.parameters < c.parameters
    assert a.flops < b.flops < c.flops
    assert a.activation_bytes < b.activation_bytes < c.activation_bytes


def test_measuring_works_where_gradients_are_off() -> None:
    with torch.inference_mode():
        off = measure_cost(ModelConfig(depth=8, width=9), 11)
    assert off == counted(ModelConfig(depth=8, width=9), 11)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "reference", "quantity"),
    [
        (ModelConfig(depth=20, block="bottleneck", match_flops="basic"), {"block": "basic"}, "flops"),
        (ModelConfig(depth=110, match_flops="bottleneck"), {"block": "bottleneck"}, "flops"),
        (ModelConfig(depth=20, shortcut="A", match_parameters="C"), {"shortcut": "C"}, "parameters"),
        (ModelConfig(depth=20, block="bottleneck", shortcut="B", match_parameters="C"), {"shortcut": "C"}, "parameters"),
        (ModelConfig(depth=29, block="bottleneck", shortcut="C", match_parameters="A"), {"shortcut": "A"}, "parameters"),
        (ModelConfig(family="imagenet", depth=34, match_parameters="C", num_classes=7), {"shortcut": "C"}, "parameters"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_no_width_matches_better_than_the_chosen_one(config: ModelConfig, reference: dict[str, Any], quantity: str) -> None:
    base = replace(config, match_flops=None, match_parameters=None)
    wanted = getattr(measure_cost(replace(base, **reference), 32), quantity)
    found = matched(config, 32).width or 0
    near = range(max(8, found - 2), found + 3)  # more filters always cost more
    distances = {width: abs(getattr(measure_cost(replace(base, width=width), 32), quantity) - wanted) for width in near}
    assert matched(config, 32) == replace(base, width=min(distances, key=distances.__getitem__))


def test_a_network_without_matching_stays_as_it_is() -> None:
    for config in NETWORKS:
        assert matched(config, 32) is config


@pytest.mark.slow
def test_classes_count_in_matching() -> None:
    config = ModelConfig(depth=20, block="bottleneck", match_flops="basic")
    few, many = (matched(replace(config, num_classes=classes), 8).width for classes in (2, 1000))
    assert few is not None
    assert many is not None
    assert many < few, "bottlenecks end in four times as many features"


def test_a_match_out_of_reach_is_refused_in_one_line() -> None:
    config = ModelConfig(depth=20, block="bottleneck", match_flops="basic", num_classes=10**6)
    with pytest.raises(
        ConfigError, match=r"^model\.match_flops=basic: no width of 8 or more comes within 10 %; 8 makes [\d,]+ flops, "
    ) as e:
        matched(config, 8)
    assert "\n" not in str(e.value)


def test_matched_networks_can_be_measured() -> None:
    config = ModelConfig(depth=20, block="bottleneck", match_flops="basic")
    assert measure_cost(config, 32) == measure_cost(matched(config, 32), 32)
