"""Pieces of later residual networks: normalization, pooled shortcuts, squeeze-and-excitation, and more by `--levels`.

ray job submit -- python ablations/components.py

A network of one's own: every field of `Components` is a factor, so that `--levels stem=one,three activation=relu,silu` asks about
others. Sources: ResNet-C and -D (He et al. 2019, arXiv:1812.01187), squeeze-and-excitation (Hu et al. 2018, arXiv:1709.01507),
pre-activation (He et al. 2016, arXiv:1603.05027), stochastic depth (Huang et al. 2016, arXiv:1603.09382).

Cost: 36 runs on digits: 9 minutes on 2 CPU cores that other programs shared (n = 1).
Expect: batch and group normalization with any shortcut: 1 to 2 % test error. Without normalization: 3 %, and with
squeeze-and-excitation 38 to 60 %. Three seeds show no difference; five or more may.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from torch import Tensor, nn
from torchvision.ops import SqueezeExcitation, StochasticDepth

from ablations import ConfigError, Study, main

ACTIVATIONS = {"relu": nn.ReLU, "silu": nn.SiLU, "gelu": nn.GELU}


@dataclass(frozen=True, kw_only=True)
class Components:
    """A residual network of three stages of two-layer blocks, for small images."""

    blocks: int = 1  # in each stage
    width: int = 16  # filters of the first stage; each later stage doubles it
    norm: Literal["batch", "group", "none"] = "batch"
    activation: Literal["relu", "silu", "gelu"] = "relu"
    stem: Literal["one", "three"] = "one"  # 3×3 convolutions; ResNet-C has three
    shortcut: Literal["strided", "pooled"] = "strided"  # ResNet-D averages before its 1×1 convolution
    squeeze: bool = False  # squeeze-and-excitation in each block
    pre_activation: bool = False  # normalize and activate before each convolution
    stochastic_depth: float = 0.0  # probability that training skips the last block; earlier blocks have less

    def __post_init__(self) -> None:
        if self.blocks < 1 or self.width < 8 or self.width % 8:
            raise ConfigError(f"blocks={self.blocks}, width={self.width}: accepted: at least 1, and a multiple of 8")
        if not 0 <= self.stochastic_depth < 1:
            raise ConfigError(f"stochastic_depth={self.stochastic_depth}: accepted: from 0 to below 1")

    def build(self, image_size: int, in_channels: int, num_classes: int) -> nn.Module:
        widths = [in_channels, *[self.width // 2] * 2, self.width] if self.stem == "three" else [in_channels, self.width]
        layers = [layer for sizes in pairwise(widths) for layer in self.convolution(*sizes)]
        if self.pre_activation:  # the first block brings its own
            layers = layers[:-2]
        channels, total = self.width, 3 * self.blocks
        for number in range(total):
            stage, place = divmod(number, self.blocks)
            skipped = self.stochastic_depth * (number + 1) / total
            layers.append(Block(self, channels, self.width * 2**stage, 2 if stage and not place else 1, skipped))
            channels = self.width * 2**stage
        if self.pre_activation:
            layers += [self.make_norm(channels), self.make_activation()]
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, num_classes))

    def convolution(self, inputs: int, outputs: int, stride: int = 1) -> list[nn.Module]:
        """Return a 3×3 convolution, a normalization and an activation, in the order of `pre_activation` within blocks."""
        conv = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=self.norm == "none")
        nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
        return [conv, self.make_norm(outputs), self.make_activation()]

    def make_norm(self, channels: int) -> nn.Module:
        if self.norm == "none":
            return nn.Identity()
        return nn.BatchNorm2d(channels) if self.norm == "batch" else nn.GroupNorm(4, channels)

    def make_activation(self) -> nn.Module:
        activation: nn.Module = ACTIVATIONS[self.activation]()
        return activation


class Block(nn.Module):
    """Two 3×3 convolutions and a shortcut, which projects where the shape changes."""

    def __init__(self, config: Components, inputs: int, outputs: int, stride: int, skipped: float) -> None:
        super().__init__()
        self.last = nn.Identity() if config.pre_activation else config.make_activation()
        if config.pre_activation:
            first, second = config.convolution(inputs, outputs, stride)[0], config.convolution(outputs, outputs)[0]
            ready = [config.make_norm(inputs), config.make_activation()]
            layers = [*ready, first, config.make_norm(outputs), config.make_activation(), second]
        else:
            layers = [*config.convolution(inputs, outputs, stride), *config.convolution(outputs, outputs)[:2]]
        if config.squeeze:
            layers.append(SqueezeExcitation(outputs, outputs // 4))
        self.residual = nn.Sequential(*layers, StochasticDepth(skipped, "row"))
        self.shortcut: nn.Module = nn.Identity()
        if inputs != outputs:
            pooled = config.shortcut == "pooled"
            average = nn.AvgPool2d(2, ceil_mode=True) if pooled else nn.Identity()
            projection = nn.Conv2d(inputs, outputs, 1, 1 if pooled else stride, bias=False)
            self.shortcut = nn.Sequential(average, projection, config.make_norm(outputs))

    def forward(self, x: Tensor) -> Tensor:
        activated: Tensor = self.last(self.residual(x) + self.shortcut(x))
        return activated


STUDY = Study(
    name="components",
    question="Which pieces of later residual networks does a small one need?",
    model=Components,
    factors={"norm": ("batch", "group", "none"), "shortcut": ("strided", "pooled"), "squeeze": (False, True)},
    baseline={"norm": "batch", "shortcut": "strided", "squeeze": False},
)

if __name__ == "__main__":
    main(STUDY)
