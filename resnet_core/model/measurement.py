"""Measurement of networks that are not of He et al., by a training step without arithmetic on the meta device."""

import functools
from collections.abc import Iterator
from contextlib import contextmanager, suppress
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
from resnet_core.model.paper_cost import Cost

PROBED_IMAGES = 2
"""Batch that a network of one's own is measured with: BatchNorm over a single pixel needs two images in training."""


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
def measure_any(
    config: ModelConfig | Network, image_size: int, in_channels: int | None = None, num_classes: int | None = None
) -> Measured:
    """Return the cost of a network that is not of He et al., after a training step without arithmetic on the meta device.

    A network that reads numbers from tensors, as in `torch.linspace(0, 1, depth).tolist()`, takes this step on the CPU.

    Args:
        config: network.
        image_size: side of the square images, in pixels.
        in_channels: number of color channels. None: 3.
        num_classes: number of classes. None: 10.

    Raises:
        ConfigError: the network cannot be built, computes no logits (N, num_classes) or cannot be trained.
    """
    in_channels, num_classes = in_channels or DEFAULT_CHANNELS, num_classes or DEFAULT_CLASSES
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
