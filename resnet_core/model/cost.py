"""Parameters, multiply-adds and activation memory of a network, counted on the meta device without computing anything."""

import functools
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from resnet_core.config import ModelConfig, Network, RunSpec
from resnet_core.fields import ConfigError, reject
from resnet_core.model.building import (
    DEFAULT_CHANNELS,
    DEFAULT_CLASSES,
    attempt,
    build_network,
    can_recompute,
    cannot_recompute,
    checked_output,
    label,
)
from resnet_core.model.network import build_model


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
PROBED_IMAGES = 2
"""Batch that a network of one's own is measured with: BatchNorm over a single pixel needs two images in training."""


@dataclass(frozen=True)
class Part:
    """A direct child of the network, such as `conv1`, `layer1` or `fc`, with the functions that follow it."""

    name: str
    output: tuple[int, ...]
    """Shape of the output for one image: (channels, height, width), or (classes,)."""
    cost: Cost


def measure_cost(
    config: ModelConfig | Network, image_size: int, *, in_channels: int | None = None, num_classes: int | None = None
) -> Cost:
    """Return the cost of a network.

    Args:
        config: network of He et al., whose fields that are None become the paper's, of another library, or of one's own.
        image_size: side of the square images, in pixels.
        in_channels: number of color channels. None: the configuration's, else 3.
        num_classes: number of classes. None: the configuration's, else the paper's for a network of He et al. and 10 for others.

    Raises:
        ConfigError: a network of one's own cannot be built, computes no logits or cannot be trained.

    Example:
        >>> measure_cost(ModelConfig(depth=20), image_size=32).parameters
        269722
    """
    if isinstance(config, ModelConfig):
        config = config.resolved(num_classes=num_classes, in_channels=in_channels)
        in_channels, num_classes = config.in_channels, config.num_classes
    if isinstance(config, ModelConfig) and not config.name:
        return sum((part.cost for part in measure_parts(config, image_size)), NOTHING)
    return measure_any(config, image_size, in_channels or DEFAULT_CHANNELS, num_classes or DEFAULT_CLASSES).cost


class Measured(NamedTuple):
    """A network that is not of He et al., and was built, computed and differentiated once."""

    cost: Cost
    unused: tuple[str, ...]
    """Names of trainable parameters that the output does not depend on."""
    recomputes: bool
    """True if the network accepts `RunSpec.checkpoint_activations`."""
    on_meta: bool
    """True if the meta device was enough: the network reads no numbers from tensors."""


@functools.lru_cache(maxsize=1024)
def measure_any(config: ModelConfig | Network, image_size: int, in_channels: int, num_classes: int) -> Measured:
    """Return the cost of a network that is not of He et al., after a training step without arithmetic on the meta device.

    A network that reads numbers from tensors, as in `torch.linspace(0, 1, depth).tolist()`, takes this step on the CPU.

    Args:
        config: network.
        image_size: side of the square images, in pixels.
        in_channels: number of color channels.
        num_classes: number of classes.

    Raises:
        ConfigError: the network cannot be built, computes no logits (N, num_classes) or cannot be trained.
    """
    with torch.random.fork_rng(devices=[]), torch.inference_mode(False), torch.enable_grad():
        with suppress(Exception):  # the same step on the CPU says better why it fails
            return _measure_any(config, image_size, in_channels, num_classes, "meta")
        return _measure_any(config, image_size, in_channels, num_classes, "cpu")


def check_network(spec: RunSpec, image_size: int, in_channels: int, num_classes: int) -> None:
    """Raise ConfigError if the network of a run, not of He et al., cannot be built, computed or differentiated as the run asks.

    Args:
        spec: run.
        image_size: side of the square images, in pixels.
        in_channels: number of color channels.
        num_classes: number of classes.
    """
    measured = measure_any(spec.model, image_size, in_channels, num_classes)
    if measured.unused and spec.world_size > 1:
        why = f"the output does not depend on the parameter {measured.unused[0]}, and workers would wait for its gradient"
        raise reject("world_size", spec.world_size, f"accepted: 1, as {why}")
    if spec.checkpoint_activations and not measured.recomputes:
        raise cannot_recompute(spec.model)


def can_capture(spec: RunSpec, image_size: int, in_channels: int, num_classes: int) -> bool:
    """Return True if a CUDA graph can capture a step of the network of a run.

    A network that may wait for the device, as it reads numbers from tensors, trains eagerly.

    Args:
        spec: resolved run.
        image_size: side of the square images, in pixels.
        in_channels: number of color channels.
        num_classes: number of classes.
    """
    if isinstance(spec.model, ModelConfig) and not spec.model.name:
        return True
    return measure_any(spec.model, image_size, in_channels, num_classes).on_meta


def _measure_any(config: ModelConfig | Network, image_size: int, in_channels: int, num_classes: int, device: str) -> Measured:
    name = label(config)
    with torch.device(device):
        net = build_network(config, image_size, in_channels=in_channels, num_classes=num_classes).train()
        images = torch.zeros(PROBED_IMAGES, in_channels, image_size, image_size)
        # The counter lacks some fused kernels of attention, which the backend MATH does without.
        with FlopCounterMode(display=False) as counter, _counted_activations(net, [name]) as kept, sdpa_kernel(SDPBackend.MATH):
            output = attempt(f"{name}, images {tuple(images.shape)}", lambda: net(images))
        logits = checked_output(name, output, images, num_classes)
        parameters = {name: parameter for name, parameter in net.named_parameters() if parameter.requires_grad}
        if not logits.requires_grad:
            raise ConfigError(f"{name}: its output depends on no trainable parameter; accepted: a network that can learn")
        found = attempt(
            f"{name}, backward pass",
            lambda: torch.autograd.grad(logits.sum(), list(parameters.values()), allow_unused=True),
        )
    unused = tuple(name for name, gradient in zip(parameters, found, strict=True) if gradient is None)
    count = sum(parameter.numel() for parameter in parameters.values())
    multiply_adds = counter.get_total_flops() // (2 * PROBED_IMAGES)  # PyTorch counts two operations for each
    return Measured(Cost(count, multiply_adds, kept.get(name, 0) // PROBED_IMAGES), unused, can_recompute(net), device == "meta")


def measure_parts(config: ModelConfig, image_size: int) -> tuple[Part, ...]:
    """Return the direct children of a network in the order of computation. Their costs add up to the network's.

    All blocks after the first one of a stage cost the same. Measuring networks of one and two blocks per stage is therefore
    enough for any depth.
    """
    config = matched(config, image_size).resolved()
    one, two = (_measure(_with_blocks(config, blocks), image_size) for blocks in (1, 2))
    more = {f"layer{i + 1}": blocks - 1 for i, blocks in enumerate(config.stages or ())}
    return tuple(
        replace(first, cost=first.cost + more.get(first.name, 0) * (second.cost - first.cost))
        for first, second in zip(one, two, strict=True)
    )


def _with_blocks(config: ModelConfig, blocks: int) -> ModelConfig:
    """Return the network with this number of blocks in every stage."""
    stages = (blocks,) * len(config.stages or ())
    return replace(config, stages=stages, depth=2 + config.layers_per_block * sum(stages))


@functools.lru_cache
def _measure(config: ModelConfig, image_size: int) -> tuple[Part, ...]:
    with torch.device("meta"), torch.inference_mode(False), torch.enable_grad():
        # Evaluation mode keeps the same activations per image as training mode, and BatchNorm then accepts a single image.
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


def _count_flops(net: nn.Module, order: list[str]) -> dict[str, int]:
    """Register hooks that count multiply-adds; return the counts by the child that computes, the last name in `order`."""
    counts: dict[str, int] = {}

    def count(module: nn.Module, _: tuple[Tensor, ...], output: Tensor) -> None:
        assert isinstance(module, (nn.Conv2d, nn.Linear))
        counts[order[-1]] = counts.get(order[-1], 0) + output.numel() * module.weight[0].numel()

    for module in net.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.register_forward_hook(count)
    return counts


@contextmanager
def _counted_activations(net: nn.Module, order: list[str]) -> Iterator[dict[str, int]]:
    """Count the bytes that autograd saves, without weights and statistics, by the child that computes, the last name in `order`."""
    # Several functions may save one tensor or views of it, so each storage counts once. References keep storages from being reused.
    known = {tensor.untyped_storage()._cdata for tensor in (*net.parameters(), *net.buffers())}
    held: list[Tensor] = []
    counts: dict[str, int] = {}

    def save(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if tensor.ndim > 1 and storage._cdata not in known:  # vectors are channel statistics and do not grow with the batch
            known.add(storage._cdata)
            held.append(tensor)
            counts[order[-1]] = counts.get(order[-1], 0) + storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
        yield counts


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
        count: int = getattr(measure_cost(config, image_size), quantity)
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
