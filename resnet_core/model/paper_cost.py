"""Parameters, multiply-adds and activation memory of the networks of He et al., by arithmetic: a plan does not wait for torch."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction

from resnet_core.config import ModelConfig
from resnet_core.fields import reject

FLOAT_BYTES, INDEX_BYTES = 4, 8
"""Bytes of a number in float32, and of an index that max pooling keeps."""
EXPANSION = {"basic": 1, "bottleneck": 4}
"""Output channels of a block ÷ channels of its 3×3 convolutions, by block type (figure 5)."""


@dataclass(frozen=True)
class Cost:
    """Size of a network and cost of its forward pass for one image."""

    parameters: int
    """Number of trainable parameters."""
    flops: int
    """Multiply-adds of convolutions, linear layers and attention for one image; the paper's table 1 calls them FLOPs."""
    activation_bytes: int
    """Memory that training in float32 keeps for the backward pass, in bytes per image, including the image."""

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.parameters + other.parameters, self.flops + other.flops, self.activation_bytes + other.activation_bytes)

    def __sub__(self, other: "Cost") -> "Cost":
        return self + -1 * other

    def __rmul__(self, times: int) -> "Cost":
        return Cost(times * self.parameters, times * self.flops, times * self.activation_bytes)


NOTHING = Cost(0, 0, 0)


@dataclass(frozen=True)
class Part:
    """A direct child of the network, such as `conv1`, `layer1` or `fc`, with the functions that follow it."""

    name: str
    output: tuple[int, ...]
    """Shape of the output for one image: (channels, height, width), or (classes,)."""
    cost: Cost


def paper_cost(config: ModelConfig, image_size: int) -> Cost:
    """Return the cost of a network of He et al. for square images of this side, in pixels."""
    return sum((part.cost for part in measure_parts(config, image_size)), NOTHING)


def measure_parts(config: ModelConfig, image_size: int) -> tuple[Part, ...]:
    """Return the direct children of a network in the order of computation. Their costs add up to the network's.

    Autograd keeps the image, the output of each convolution (for BatchNorm), that of each ReLU, and the input of the linear layer.
    """
    config = matched(config, image_size).resolved()
    width, stages, colors, classes = config.width, config.stages, config.in_channels, config.num_classes
    assert width and stages and colors and classes, "config is resolved"  # noqa: PT018
    kernel, stride = (3, 1) if config.family == "cifar" else (7, 2)
    side = _strided(image_size, stride)
    stem = width * side**2
    image = Cost(0, 0, FLOAT_BYTES * colors * image_size**2)
    parts = [
        Part("conv1", (width, side, side), image + Cost(kernel**2 * colors * width, kernel**2 * colors * stem, 0)),
        Part("bn1", (width, side, side), Cost(2 * width, 0, 2 * FLOAT_BYTES * stem)),  # with the ReLU after it
    ]
    pooling = 0
    if config.family == "imagenet":
        side = _strided(side, 2)
        pooling = INDEX_BYTES * width * side**2
    parts.append(Part("maxpool", (width, side, side), Cost(0, 0, pooling)))
    pooled = NOTHING if config.family == "cifar" else Cost(0, 0, FLOAT_BYTES * width * side**2)  # input of the first convolution
    channels = width
    for i, blocks in enumerate(stages):
        out, stride = width * 2**i * EXPANSION[config.block], 2 if i else 1
        cost = _block(config, channels, width * 2**i, side, stride) + (NOTHING if i else pooled)
        channels, side = out, _strided(side, stride)
        cost += (blocks - 1) * _block(config, channels, width * 2**i, side, 1)
        parts.append(Part(f"layer{i + 1}", (out, side, side), cost))
    linear = Cost((channels + 1) * classes, channels * classes, FLOAT_BYTES * channels)
    return (*parts, Part("fc", (classes,), linear))


def _block(config: ModelConfig, channels: int, planes: int, side: int, stride: int) -> Cost:
    """Return the cost of a residual block.

    Args:
        config: resolved network.
        channels: input channels.
        planes: channels of the 3×3 convolutions.
        side: side of the input, in pixels.
        stride: factor by which the block reduces the side.
    """
    out = planes * EXPANSION[config.block]
    after = _strided(side, stride)
    if config.block == "basic":
        layers = [(3, channels, planes, after), (3, planes, planes, after)]
    else:
        first = after if config.stride_in == "1x1" else side
        layers = [(1, channels, planes, first), (3, planes, planes, after), (1, planes, out, after)]
    relus = sum(produced * area**2 for _, _, produced, area in layers)  # one after each layer, the last one after the addition
    if config.shortcut == "C" or (config.shortcut == "B" and (stride != 1 or channels != out)):
        layers.append((1, channels, out, after))
    return sum(_convolutions(layers), Cost(0, 0, FLOAT_BYTES * relus))


def _convolutions(layers: list[tuple[int, int, int, int]]) -> Iterator[Cost]:
    """Yield the costs of convolutions with BatchNorm, given by kernel size, input and output channels, and side of the output."""
    for kernel, channels, produced, side in layers:
        weights, outputs = kernel**2 * channels * produced, produced * side**2
        yield Cost(weights + 2 * produced, weights * side**2, FLOAT_BYTES * outputs)


def _strided(side: int, stride: int) -> int:
    """Return the side of the output of a convolution or pooling that keeps the side at stride 1."""
    return (side - 1) // stride + 1


def matched(config: ModelConfig, image_size: int) -> ModelConfig:
    """Return the network with `match_flops` or `match_parameters` replaced by the width that comes closest to the reference.

    The reference of `match_flops="basic"` is the same network with basic blocks and the paper's width. The reference of
    `match_parameters="C"` is the same network with option C and the paper's width.

    Args:
        config: network. The numbers of classes and of color channels affect its cost, so fill in those of the data set first.
        image_size: side of the square images, in pixels.

    Raises:
        ConfigError: even the closest width of 8 or more misses the reference by more than 10 %.
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
        count: int = getattr(paper_cost(config, image_size), quantity)
        return count

    # Both costs are quadratic in the width: convolutions have two sides that grow with it, other layers one. Three networks
    # determine the polynomial.
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
