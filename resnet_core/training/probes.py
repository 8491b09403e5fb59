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
from torch.nn.modules.conv import _ConvNd

from resnet_core.model.network import ResNet


class Row(TypedDict):
    """One measured number of one layer."""

    probe: str
    """`responses` or `gradients`."""
    epoch: int
    """Number of the epoch, from 1."""
    layer: int
    """Networks of He et al.: position on the main path, from 1 (the stem) to the network's depth (the linear layer), or 0 for a
    projection shortcut, which is not on the main path. Other networks: position among all layers, from 1, in order of the state
    dict."""
    name: str
    """Name of the layer in the state dict: `layer1.0.conv2`."""
    quantity: str
    """`responses`: `std`, standard deviation of the layer's response, or `scale`, mean of |γ| of a block's last BatchNorm (networks
    of He et al.).
    `gradients`: `gradient_norm` or `weight_norm`."""
    value: float


class Layer(NamedTuple):
    """A weighted layer and its position in the network."""

    number: int
    """Position in the network, as in `Row.layer`."""
    name: str
    weight: Tensor
    response: nn.Module | None
    """Module whose output is the layer's response; None if the response is not measured."""
    scale: Tensor | None = None
    """Scale γ of the last BatchNorm of a residual function; None for other layers."""


def layers(net: nn.Module) -> list[Layer]:
    """Return the weighted layers of a network.

    Those of a network of He et al. are in the order of the main path, where projection shortcuts follow their block. The response
    of a 3×3 layer is the output of its BatchNorm. Those of other networks are all trainable weights of two or more dimensions, in
    order of the state dict. The response of a convolution or linear layer is its own output.
    """
    return list(_layers(net) if isinstance(net, ResNet) else _layers_of_any(net))


def _layers_of_any(net: nn.Module) -> Iterator[Layer]:
    weights = [(name, weight) for name, weight in net.named_parameters() if weight.ndim > 1 and weight.requires_grad]
    for number, (name, weight) in enumerate(weights, 1):
        owner = net.get_submodule(name.rpartition(".")[0])
        response = owner if isinstance(owner, (_ConvNd, nn.Linear)) else None
        yield Layer(number, name.removesuffix(".weight"), weight, response)


def _layers(net: ResNet) -> Iterator[Layer]:
    def layer(number: int, name: str, conv: nn.Conv2d, norm: nn.BatchNorm2d, *, ends_block: bool = False) -> Layer:
        return Layer(number, name, conv.weight, norm if conv.kernel_size == (3, 3) else None, norm.weight if ends_block else None)

    yield layer(1, "conv1", net.conv1, net.bn1)
    index, last = 1, net.config.layers_per_block
    for stage in net.stages:
        for place, block in net.get_submodule(stage).named_children():
            parts: dict[str, Any] = dict(block.named_children())
            for i in range(1, last + 1):
                index += 1
                yield layer(index, f"{stage}.{place}.conv{i}", parts[f"conv{i}"], parts[f"bn{i}"], ends_block=i == last)
            if isinstance(projection := parts.get("downsample"), nn.Sequential):
                yield layer(0, f"{stage}.{place}.downsample.0", projection[0], projection[1])  # type: ignore[arg-type]
    yield Layer(index + 1, "fc", net.fc.weight, None)


class Responses:
    """Probe for the standard deviations of layer responses in one evaluation (section 4.2, figure 7).

    The response of a 3×3 layer is the output of its BatchNorm, before nonlinearity and addition. Its standard deviation is over all
    images, channels and pixels. The 7×7 stem of ImageNet networks and the 1×1 layers of bottlenecks are not measured. In networks
    that are not of He et al., the response of a convolution or linear layer is its own output.

    Args:
        net: network to measure.

    Example:
        >>> with Responses(net) as responses:
        ...     evaluate(net, batches)
        >>> rows = responses.read(epoch=10)
    """

    def __init__(self, net: nn.Module) -> None:
        self.layers = layers(net)
        self.watched = [layer for layer in self.layers if layer.response]
        self.sums = torch.zeros(len(self.watched), 3, dtype=torch.float64, device=next(net.parameters()).device)
        """Number of elements, sum and sum of squares (layers, 3) of each measured layer's response."""
        self.handles: list[torch.utils.hooks.RemovableHandle] = []

    def __enter__(self) -> Self:
        for layer, sums in zip(self.watched, self.sums, strict=True):
            assert layer.response
            self.handles.append(layer.response.register_forward_hook(functools.partial(self._add, sums)))
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
        within = tuple(range(1, response.ndim)) or None
        total = response.sum(within, dtype=single).double().sum()
        squares = torch.linalg.vector_norm(response, dim=within, dtype=single).double().square().sum()
        sums += torch.stack([torch.full_like(total, response.numel()), total, squares])

    def read(self, epoch: int) -> list[Row]:
        """Return the rows over the images of all workers. Every worker must call it, even one without images.

        Layers that the network does not call as modules, as within attention, have no rows.

        Args:
            epoch: number of the epoch for the rows, from 1.
        """
        sums = self.sums.clone()
        if distributed.is_available() and distributed.is_initialized():
            distributed.all_reduce(sums)
        count, total, squares = sums.unbind(1)
        deviations = (squares / count - (total / count) ** 2).clamp_min(0).sqrt()
        if not self.watched:  # all weights are parameters of modules of one's own
            return []
        ends = [(layer, layer.scale.detach().abs().mean().double()) for layer in self.layers if layer.scale is not None]
        values = torch.stack([*deviations, *(scale for _, scale in ends)]).tolist()
        called = [*(count > 0).tolist(), *(True for _ in ends)]
        quantities = [*[(layer, "std") for layer in self.watched], *[(layer, "scale") for layer, _ in ends]]
        rows = zip(quantities, values, called, strict=True)
        return [_row("responses", epoch, layer, name, value) for (layer, name), value, called in rows if called]


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

    def __init__(self, net: nn.Module) -> None:
        self.layers = layers(net)
        self.weights = [layer.weight for layer in self.layers]
        self.sums = torch.zeros(len(self.weights), dtype=torch.float64, device=next(net.parameters()).device)
        self.steps = torch.zeros((), dtype=torch.float64, device=self.sums.device)

    @torch.no_grad()
    def add(self, scale: float | Tensor = 1.0) -> None:
        """Measure the gradients of one step, after the backward pass and before the optimizer's step.

        Args:
            scale: factor that the loss was multiplied by (fp16). Pass a tensor on the device, from
                `GradScaler.scale(torch.ones((), device=…))`: the number from `get_scale()` waits for the device.
        """
        if not self.layers:
            return
        gradients = [torch.zeros_like(weight) if weight.grad is None else weight.grad for weight in self.weights]
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
        if not self.layers:
            return []
        weights = torch.stack(torch._foreach_norm([weight.detach() for weight in self.weights])).double()
        values = torch.cat([self.sums / self.steps, weights]).tolist()
        quantities = [(layer, name) for name in ("gradient_norm", "weight_norm") for layer in self.layers]
        return [_row("gradients", epoch, layer, name, value) for (layer, name), value in zip(quantities, values, strict=True)]


def _row(probe: str, epoch: int, layer: Layer, quantity: str, value: float) -> Row:
    return {"probe": probe, "epoch": epoch, "layer": layer.number, "name": layer.name, "quantity": quantity, "value": value}
