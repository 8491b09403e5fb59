"""What a network costs: parameters and multiply-adds, counted on the network itself without computing anything."""

import functools
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from resnet_core.config import ModelConfig
from resnet_core.model import build_model


@dataclass(frozen=True)
class Cost:
    """Cost of one forward pass for one image."""

    parameters: int
    """Trainable numbers."""
    flops: int
    """Multiply-adds of convolutions and linear layers: what the paper's table 1 calls FLOPs."""


@functools.lru_cache
def measure_cost(config: ModelConfig, image_size: int) -> Cost:
    """Parameters and multiply-adds of a network on square images of `image_size` pixels."""
    config = config.resolved()
    with torch.device("meta"):
        net = build_model(config).eval()
        counts: list[int] = []

        def count(module: nn.Module, _: tuple[Tensor, ...], output: Tensor) -> None:
            assert isinstance(module, (nn.Conv2d, nn.Linear))
            counts.append(output.numel() * module.weight[0].numel())

        for module in net.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                module.register_forward_hook(count)
        net(torch.empty(1, config.in_channels or 3, image_size, image_size))
    return Cost(parameters=sum(p.numel() for p in net.parameters()), flops=sum(counts))
