"""Networks are those of He et al. 2015: their layers, their shortcuts, their initial weights."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from resnet_core import ConfigError, ModelConfig, build_model
from resnet_core.model.network import BasicBlock, Bottleneck, ResNet, ZeroPad, make_shortcut

TINY = ModelConfig(depth=14, width=8)


def imagenet(depth: int, shortcut: Any = "B", stride_in: Any = "1x1") -> ModelConfig:
    block: Any = "basic" if depth < 50 else "bottleneck"
    return ModelConfig(family="imagenet", depth=depth, block=block, shortcut=shortcut, stride_in=stride_in)


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


@pytest.mark.parametrize("block", ["basic", "bottleneck"])
def test_with_a_zero_initial_scale_every_block_starts_as_its_shortcut(block: Any) -> None:
    net = build_model(ModelConfig(depth=20, width=8, block=block, shortcut="A", zero_init_residual=True))
    x = torch.randn(2, 8, 4, 4, generator=torch.Generator().manual_seed(0)).relu()
    for name in net.stages:
        out = net.get_submodule(name)(x)
        stride = 1 if name == "layer1" else 2
        expected = F.pad(x[:, :, ::stride, ::stride], (0, 0, 0, 0, 0, out.shape[1] - x.shape[1]))
        torch.testing.assert_close(out, expected, rtol=0, atol=0)
        x = out
    bns = {name: m for name, m in net.named_modules() if isinstance(m, nn.BatchNorm2d)}
    last = "bn2" if block == "basic" else "bn3"
    assert all((m.weight == (0 if name.endswith(last) else 1)).all() for name, m in bns.items())


@pytest.mark.parametrize("shortcut", ["none", "C"])
def test_every_batchnorm_has_the_momentum_asked_for(shortcut: Any) -> None:
    net = build_model(replace(TINY, shortcut=shortcut, bn_momentum=0.25))
    momenta = {m.momentum for m in net.modules() if isinstance(m, nn.BatchNorm2d)}
    assert momenta == {0.25}
    net(torch.ones(4, 3, 8, 8))
    # One step from the initial variance 1 towards that of the stem's output on constant images, which is not 0 at the border.
    variance = net.conv1(torch.ones(4, 3, 8, 8)).transpose(0, 1).flatten(1).var(1)
    torch.testing.assert_close(net.bn1.running_var, 0.75 + 0.25 * variance)


def test_option_b_projects_by_hand_worked_numbers() -> None:
    """Every second pixel, multiplied by a 1×1 kernel from two channels to three, then normalized."""
    shortcut = make_shortcut("B", 2, 3, 2)
    assert shortcut is not None
    kernel = torch.tensor([[1.0, 0.0], [0.0, 2.0], [1.0, -1.0]]).view(3, 2, 1, 1)
    statistics = {"1.running_mean": torch.tensor([1.0, 0, 0]), "1.running_var": torch.full((3,), 4.0)}
    shortcut.eval().load_state_dict(shortcut.state_dict() | {"0.weight": kernel} | statistics)
    x = torch.tensor([[[[1.0, 9, 3], [9, 9, 9], [5, 9, 7]], [[2.0, 9, 4], [9, 9, 9], [6, 9, 8]]]])
    expected = [[[[0.0, 1], [2, 3]], [[2, 4], [6, 8]], [[-0.5, -0.5], [-0.5, -0.5]]]]  # (Wx - mean) / 2
    torch.testing.assert_close(shortcut(x), torch.tensor(expected), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("config", [TINY, ModelConfig(depth=11, width=8, block="bottleneck"), imagenet(18)], ids=["14", "11", "18"])
def test_a_plain_network_computes_the_residual_one_without_its_additions(
    config: ModelConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A takes no part in the state dict: its weights fit, and with every shortcut replaced by zero its outputs do, too."""
    residual, plain = build_model(replace(config, shortcut="A")).eval(), build_model(replace(config, shortcut="none")).eval()
    plain.load_state_dict(residual.state_dict())
    images = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    expected = plain(images)
    assert not torch.allclose(residual(images), expected)
    residual.maxpool.forward = plain.maxpool.forward = lambda x: x  # type: ignore[method-assign]  # perhaps an Identity, too
    for shortcut in (ZeroPad, nn.Identity):
        monkeypatch.setattr(shortcut, "forward", lambda *_: 0.0)
    expected = plain(images)
    assert torch.equal(residual(images), expected)


def three_steps(net: ResNet, network: nn.Module | None = None, *, bf16: bool = False) -> list[Tensor]:
    """Losses, gradients of every step, and the final weights and statistics."""
    generator = torch.Generator().manual_seed(1)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    seen: list[Tensor] = []
    for _ in range(3):
        images, labels = torch.randn(4, 3, 8, 8, generator=generator), torch.randint(0, 10, (4,), generator=generator)
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            logits = (net if network is None else network)(images)
        loss = F.cross_entropy(logits.float(), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        seen += [loss.detach(), *(p.grad.clone() for p in net.parameters() if p.grad is not None)]
        optimizer.step()
    return seen + list(net.state_dict().values())


def twins(config: ModelConfig) -> tuple[ResNet, ResNet]:
    """The same initial network, without and with checkpointing."""
    keeps, recomputes = build_model(config), build_model(config, checkpoint_activations=True)
    recomputes.load_state_dict(keeps.state_dict())
    return keeps, recomputes


@pytest.mark.slow
@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize(
    "config",
    [
        ModelConfig(depth=32, width=8, shortcut="A"),
        ModelConfig(depth=20, width=8, shortcut="none"),
        ModelConfig(depth=29, width=8, block="bottleneck", shortcut="B", bn_momentum=0.3),
        ModelConfig(depth=20, width=8, block="bottleneck", shortcut="none"),
    ],
    ids=["basic", "basic plain", "bottleneck", "bottleneck plain"],
)
def test_recomputed_activations_change_no_bit_of_training(config: ModelConfig, bf16: bool) -> None:
    """Running statistics included, which computing twice would move twice."""
    keeps, recomputes = twins(config)
    expected, found = three_steps(keeps, bf16=bf16), three_steps(recomputes, bf16=bf16)
    assert len(expected) == len(found)
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
    assert recomputes.state_dict().keys() == keeps.state_dict().keys()
    assert all(m.momentum == config.bn_momentum for m in recomputes.modules() if isinstance(m, nn.BatchNorm2d))


@pytest.mark.slow
def test_recomputation_works_compiled() -> None:
    keeps, recomputes = twins(ModelConfig(depth=8, width=8))
    compiled: Any = torch.compile(recomputes, backend="aot_eager")
    for expected, found in zip(three_steps(keeps), three_steps(recomputes, compiled), strict=True):
        torch.testing.assert_close(found, expected)


def test_recomputation_works_in_data_parallel_training(tmp_path: Path) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        keeps, recomputes = twins(ModelConfig(depth=20, width=8))
        parallel = torch.nn.parallel.DistributedDataParallel(recomputes, gradient_as_bucket_view=True)
        assert all(torch.equal(a, b) for a, b in zip(three_steps(keeps), three_steps(recomputes, parallel), strict=True))
    finally:
        torch.distributed.destroy_process_group()


def test_blocks_are_computed_twice_in_training_only_and_in_segments_of_the_square_root() -> None:
    net = build_model(ModelConfig(stages=(5, 4), depth=20, width=8), checkpoint_activations=True)  # 9 blocks: segments of 3
    calls: list[str] = []
    for name, module in net.named_modules():
        if isinstance(module, BasicBlock):
            module.register_forward_pre_hook(lambda *_, name=name: calls.append(name))
    first = [f"layer1.{i}" for i in range(5)]
    second = [f"layer2.{i}" for i in range(4)]
    images = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        net(images)
    net.eval()(images)
    assert calls == 2 * (first + second)
    calls.clear()
    loss = net.train()(images).sum()
    assert calls == first + second
    loss.backward()
    assert calls[9:] == second[3:] + second[:3] + first[3:] + first[:3]


@pytest.mark.slow
def test_a_checkpointing_network_can_be_exported() -> None:
    net = build_model(TINY, checkpoint_activations=True).eval()
    exported = torch.export.export(net, (torch.zeros(2, 3, 8, 8),), dynamic_shapes=({0: torch.export.Dim.AUTO},))
    images = torch.randn(5, 3, 8, 8)
    torch.testing.assert_close(exported.module()(images), net(images))


@pytest.mark.parametrize("matching", [{"match_flops": "bottleneck"}, {"match_parameters": "B"}])
def test_a_network_whose_width_depends_on_the_images_is_refused_in_one_line(matching: dict[str, Any]) -> None:
    (name,) = matching
    with pytest.raises(ConfigError, match=rf"^model\.{name}=\w+: depends on the size of the images; .*matched first$"):
        build_model(ModelConfig(depth=20, **matching))
