"""What goes on inside a network: how strongly its layers respond, and how large their gradients are.

`Responses` watches an evaluation that happens anyway, `Gradients` the steps of an epoch. Both add up on the device and wait for
it once, in `read`. What they return are plain values, one per row, fit for a checkpoint and for a table.
"""

import functools
from collections.abc import Iterator
from types import TracebackType
from typing import Any, NamedTuple, Self, TypedDict

import torch
from torch import Tensor, distributed, nn

from resnet_core.model.network import ResNet


class Row(TypedDict):
    """One number about one layer."""

    probe: str
    """`responses` or `gradients`."""
    epoch: int
    """From 1."""
    layer: int
    """Position on the main path: 1 is the stem, the last is the linear layer, so that it ends with the network's depth. 0: a
    projection shortcut, which is beside the path."""
    name: str
    """Of the convolution or linear layer, as in the state dict: `layer1.0.conv2`."""
    quantity: str
    """`responses`: `std` of the layer's response; `scale`, mean of |γ| of a block's last BatchNorm. `gradients`:
    `gradient_norm`, `weight_norm`."""
    value: float


class Layer(NamedTuple):
    """A weighted layer and where it is."""

    number: int
    """`Row.layer`."""
    name: str
    weighted: nn.Conv2d | nn.Linear
    norm: nn.BatchNorm2d | None
    """The BatchNorm behind a convolution."""
    ends_block: bool
    """Whether it is the last of a residual function."""


def layers(net: ResNet) -> list[Layer]:
    """The weighted layers in the order of the main path, each projection shortcut behind its block."""
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
    """Standard deviations of layer responses (section 4.2, "Analysis of layer responses", figure 7), in one evaluation.

    The response of a 3×3 layer is the output of its BatchNorm, before the non-linearity and the addition; its deviation is over
    all images, channels and pixels. ImageNet's 7×7 stem and the 1×1 layers of bottlenecks have none here.

    Example:
        >>> with Responses(net) as responses:
        ...     evaluate(net, batches)
        >>> rows = responses.read(epoch=10)
    """

    def __init__(self, net: ResNet) -> None:
        self.layers = layers(net)
        self.watched = [layer for layer in self.layers if layer.norm and layer.weighted.kernel_size == (3, 3)]
        self.sums = torch.zeros(len(self.watched), 3, dtype=torch.float64, device=net.fc.weight.device)
        """Of each watched layer: number of elements, their sum, and the sum of their squares."""
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
        # In single precision within an image, in double over images: as fast as one long single-precision sum, where
        # `torch.var_mean` takes 15 times longer on a CPU, and a thousand times more exact.
        single = torch.promote_types(response.dtype, torch.float32)
        total = response.sum((1, 2, 3), dtype=single).double().sum()
        squares = torch.linalg.vector_norm(response, dim=(1, 2, 3), dtype=single).double().square().sum()
        sums += torch.stack([torch.full_like(total, response.numel()), total, squares])

    def read(self, epoch: int) -> list[Row]:
        """The rows of all workers' images together. Every worker must call it, also one without images.

        Args:
            epoch: what the rows say it was, from 1.
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
    """Norm of the gradient of each convolution's and the linear layer's weight, mean over the steps of an epoch.

    Workers of DistributedDataParallel have equal gradients, hence equal rows.

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
        """Takes in one step, after the backward pass and before the optimizer's step.

        Args:
            scale: what the loss was multiplied by (fp16). As a tensor on the device it needs no wait: what
                `GradScaler.scale(torch.ones((), device=…))` gives, not the number of `get_scale()`.
        """
        gradients = [weight.grad for weight in self.weights if weight.grad is not None]
        norms = torch.stack(torch._foreach_norm(gradients)).double() / scale
        # A step that overflows with fp16 is skipped by the scaler, too.
        finite = norms.isfinite().all()
        self.sums += torch.where(finite, norms, 0)
        self.steps += finite

    def read(self, epoch: int) -> list[Row]:
        """The mean norms of gradients, and the norms of the weights as they are now, so that a ratio can be shown.

        Args:
            epoch: what the rows say it was, from 1.
        """
        weights = torch.stack(torch._foreach_norm([weight.detach() for weight in self.weights])).double()
        values = torch.cat([self.sums / self.steps, weights]).tolist()
        quantities = [(layer, name) for name in ("gradient_norm", "weight_norm") for layer in self.layers]
        return [_row("gradients", epoch, layer, name, value) for (layer, name), value in zip(quantities, values, strict=True)]


def _row(probe: str, epoch: int, layer: Layer, quantity: str, value: float) -> Row:
    return {"probe": probe, "epoch": epoch, "layer": layer.number, "name": layer.name, "quantity": quantity, "value": value}
