"""Configuration of a network."""

import re
from dataclasses import dataclass, fields, replace
from typing import Literal, Self

from resnet_core.fields import Checked, ConfigError

MAX_LAYERS = 20_000
"""Maximum depth. The paper's deepest network has 1,202 layers; a mistyped depth would take hours to build."""
MAX_STAGES = 8
"""Maximum number of stages. Each stage after the first halves the image, so that the last of many would see a single pixel."""
MAX_CHANNELS = 4096
"""Maximum of `width` and of `in_channels`."""
MAX_CLASSES = 1_000_000
"""Maximum of `num_classes`."""

_NAME = re.compile(r"(torchvision|timm):\w[\w.-]*")
_SHARED = ("name", "num_classes", "in_channels")
"""Fields that networks of other libraries have, too."""
IMAGENET_STAGES: dict[tuple[str, int], tuple[int, ...]] = {
    ("basic", 18): (2, 2, 2, 2),
    ("basic", 34): (3, 4, 6, 3),
    ("bottleneck", 50): (3, 4, 6, 3),
    ("bottleneck", 101): (3, 4, 23, 3),
    ("bottleneck", 152): (3, 8, 36, 3),
}
"""Blocks per stage of the ImageNet networks, by block type and depth (He et al. 2015, table 1)."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig(Checked):
    """A network of He et al. 2015: the CIFAR family (section 4.2) or the ImageNet family (table 1), residual or plain.

    With `name`, a network of torchvision or timm.
    """

    _section = "model."

    name: str | None = None
    """Network of another library, with random initial weights: `torchvision:resnet50`, or `timm:resnet50d` (`pip install
    "resnet-ablations[timm]"`). All other fields but `num_classes` and `in_channels` then keep their defaults. torchvision's
    networks get gray images as three equal channels. The version of the library is part of a run's identity. None: a network of He
    et al., by the other fields.

    Accepted: `torchvision:` or `timm:`, and the name of a network that classifies images.
    Source: `torchvision.models.get_model`; `timm.create_model`.
    """
    family: Literal["cifar", "imagenet"] = "cifar"
    """Stem and stages. `cifar`: a 3×3 convolution and three stages. `imagenet`: a 7×7 convolution, max pooling and four stages.

    Source: section 4.2; table 1.
    """
    depth: int = 20
    """Number of weighted layers on the main path. CIFAR depths are 6n+2 (basic) or 9n+2 (bottleneck). ImageNet depths are 18 and
    34 (basic) or 50, 101 and 152 (bottleneck).

    Unit: layers.
    Accepted: the depths above, or any depth up to 20,000 that `stages` adds up to.
    Source: section 4.2; table 1.
    """
    block: Literal["basic", "bottleneck"] = "basic"
    """Residual function. `basic`: two 3×3 convolutions. `bottleneck`: 1×1, 3×3 and 1×1 convolutions, with four times as many output
    channels.

    Source: figure 5.
    """
    shortcut: Literal["none", "A", "B", "C"] = "A"
    """Shortcut connection. `none`: a plain network. `A`: identity, zero-padded where the number of channels grows. `B`: a
    projection where the shape changes, identity elsewhere. `C`: a projection in every block.

    Source: section 4.1.
    """
    width: int | None = None
    """Number of filters of the first stage; each later stage doubles it. None: the paper's, 16 (`cifar`) or 64 (`imagenet`).

    Unit: channels.
    Accepted: 8 to 4,096.
    Source: section 4.2; table 1.
    """
    stages: tuple[int, ...] | None = None
    """Blocks per stage. None: the paper's for `depth`.

    Unit: blocks.
    Accepted: 1 to 8 stages of at least one block that add up to `depth`.
    Source: section 4.2; table 1.
    """
    stride_in: Literal["1x1", "3x3"] = "1x1"
    """Convolution of a bottleneck that carries the stride: the first 1×1 (the paper) or the 3×3 (torchvision).

    Source: section 3.3; torchvision's ResNet V1.5.
    """
    num_classes: int | None = None
    """Number of outputs. None: the data set's in a run; 10 (`cifar`) or 1,000 (`imagenet`) for a network built on its own.

    Unit: classes.
    Accepted: 2 to 1,000,000; in a run, the data set's number.
    """
    in_channels: int | None = None
    """Number of color channels of the input. None: the data set's in a run; 3 for a network built on its own.

    Unit: channels.
    Accepted: 1 to 4,096; in a run, the data set's number.
    """
    zero_init_residual: bool = False
    """Initialize the scale of each block's last BatchNorm to zero, so that every block starts as its shortcut. The paper does not.

    Source: Goyal et al. 2017, arXiv:1706.02677, section 5.1.
    """
    bn_momentum: float = 0.1
    """Weight of the newest batch in BatchNorm's running statistics.

    Unit: fraction.
    Accepted: above 0, at most 1.
    Source: PyTorch's default.
    """
    match_flops: Literal["basic", "bottleneck"] | None = None
    """Choose `width` so that the network costs as many multiply-adds as the network of the paper's width with these blocks."""
    match_parameters: Literal["A", "B", "C"] | None = None
    """Choose `width` so that the network has as many parameters as the network of the paper's width with this shortcut option."""

    def _check(self) -> None:
        # Below 8 channels, oneDNN's strided 1×1 convolution in channels_last writes past its memory (torch 2.14, one thread).
        self._at_least(8, "width")
        self._at_least(1, "in_channels")
        self._at_least(2, "num_classes")
        self._at_most(MAX_LAYERS, "depth")
        self._at_most(MAX_CHANNELS, "width", "in_channels")
        self._at_most(MAX_CLASSES, "num_classes")
        if not 0 < self.bn_momentum <= 1:
            raise self._reject("bn_momentum", "accepted: above 0 and at most 1")
        if self.zero_init_residual and self.shortcut == "none":
            raise self._reject("zero_init_residual", "a plain network has no residual functions; model.shortcut=none")
        if self.name is not None:
            self._check_name()
            return
        self._check_matching()
        if self.stages is None:
            self._paper_stages()
            return
        if not self.stages or min(self.stages) < 1:
            raise self._reject("stages", "accepted: one or more stages of at least one block")
        if len(self.stages) > MAX_STAGES:
            raise self._reject("stages", f"accepted: at most {MAX_STAGES} stages")
        makes = 2 + self.layers_per_block * sum(self.stages)
        if makes != self.depth:
            raise self._reject("depth", f"stages {self.stages} of {self.block} blocks make depth {makes}")

    def _check_name(self) -> None:
        if not _NAME.fullmatch(self.name or ""):
            raise self._reject("name", "accepted: torchvision:NAME or timm:NAME, such as torchvision:resnet18")
        others = [each for each in fields(self) if each.name not in _SHARED and getattr(self, each.name) != each.default]
        if others:
            accepted = " ".join(f"{each.name}={each.default}" for each in others)
            why = f"is a field of the networks of He et al.; accepted with model.name={self.name}: {accepted}, the default"
            raise self._reject(others[0].name, why + "s" * (len(others) > 1))

    def _check_matching(self) -> None:
        wanted = [name for name in ("match_flops", "match_parameters") if getattr(self, name) is not None]
        if not wanted:
            return
        if self.width is not None or len(wanted) > 1:
            raise self._reject(wanted[0], f"chooses model.width, which {'another field' if len(wanted) > 1 else 'is given'} too")
        if getattr(self, wanted[0]) in (self.block, self.shortcut):
            raise self._reject(wanted[0], "is what this network has already")
        if self.match_flops:
            try:
                replace(self, match_flops=None, block=self.match_flops)
            except ConfigError as error:
                raise self._reject("match_flops", f"no such network of depth {self.depth}") from error

    @property
    def library(self) -> str | None:
        """Name of the library that the network is from: `torchvision` or `timm`. None: a network of He et al."""
        return self.name.partition(":")[0] if self.name else None

    @property
    def layers_per_block(self) -> int:
        """Number of weighted layers on the main path of a block."""
        return 2 if self.block == "basic" else 3

    def _paper_stages(self) -> tuple[int, ...]:
        """Return the paper's blocks per stage; raise ConfigError if it has no network of this depth."""
        if self.family == "cifar":
            per_n = 3 * self.layers_per_block
            if self.depth < per_n + 2 or (self.depth - 2) % per_n:
                known = ", ".join(str(per_n * n + 2) for n in (1, 2, 3, 5, 7, 9, 18))
                raise self._reject("depth", f"cifar with {self.block} blocks has depths {per_n}n+2: {known}, …")
            return ((self.depth - 2) // per_n,) * 3
        if (self.block, self.depth) not in IMAGENET_STAGES:
            known = ", ".join(str(depth) for block, depth in IMAGENET_STAGES if block == self.block)
            raise self._reject("depth", f"imagenet with {self.block} blocks has depths {known}; others need model.stages")
        return IMAGENET_STAGES[self.block, self.depth]

    def resolved(self, *, num_classes: int | None = None, in_channels: int | None = None) -> Self:
        """Return the network with its optional fields filled in: from the arguments (a data set), else from the paper.

        With `match_flops` or `match_parameters`, `width` and `stages` stay None: `resnet_core.model.cost.matched` fills them in.
        With `name`, they stay None, too.

        Args:
            num_classes: number of classes of the data set.
            in_channels: number of color channels of the data set.

        Raises:
            ConfigError: a field contradicts the data set.
        """
        for name, found in (("num_classes", num_classes), ("in_channels", in_channels)):
            if found is not None and getattr(self, name) not in (None, found):
                raise self._reject(name, f"the data set has {found}")
        cifar = self.family == "cifar"
        known = replace(
            self,
            num_classes=self.num_classes or num_classes or (10 if cifar else 1000),
            in_channels=self.in_channels or in_channels or 3,
        )
        if self.name or self.match_flops or self.match_parameters:
            return known
        return replace(known, width=self.width or (16 if cifar else 64), stages=self.stages or self._paper_stages())
