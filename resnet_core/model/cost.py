"""What a network costs: parameters, multiply-adds and memory, counted on the network itself without computing anything."""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction

import torch
from torch import Tensor, nn

from resnet_core.config import ModelConfig
from resnet_core.fields import reject
from resnet_core.model.network import ResNet, build_model


@dataclass(frozen=True)
class Cost:
    """Cost of one forward pass for one image."""

    parameters: int
    """Trainable numbers."""
    flops: int
    """Multiply-adds of convolutions and linear layers: what the paper's table 1 calls FLOPs."""
    activation_bytes: int
    """Bytes that training in float32 keeps of every image for the backward pass, the image itself included."""

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.parameters + other.parameters, self.flops + other.flops, self.activation_bytes + other.activation_bytes)

    def __sub__(self, other: "Cost") -> "Cost":
        return self + -1 * other

    def __rmul__(self, times: int) -> "Cost":
        return Cost(times * self.parameters, times * self.flops, times * self.activation_bytes)


NOTHING = Cost(0, 0, 0)


@dataclass(frozen=True)
class Part:
    """A direct child of the network, with the functions that follow it: `conv1`, `bn1`, `maxpool`, `layer1`, …, `fc`."""

    name: str
    output: tuple[int, ...]
    """Shape of the module's output for one image: (channels, height, width), or (classes,)."""
    cost: Cost


def measure_cost(config: ModelConfig, image_size: int) -> Cost:
    """What a network costs on square images of `image_size` pixels. Fields left open are filled in as by `build_model`."""
    return sum((part.cost for part in measure_parts(config, image_size)), NOTHING)


def measure_parts(config: ModelConfig, image_size: int) -> tuple[Part, ...]:
    """The network's direct children in the order they compute, whose costs add up to the network's.

    Blocks after the first one of a stage are equal, so networks of one and of two blocks per stage tell of any number of them.
    """
    config = matched(config, image_size).resolved()
    one, two = (_measure(_with_blocks(config, blocks), image_size) for blocks in (1, 2))
    more = {f"layer{i + 1}": blocks - 1 for i, blocks in enumerate(config.stages or ())}
    return tuple(
        replace(first, cost=first.cost + more.get(first.name, 0) * (second.cost - first.cost))
        for first, second in zip(one, two, strict=True)
    )


def _with_blocks(config: ModelConfig, blocks: int) -> ModelConfig:
    """The resolved network with this many blocks in every stage."""
    stages = (blocks,) * len(config.stages or ())
    return replace(config, stages=stages, depth=2 + config.layers_per_block * sum(stages))


@functools.lru_cache
def _measure(config: ModelConfig, image_size: int) -> tuple[Part, ...]:
    with torch.device("meta"), torch.inference_mode(False), torch.enable_grad():
        # In evaluation an image keeps the same activations as in training, and BatchNorm accepts a single one.
        net = build_model(config).eval()
        order: list[str] = []
        outputs: dict[str, tuple[int, ...]] = {}
        for name, child in net.named_children():
            child.register_forward_pre_hook(lambda *_, name=name: order.append(name))
            child.register_forward_hook(lambda _, __, output, name=name: outputs.update({name: tuple(output.shape[1:])}))
        flops = _count_flops(net, order)
        with _counted_activations(net, order) as kept:
            net(torch.empty(1, config.in_channels or 3, image_size, image_size))
    parameters = {name: sum(p.numel() for p in child.parameters()) for name, child in net.named_children()}
    return tuple(Part(name, outputs[name], Cost(parameters[name], flops.get(name, 0), kept.get(name, 0))) for name in order)


def _count_flops(net: ResNet, order: list[str]) -> dict[str, int]:
    """Counts multiply-adds from now on, by the last name in `order`."""
    counts: dict[str, int] = {}

    def count(module: nn.Module, _: tuple[Tensor, ...], output: Tensor) -> None:
        assert isinstance(module, (nn.Conv2d, nn.Linear))
        counts[order[-1]] = counts.get(order[-1], 0) + output.numel() * module.weight[0].numel()

    for module in net.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.register_forward_hook(count)
    return counts


@contextmanager
def _counted_activations(net: ResNet, order: list[str]) -> Iterator[dict[str, int]]:
    """Counts the bytes of what autograd saves, weights and statistics apart, by the last name in `order`."""
    # Several functions save one tensor, or views of it: storages count, each once. They are held so that none is reused.
    known = {tensor.untyped_storage()._cdata for tensor in (*net.parameters(), *net.buffers())}
    held: list[Tensor] = []
    counts: dict[str, int] = {}

    def save(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if tensor.ndim > 1 and storage._cdata not in known:  # vectors are statistics of channels, not of an image
            known.add(storage._cdata)
            held.append(tensor)
            counts[order[-1]] = counts.get(order[-1], 0) + storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
        yield counts


def matched(config: ModelConfig, image_size: int) -> ModelConfig:
    """The network with `match_flops` or `match_parameters` turned into the width that comes closest to what they ask for.

    The reference of `match_flops="basic"` is the same network with basic blocks and the paper's width, that of
    `match_parameters="C"` the same network with option C and the paper's width.

    Args:
        config: the network; `width` is None where one of the two is set. The number of classes and of color channels count,
            so those of the data set should be filled in; the paper's are used otherwise.
        image_size: side of the images in pixels, which multiply-adds depend on.

    Raises:
        ConfigError: even the closest width, of 8 or more, is more than 10 % away.
    """
    option = replace(config, match_flops=None, match_parameters=None)
    if config.match_flops:
        field, quantity = "match_flops", "flops"
        reference = replace(option, block=config.match_flops)
    elif config.match_parameters:
        field, quantity = "match_parameters", "parameters"
        reference = replace(option, shortcut=config.match_parameters)
    else:
        return config

    def cost(config: ModelConfig) -> int:
        count: int = getattr(measure_cost(config, image_size), quantity)
        return count

    # Both are quadratic in the width, every convolution having two sides and every other layer one, so that three networks
    # tell of all others.
    at = {width: cost(replace(option, width=width)) for width in (8, 16, 24)}
    slope, curvature = Fraction(at[16] - at[8], 8), Fraction(at[24] - 2 * at[16] + at[8], 128)

    def predicted(width: int) -> Fraction:
        return at[8] + (width - 8) * slope + (width - 8) * (width - 16) * curvature

    wanted = cost(reference)
    upper = 8
    while predicted(upper) < wanted:
        upper *= 2
    width = min(range(upper // 2, upper + 1), key=lambda width: abs(predicted(width) - wanted)) if upper > 8 else 8
    if 10 * abs(predicted(width) - wanted) > wanted:
        found = f"no width of 8 or more comes within 10 %; {width} makes {int(predicted(width)):,} {quantity}, not {wanted:,}"
        raise reject(f"model.{field}", getattr(config, field), found)
    return replace(option, width=width)
