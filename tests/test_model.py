"""Networks are those of He et al. 2015: their size, their shortcuts, and torchvision's outputs for torchvision's weights."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

from resnet_core import Cost, ModelConfig, build_model, measure_cost
from resnet_core.model import BasicBlock, Bottleneck, ResNet, make_shortcut

TINY = ModelConfig(depth=14, width=8)


def imagenet(depth: int, shortcut: Any = "B", stride_in: Any = "1x1") -> ModelConfig:
    block: Any = "basic" if depth < 50 else "bottleneck"
    return ModelConfig(family="imagenet", depth=depth, block=block, shortcut=shortcut, stride_in=stride_in)


@pytest.mark.parametrize(
    ("depth", "millions"),
    [(20, "0.27"), (32, "0.46"), (44, "0.66"), (56, "0.85"), (110, "1.7"), pytest.param(1202, "19.4", marks=pytest.mark.slow)],
)
def test_cifar_networks_have_the_papers_parameters(depth: int, millions: str) -> None:
    """Table 6, option A."""
    digits = len(millions.partition(".")[2])
    assert f"{measure_cost(ModelConfig(depth=depth), 32).parameters / 1e6:.{digits}f}" == millions


@pytest.mark.parametrize(
    ("config", "printed"),
    [
        (imagenet(18, "A"), 1.8),
        (imagenet(34, "A"), 3.6),
        (imagenet(50), 3.8),
        (imagenet(101), 7.6),
        (imagenet(152), 11.3),
    ],
)
def test_imagenet_networks_have_the_papers_multiply_adds(config: ModelConfig, printed: float) -> None:
    """Table 1, whose basic blocks have option A and bottlenecks option B. It cuts some digits and rounds others: 3.86 is 3.8."""
    billions = measure_cost(config, 224).flops / 1e9
    assert printed in (round(billions, 1), math.floor(billions * 10) / 10)


@pytest.mark.parametrize(
    ("config", "cost"),
    [  # what torchvision documents of its own: 1.81, 3.66 and 4.09 GFLOPS
        (imagenet(18), Cost(11_689_512, 1_814_073_344)),
        (imagenet(34), Cost(21_797_672, 3_663_761_408)),
        (imagenet(50, stride_in="3x3"), Cost(25_557_032, 4_089_184_256)),
    ],
)
def test_cost_is_that_of_torchvisions_networks(config: ModelConfig, cost: Cost) -> None:
    assert measure_cost(config, 224) == cost


@pytest.mark.parametrize("config", [ModelConfig(depth=20), ModelConfig(depth=29, block="bottleneck"), imagenet(34)])
def test_a_plain_network_is_the_residual_one_without_additions(config: ModelConfig) -> None:
    plain, a, b, c = (measure_cost(replace(config, shortcut=option), 32) for option in ("none", "A", "B", "C"))
    assert plain == a
    assert a.parameters < b.parameters < c.parameters
    assert a.flops < b.flops < c.flops


@pytest.mark.parametrize(
    "config",
    [TINY, ModelConfig(depth=29, block="bottleneck"), imagenet(34), imagenet(50), ModelConfig(stages=(1, 2, 3, 1), depth=16)],
)
def test_depth_counts_the_weighted_layers_of_the_main_path(config: ModelConfig) -> None:
    with torch.device("meta"):
        layers = [
            n for n, m in build_model(config).named_modules() if isinstance(m, (nn.Conv2d, nn.Linear)) and "downsample" not in n
        ]
    assert len(layers) == config.depth


def test_option_a_is_every_second_pixel_and_zeros_for_new_channels_without_parameters() -> None:
    shortcut = make_shortcut("A", 2, 5, 2)
    assert shortcut is not None
    x = torch.tensor([[[[1.0, 2, 3], [4, 5, 6], [7, 8, 9]], [[-1, -2, -3], [-4, -5, -6], [-7, -8, -9]]]])
    zeros = [[0, 0], [0, 0]]
    assert shortcut(x).tolist() == [[[[1, 3], [7, 9]], [[-1, -3], [-7, -9]], zeros, zeros, zeros]]
    assert not list(shortcut.parameters())
    assert not list(shortcut.buffers())


def test_option_c_projects_by_a_strided_convolution_with_batchnorm() -> None:
    shortcut = make_shortcut("C", 2, 2, 2)
    assert shortcut is not None
    weights = {"0.weight": torch.tensor([[1.0, 10.0], [0.0, -1.0]]).view(2, 2, 1, 1), "1.running_mean": torch.ones(2)}
    shortcut.eval().load_state_dict(shortcut.state_dict() | weights)
    x = torch.arange(8.0).view(1, 2, 2, 2)
    torch.testing.assert_close(shortcut(x), torch.tensor([0 + 10 * 4 - 1.0, -4 - 1.0]).view(1, 2, 1, 1), rtol=1e-4, atol=0)


@pytest.mark.parametrize("block", [BasicBlock, Bottleneck])
@pytest.mark.parametrize(("option", "stride"), [("none", 1), ("none", 2), ("A", 1), ("A", 2), ("B", 1)])
def test_a_block_with_a_silent_residual_passes_on_its_shortcut(block: Any, option: Any, stride: int) -> None:
    channels = 8 * stride
    incoming = 8 if stride == 2 else channels * block.expansion
    net: BasicBlock | Bottleneck = block(incoming, channels, stride, ModelConfig(shortcut=option))
    nn.init.zeros_((net.bn2 if isinstance(net, BasicBlock) else net.bn3).weight)
    x = torch.randn(2, incoming, 4, 4, generator=torch.Generator().manual_seed(0))
    expected = torch.zeros(2, channels * block.expansion, 4 // stride, 4 // stride)
    if option != "none":
        expected[:, :incoming] = x[:, :, ::stride, ::stride].relu()
    torch.testing.assert_close(net(x), expected)


def projections(config: ModelConfig) -> list[str]:
    with torch.device("meta"):
        net = build_model(config)
    return [name for name, m in net.named_modules() if name.endswith("downsample") and any(True for _ in m.parameters())]


def test_b_projects_only_where_the_size_changes_c_on_every_block() -> None:
    everywhere = [f"layer{stage}.{block}.downsample" for stage in (1, 2, 3) for block in (0, 1)]
    changes = ["layer2.0.downsample", "layer3.0.downsample"]
    found = {option: projections(replace(TINY, shortcut=option)) for option in ("none", "A", "B", "C")}
    assert found == {"none": [], "A": [], "B": changes, "C": everywhere}
    bottlenecks = projections(ModelConfig(shortcut="B", depth=20, block="bottleneck"))
    assert bottlenecks == ["layer1.0.downsample", *changes], "channels grow in the first bottleneck, too"


@pytest.mark.parametrize(
    ("config", "size", "shapes"),
    [
        (ModelConfig(depth=8), 32, [(16, 32), (32, 16), (64, 8)]),
        (ModelConfig(depth=11, block="bottleneck", in_channels=1), 28, [(64, 28), (128, 14), (256, 7)]),
        (imagenet(18), 224, [(64, 56), (128, 28), (256, 14), (512, 7)]),
        (imagenet(50), 224, [(256, 56), (512, 28), (1024, 14), (2048, 7)]),
        (ModelConfig(stages=(1, 1), depth=6, width=8, num_classes=3), 9, [(8, 9), (16, 5)]),
    ],
)
def test_stages_double_the_filters_and_halve_the_image(config: ModelConfig, size: int, shapes: list[tuple[int, int]]) -> None:
    config = config.resolved()
    seen: list[tuple[int, int]] = []
    with torch.device("meta"):
        net = build_model(config)
        for name in net.stages:
            net.get_submodule(name).register_forward_hook(lambda _, __, out: seen.append((out.shape[1], out.shape[2])))
        out = net(torch.empty(2, config.in_channels or 0, size, size))
    assert seen == shapes
    assert out.shape == (2, config.num_classes)


@pytest.mark.parametrize(("stride_in", "strides"), [("1x1", (2, 1, 1)), ("3x3", (1, 2, 1))])
def test_the_stride_of_a_bottleneck_is_where_the_field_says(stride_in: Any, strides: tuple[int, ...]) -> None:
    block = Bottleneck(8, 8, 2, ModelConfig(stride_in=stride_in))
    assert tuple(conv.stride[0] for conv in (block.conv1, block.conv2, block.conv3)) == strides


@pytest.mark.parametrize(
    "config", [ModelConfig(depth=8, width=8, shortcut="C"), ModelConfig(depth=11, width=8, block="bottleneck", shortcut="B")]
)
def test_batchnorm_follows_every_convolution_which_has_no_bias(config: ModelConfig) -> None:
    net, executed = build_model(config), list[nn.Module]()
    for module in net.modules():
        if not list(module.children()) and not isinstance(module, nn.Identity):
            module.register_forward_hook(lambda module, _, __: executed.append(module))
    net(torch.zeros(2, 3, 8, 8))
    *pairs, last = executed
    assert isinstance(last, nn.Linear)
    assert last.bias is not None
    for conv, bn in zip(pairs[::2], pairs[1::2], strict=True):
        assert isinstance(conv, nn.Conv2d)
        assert conv.bias is None
        assert isinstance(bn, nn.BatchNorm2d)
        assert bn.num_features == conv.out_channels


def randomise(net: nn.Module) -> nn.Module:
    """Weights and statistics unlike the initial ones, so that a mix-up shows."""
    generator = torch.Generator().manual_seed(0)
    for tensor in (*net.parameters(), *net.buffers()):
        if tensor.ndim == 1:
            tensor.data.uniform_(0.5, 1.5, generator=generator)
    return net.eval()


@pytest.mark.parametrize(
    ("config", "architecture"),
    [(imagenet(18), torchvision.models.resnet18), (imagenet(50, stride_in="3x3"), torchvision.models.resnet50)],
    ids=["18", "50"],
)
@torch.inference_mode()
def test_option_b_and_torchvision_exchange_weights_and_agree(config: ModelConfig, architecture: Any) -> None:
    theirs, ours = randomise(architecture(weights=None)), build_model(config).eval()
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    ours.load_state_dict(theirs.state_dict())
    expected: Tensor = theirs(images)
    torch.testing.assert_close(ours(images), expected, rtol=1e-5, atol=1e-5)
    theirs.load_state_dict(ours.state_dict())
    assert expected.std() > 0.1


def test_weights_follow_from_the_global_seed_and_he() -> None:
    def make(seed: int) -> ResNet:
        torch.manual_seed(seed)
        return build_model(ModelConfig(depth=8, width=32))

    net, same, other = make(0), make(0), make(1)
    assert torch.equal(net.conv1.weight, same.conv1.weight)
    assert not torch.equal(net.conv1.weight, other.conv1.weight)
    for conv in (m for m in net.modules() if isinstance(m, nn.Conv2d)):
        fan_out = conv.out_channels * 9
        assert conv.weight.std().item() == pytest.approx(math.sqrt(2 / fan_out), rel=0.1)
