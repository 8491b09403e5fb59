"""The networks of He et al. 2015 (arXiv:1512.03385): CIFAR and ImageNet families, residual with options A, B, C, or plain.

Modules carry torchvision's names (`conv1`, `layer1.0.bn2`, `layer2.0.downsample.0`, `fc`), so that a network with option B
and torchvision's ResNet exchange state dicts.

`python -m resnet_core.model --depth 56` prints a network as table 1 of the paper does.
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


def build_model(config: ModelConfig, *, checkpoint_activations: bool = False) -> "ResNet":
    """A freshly initialized network. Initial weights follow from torch's global seed.

    Args:
        config: what to build; fields left open are filled in as the paper does.
        checkpoint_activations: whether training computes activations twice and keeps few (`ResNet.checkpoint_activations`).

    Example:
        >>> net = build_model(ModelConfig(family="cifar", depth=20, shortcut="A"))
        >>> net(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """
    net = ResNet(config.resolved())
    net.checkpoint_activations = checkpoint_activations
    return net


def conv_bn(in_channels: int, out_channels: int, kernel: int, stride: int) -> tuple[nn.Conv2d, nn.BatchNorm2d]:
    """A convolution without bias, which BatchNorm's shift would make redundant, and its BatchNorm (section 3.4)."""
    conv = nn.Conv2d(in_channels, out_channels, kernel, stride, padding=kernel // 2, bias=False)
    return conv, nn.BatchNorm2d(out_channels)


class ZeroPad(nn.Module):
    """Option A where the size changes: every `stride`-th pixel, zeros for the new channels, no parameters (section 3.3)."""

    def __init__(self, new_channels: int, stride: int) -> None:
        super().__init__()
        self.new_channels, self.stride = new_channels, stride

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.new_channels))


def make_shortcut(option: str, in_channels: int, out_channels: int, stride: int) -> nn.Module | None:
    """What a block adds to its residual function: None adds nothing (a plain network)."""
    changes = stride != 1 or in_channels != out_channels
    if option == "none":
        return None
    if option == "C" or (option == "B" and changes):
        return nn.Sequential(*conv_bn(in_channels, out_channels, 1, stride))
    return ZeroPad(out_channels - in_channels, stride) if changes else nn.Identity()


class BasicBlock(nn.Module):
    """Two 3×3 convolutions (figure 5, left); the first carries the stride."""

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
    """1×1 to fewer channels, 3×3, 1×1 to four times as many (figure 5, right)."""

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
    """Stem, stages of blocks, global average pooling, one linear layer.

    Args:
        config: a resolved ModelConfig.

    Shapes:
        input (N, in_channels, H, W), float; output (N, num_classes), unnormalized.
    """

    checkpoint_activations = False
    """Whether training keeps the inputs of segments of blocks only, and computes the rest again for the backward pass: the same
    numbers, memory that grows with the square root of the depth (Chen et al. 2016, arXiv:1604.06174). Forward hooks within
    blocks are called in both passes."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        assert config.width and config.stages and config.num_classes and config.in_channels, "a resolved config"  # noqa: PT018
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
        """He initialization (arXiv:1502.01852, eq. 15, by outputs). Other weights keep PyTorch's: BatchNorm starts at 1 and 0."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, nn.BatchNorm2d):
                module.momentum = self.config.bn_momentum
            elif isinstance(module, (BasicBlock, Bottleneck)) and self.config.zero_init_residual:
                nn.init.zeros_((module.bn2 if isinstance(module, BasicBlock) else module.bn3).weight)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(F.relu(self.bn1(self.conv1(x))))
        segmented = self.checkpoint_activations and self.training and torch.is_grad_enabled()
        for name in self.stages:
            stage = self.get_submodule(name)
            x = self._in_segments(stage, x) if segmented else stage(x)
        logits: Tensor = self.fc(x.mean((2, 3)))
        return logits

    def _in_segments(self, stage: nn.Module, x: Tensor) -> Tensor:
        """The stage's output, keeping for the backward pass the input of every segment only.

        With √n blocks in a segment, the n/√n kept inputs and the activations of the one segment that is computed again take
        about the same memory.
        """
        blocks, length = list(stage.children()), math.isqrt(sum(self.config.stages or ()))
        for start in range(0, len(blocks), length):
            segment = nn.Sequential(*blocks[start : start + length])

            def contexts(segment: nn.Module = segment) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
                return nullcontext(), _statistics_kept(segment)

            # The compiler brings its own recomputation, which has no effects, and refuses other contexts.
            context_fn: dict[str, Any] = {} if torch.compiler.is_compiling() else {"context_fn": contexts}
            x = checkpoint(segment, x, use_reentrant=False, preserve_rng_state=False, **context_fn)
        return x


@contextmanager
def _statistics_kept(segment: nn.Module) -> Iterator[None]:
    """BatchNorms normalize by the batch as in training, but their running statistics stay as they are.

    Statistics that move by nothing, not absent ones: a BatchNorm without statistics saves fewer tensors for the backward pass
    than the first computation did, which `checkpoint` refuses.
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
