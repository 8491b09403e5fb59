"""Networks as users write them, for tests."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint


@dataclass(frozen=True, kw_only=True)
class Tiny:
    """Two convolutions and a linear layer."""

    width: int = 8
    norm: Literal["batch", "group", "none"] = "batch"
    dropout: float = 0.0

    def build(self, image_size: int, in_channels: int, num_classes: int) -> nn.Module:
        norms = {"batch": nn.BatchNorm2d(self.width), "group": nn.GroupNorm(2, self.width), "none": nn.Identity()}
        return nn.Sequential(
            nn.Conv2d(in_channels, self.width, 3, padding=1, bias=False),
            norms[self.norm],
            nn.ReLU(),
            nn.Conv2d(self.width, self.width, 3, stride=2, padding=1, groups=2),
            nn.ReLU(),
            nn.Flatten(),
            nn.Dropout(self.dropout),
            nn.Linear(self.width * (-(-image_size // 2)) ** 2, num_classes),
        )


@dataclass(frozen=True, kw_only=True)
class Inner:
    """Nested fields of `Varied`."""

    heads: int = 2


@dataclass(frozen=True, kw_only=True)
class Varied:
    """Convolutions of one and three dimensions and attention."""

    inner: Inner = Inner()
    unused: bool = False

    def build(self, image_size: int, in_channels: int, num_classes: int) -> nn.Module:
        return VariedNet(image_size, in_channels, num_classes, self)


class VariedNet(nn.Module):
    """The network of `Varied`."""

    def __init__(self, image_size: int, in_channels: int, num_classes: int, config: Varied) -> None:
        super().__init__()
        self.checkpoint_activations = False
        self.rates = torch.linspace(0, 0.1, 3).tolist()  # impossible on the meta device
        self.solid = nn.Conv3d(1, 2, (in_channels, 3, 3), padding=(0, 1, 1))
        self.rows = nn.Conv1d(2 * image_size, 8, 3, padding=1)
        self.attention = nn.MultiheadAttention(8, config.inner.heads, batch_first=True)
        self.fc = nn.Linear(8, num_classes)
        if config.unused:
            self.spare = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        recompute = self.checkpoint_activations and self.training and torch.is_grad_enabled()
        x = checkpoint(self.features, x, use_reentrant=False) if recompute else self.features(x)
        logits: Tensor = self.fc(x)
        return logits

    def features(self, x: Tensor) -> Tensor:
        x = F.relu(self.solid(x.unsqueeze(1)).flatten(1, 3))
        x = F.dropout(self.rows(x), self.rates[-1], self.training).transpose(1, 2)
        attended: Tensor = self.attention(x, x, x, need_weights=False)[0]
        return attended.mean(1)


@dataclass(frozen=True, kw_only=True)
class Rated(Tiny):
    """Network with a field that the optimizer has, too."""

    lr: float = 0.5
