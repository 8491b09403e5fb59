"""Probes: measurements of layer responses and gradients inside a network.

`Responses` measures during an evaluation, `Gradients` during the steps of an epoch. Both accumulate on the device and wait for it
once, in `read`, which returns one number per row, as plain values for checkpoints and tables.
"""

import functools
from collections.abc import Iterator
from types import TracebackType
from typing import Any, NamedTuple, Self, TypedDict

import torch
from torch import Tensor, distributed, nn

from resnet_core.model.network import ResNet


class Row(TypedDict):
    """One measured number of one layer."""

    probe: str
    """`responses` or `gradients`."""
    epoch: int
    """Number of the epoch, from 1."""
    layer: int
    """Position on the main path, from 1 (the stem) to the network's depth (the linear layer). 0: a projection shortcut, which is
    not on the main path."""
    name: str
    """Name of the convolution or linear layer in the state dict: `layer1.0.conv2`."""
    quantity: str
    """`responses`: `std`, standard deviation of the layer's response, or `scale`, mean of |γ| of a block's last BatchNorm.
    `gradients`: `gradient_norm` or `weight_norm`."""
    value: float


class Layer(NamedTuple):
    """A weighted layer and its position in the network."""

    number: int
    """Position on the main path, as in `Row.layer`."""
    name: str
    weighted: nn.Conv2d | nn.Linear
    norm: nn.BatchNorm2d | None
    """BatchNorm after a convolution; None for the linear layer."""
    ends_block: bool
    """True for the last layer of a residual function."""


def layers(net: ResNet) -> list[Layer]:
    """Return the weighted layers in the order of the main path; projection shortcuts follow their block."""
    return list(_layers(net))


def _layers(net: ResNet) -> Iterator[Layer]:
    yield Layer(1, "conv1", net.conv1, net.bn1, ends_block=False)
    index, last = 1, net.config.layers_per_block
    for stage in net.stages:
        for place, block in net.get_submodule(stage).named_children():
            parts: dict[str, Any] = dict(block.named_children())
            for i in range(1, last + 1):
                index += 1
                yield Layer(index, f"{stage}.{place}.conv{i}", parts[f"conv{i}"], parts[f"bn{i}"], ends_block=i == last)
            if isinstance(projection := parts.get("downsample"), nn.Sequential):
                yield Layer(0, f"{stage}.{place}.downsample.0", projection[0], projection[1], ends_block=False)  # type: ignore[arg-type]
    yield Layer(index + 1, "fc", net.fc, None, ends_block=False)


class Responses:
    """Probe for the standard deviations of layer responses in one evaluation (section 4.2, figure 7).

    The response of a 3×3 layer is the output of its BatchNorm, before nonlinearity and addition. Its standard deviation is over all
    images, channels and pixels. The 7×7 stem of ImageNet networks and the 1×1 layers of bottlenecks are not measured.

    Args:
        net: network to measure.

    Example:
        >>> with Responses(net) as responses:
        ...     evaluate(net, batches)
        >>> rows = responses.read(epoch=10)
    """

    def __init__(self, net: ResNet) -> None:
        self.layers = layers(net)
        self.watched = [layer for layer in self.layers if layer.norm and layer.weighted.kernel_size == (3, 3)]
        self.sums = torch.zeros(len(self.watched), 3, dtype=torch.float64, device=net.fc.weight.device)
        """Number of elements, sum and sum of squares (layers, 3) of each measured layer's response."""
        self.handles: list[torch.utils.hooks.RemovableHandle] = []

    def __enter__(self) -> Self:
        for layer, sums in zip(self.watched, self.sums, strict=True):
            assert layer.norm
            self.handles.append(layer.norm.register_forward_hook(functools.partial(self._add, sums)))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        while self.handles:
            self.handles.pop().remove()

    @staticmethod
    @torch.no_grad()
    def _add(sums: Tensor, _: nn.Module, __: Any, response: Tensor) -> None:
        # Single precision within an image, double over images. This is as fast as one long single-precision sum and a thousand
        # times more exact; `torch.var_mean` takes 15 times longer on a CPU.
        single = torch.promote_types(response.dtype, torch.float32)
        total = response.sum((1, 2, 3), dtype=single).double().sum()
        squares = torch.linalg.vector_norm(response, dim=(1, 2, 3), dtype=single).double().square().sum()
        sums += torch.stack([torch.full_like(total, response.numel()), total, squares])

    def read(self, epoch: int) -> list[Row]:
        """Return the rows over the images of all workers. Every worker must call it, even one without images.

        Args:
            epoch: number of the epoch for the rows, from 1.
        """
        sums = self.sums.clone()
        if distributed.is_available() and distributed.is_initialized():
            distributed.all_reduce(sums)
        count, total, squares = sums.unbind(1)
        deviations = (squares / count - (total / count) ** 2).clamp_min(0).sqrt()
        ends = [layer for layer in self.layers if layer.ends_block]
        scales = torch.stack([layer.norm.weight.detach().abs().mean().double() for layer in ends if layer.norm])
        values = torch.cat([deviations, scales]).tolist()
        quantities = [*[(layer, "std") for layer in self.watched], *[(layer, "scale") for layer in ends]]
        return [_row("responses", epoch, layer, name, value) for (layer, name), value in zip(quantities, values, strict=True)]


class Gradients:
    """Probe for the norm of the gradient of each layer's weight, averaged over the steps of an epoch.

    Workers of DistributedDataParallel have equal gradients and therefore equal rows.

    Args:
        net: network to measure.

    Example:
        >>> gradients = Gradients(net)
        >>> for images, labels in batches:
        ...     loss(net(images), labels).backward()
        ...     gradients.add()
        ...     optimizer.step()
        >>> rows = gradients.read(epoch=10)
    """

    def __init__(self, net: ResNet) -> None:
        self.layers = layers(net)
        self.weights = [layer.weighted.weight for layer in self.layers]
        self.sums = torch.zeros(len(self.weights), dtype=torch.float64, device=net.fc.weight.device)
        self.steps = torch.zeros((), dtype=torch.float64, device=net.fc.weight.device)

    @torch.no_grad()
    def add(self, scale: float | Tensor = 1.0) -> None:
        """Measure the gradients of one step, after the backward pass and before the optimizer's step.

        Args:
            scale: factor that the loss was multiplied by (fp16). Pass a tensor on the device, from
                `GradScaler.scale(torch.ones((), device=…))`: the number from `get_scale()` waits for the device.
        """
        gradients = [weight.grad for weight in self.weights if weight.grad is not None]
        norms = torch.stack(torch._foreach_norm(gradients)).double() / scale
        # The scaler also skips steps that overflow in fp16.
        finite = norms.isfinite().all()
        self.sums += torch.where(finite, norms, 0)
        self.steps += finite

    def read(self, epoch: int) -> list[Row]:
        """Return the mean norms of the gradients and the current norms of the weights.

        Args:
            epoch: number of the epoch for the rows, from 1.
        """
        weights = torch.stack(torch._foreach_norm([weight.detach() for weight in self.weights])).double()
        values = torch.cat([self.sums / self.steps, weights]).tolist()
        quantities = [(layer, name) for name in ("gradient_norm", "weight_norm") for layer in self.layers]
        return [_row("gradients", epoch, layer, name, value) for (layer, name), value in zip(quantities, values, strict=True)]


def _row(probe: str, epoch: int, layer: Layer, quantity: str, value: float) -> Row:
    return {"probe": probe, "epoch": epoch, "layer": layer.number, "name": layer.name, "quantity": quantity, "value": value}
