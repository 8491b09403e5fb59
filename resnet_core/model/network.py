"""The networks of He et al. 2015 (arXiv:1512.03385): CIFAR and ImageNet families, residual with options A, B, C, or plain.

Modules have torchvision's names (`conv1`, `layer1.0.bn2`, `layer2.0.downsample.0`, `fc`), so that a network with option B
and torchvision's ResNet can exchange state dicts.
"""

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from resnet_core.config import ModelConfig
from resnet_core.fields import reject


def build_model(config: ModelConfig, *, checkpoint_activations: bool = False) -> "ResNet":
    """Return a network with initial weights that are drawn from PyTorch's global random generator.

    Args:
        config: network to build; fields that are None become the paper's.
        checkpoint_activations: recompute activations in the backward pass to save memory; see `ResNet.checkpoint_activations`.

    Raises:
        ConfigError: `match_flops` or `match_parameters` is set. `resnet_core.model.cost.matched` replaces it by a width. Or `name`
            is set, which `build_network` builds.

    Example:
        >>> net = build_model(ModelConfig(family="cifar", depth=20, shortcut="A"))
        >>> net(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """
    for name in ("match_flops", "match_parameters"):
        if (value := getattr(config, name)) is not None:
            raise reject(f"model.{name}", value, "depends on the size of the images; call resnet_core.model.cost.matched first")
    if config.name:
        raise reject("model.name", config.name, "is no network of He et al.; call resnet_core.build_network")
    net = ResNet(config.resolved())
    net.checkpoint_activations = checkpoint_activations
    return net


def conv_bn(in_channels: int, out_channels: int, kernel: int, stride: int) -> tuple[nn.Conv2d, nn.BatchNorm2d]:
    """Return a convolution and its BatchNorm (section 3.4). The convolution has no bias: BatchNorm's shift makes one redundant."""
    conv = nn.Conv2d(in_channels, out_channels, kernel, stride, padding=kernel // 2, bias=False)
    return conv, nn.BatchNorm2d(out_channels)


class ZeroPad(nn.Module):
    """Shortcut of option A where the shape changes: subsample by `stride`, append zero channels; no parameters (section 3.3)."""

    def __init__(self, new_channels: int, stride: int) -> None:
        super().__init__()
        self.new_channels, self.stride = new_channels, stride

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.new_channels))


def make_shortcut(option: str, in_channels: int, out_channels: int, stride: int) -> nn.Module | None:
    """Return the shortcut connection of a block with option `none`, `A`, `B` or `C`; None for a plain block."""
    changes = stride != 1 or in_channels != out_channels
    if option == "none":
        return None
    if option == "C" or (option == "B" and changes):
        return nn.Sequential(*conv_bn(in_channels, out_channels, 1, stride))
    return ZeroPad(out_channels - in_channels, stride) if changes else nn.Identity()


class BasicBlock(nn.Module):
    """Block of two 3×3 convolutions, the first with the stride (figure 5, left)."""

    expansion = 1

    def __init__(self, in_channels: int, channels: int, stride: int, config: ModelConfig) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv_bn(in_channels, channels, 3, stride)
        self.conv2, self.bn2 = conv_bn(channels, channels, 3, 1)
        self.downsample = make_shortcut(config.shortcut, in_channels, channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return F.relu(out if self.downsample is None else out + self.downsample(x))


class Bottleneck(nn.Module):
    """Block of a 1×1 convolution that reduces the channels, a 3×3, and a 1×1 that quadruples them (figure 5, right)."""

    expansion = 4

    def __init__(self, in_channels: int, channels: int, stride: int, config: ModelConfig) -> None:
        super().__init__()
        first, second = (stride, 1) if config.stride_in == "1x1" else (1, stride)
        out_channels = channels * self.expansion
        self.conv1, self.bn1 = conv_bn(in_channels, channels, 1, first)
        self.conv2, self.bn2 = conv_bn(channels, channels, 3, second)
        self.conv3, self.bn3 = conv_bn(channels, out_channels, 1, 1)
        self.downsample = make_shortcut(config.shortcut, in_channels, out_channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        return F.relu(out if self.downsample is None else out + self.downsample(x))


class ResNet(nn.Module):
    """Network of a stem, stages of blocks, global average pooling and a linear layer.

    Args:
        config: resolved configuration, from `ModelConfig.resolved`.

    Shape:
        Input: float images (N, in_channels, H, W). Output: logits (N, num_classes).
    """

    checkpoint_activations = False
    """True if training keeps only the inputs of segments of blocks and recomputes other activations in the backward pass. Results
    are equal, and memory grows with the square root of the depth (Chen et al. 2016, arXiv:1604.06174). Forward hooks within
    blocks are called in both passes."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        assert config.width and config.stages and config.num_classes and config.in_channels, "config is not resolved"  # noqa: PT018
        self.config = config
        block = BasicBlock if config.block == "basic" else Bottleneck
        kernel, stride = (3, 1) if config.family == "cifar" else (7, 2)
        self.conv1, self.bn1 = conv_bn(config.in_channels, config.width, kernel, stride)
        self.maxpool = nn.Identity() if config.family == "cifar" else nn.MaxPool2d(3, stride=2, padding=1)
        self.stages = [f"layer{i + 1}" for i in range(len(config.stages))]
        channels = config.width
        for i, (name, blocks) in enumerate(zip(self.stages, config.stages, strict=True)):
            planes = config.width * 2**i
            layers = []
            for j in range(blocks):
                layers.append(block(channels, planes, 2 if i > 0 and j == 0 else 1, config))
                channels = planes * block.expansion
            self.add_module(name, nn.Sequential(*layers))
        self.fc = nn.Linear(channels, config.num_classes)
        self._initialize()

    def _initialize(self) -> None:
        """Draw convolution weights by He et al. 2015 (arXiv:1502.01852, equation 15, fan-out). Other parameters keep PyTorch's
        defaults."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, nn.BatchNorm2d):
                module.momentum = self.config.bn_momentum
            elif isinstance(module, (BasicBlock, Bottleneck)) and self.config.zero_init_residual:
                nn.init.zeros_((module.bn2 if isinstance(module, BasicBlock) else module.bn3).weight)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, num_classes) of images (N, in_channels, H, W)."""
        x = self.maxpool(F.relu(self.bn1(self.conv1(x))))
        segmented = self.checkpoint_activations and self.training and torch.is_grad_enabled()
        for name in self.stages:
            stage = self.get_submodule(name)
            x = self._in_segments(stage, x) if segmented else stage(x)
        logits: Tensor = self.fc(x.mean((2, 3)))
        return logits

    def _in_segments(self, stage: nn.Module, x: Tensor) -> Tensor:
        """Return the output of a stage, keeping only the input of each segment for the backward pass.

        With √n of n blocks in a segment, the kept inputs take about as much memory as the activations of the one segment that is
        being recomputed.
        """
        blocks, length = list(stage.children()), math.isqrt(sum(self.config.stages or ()))
        for start in range(0, len(blocks), length):
            segment = nn.Sequential(*blocks[start : start + length])

            def contexts(segment: nn.Module = segment) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
                return nullcontext(), _frozen_statistics(segment)

            # `torch.compile` recomputes without side effects, and rejects other context functions.
            context_fn: dict[str, Any] = {} if torch.compiler.is_compiling() else {"context_fn": contexts}
            x = checkpoint(segment, x, use_reentrant=False, preserve_rng_state=False, **context_fn)
        return x


@contextmanager
def _frozen_statistics(segment: nn.Module) -> Iterator[None]:
    """Keep running statistics constant while BatchNorms still normalize by the batch.

    Momentum is set to zero rather than removing the statistics. A BatchNorm without statistics saves fewer tensors than in the
    first computation, which `checkpoint` rejects.
    """
    norms = [module for module in segment.modules() if isinstance(module, nn.BatchNorm2d)]
    kept = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, batches) in zip(norms, kept, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, batches
