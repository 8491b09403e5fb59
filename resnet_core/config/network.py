"""Protocol of networks that users bring."""

from collections.abc import Hashable
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import nn


class Network(Hashable, Protocol):
    """Configuration of a network of one's own: a frozen dataclass whose fields are hyperparameters, for `RunSpec.model`.

    Example:
        >>> @dataclass(frozen=True, kw_only=True)
        ... class Linear:
        ...     bias: bool = True
        ...
        ...     def build(self, image_size: int, in_channels: int, num_classes: int) -> nn.Module:
        ...         return nn.Sequential(nn.Flatten(), nn.Linear(in_channels * image_size**2, num_classes, self.bias))
    """

    def build(self, image_size: int, in_channels: int, num_classes: int) -> "nn.Module":
        """Return the network with initial weights that are drawn from PyTorch's global random generator.

        The network maps float images (N, in_channels, image_size, image_size) to logits (N, num_classes).

        Args:
            image_size: side of the square images, in pixels.
            in_channels: number of color channels of the images.
            num_classes: number of classes.
        """
        ...
