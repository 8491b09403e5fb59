"""Published results of these networks, for comparison with measured ones: He et al. 2015 (arXiv:1512.03385) and reproductions."""

from dataclasses import dataclass
from typing import Any, Literal

from resnet_core import ModelConfig

PAPER = "He et al. 2015"
REPRODUCTION = "nabla0001, independent reproduction"
TORCHVISION = "torchvision, IMAGENET1K_V1 weights"

Protocol = Literal["one view", "10-crop", "multi-scale"]


@dataclass(frozen=True, kw_only=True)
class PublishedResult:
    """One published result. Errors are in percent, on CIFAR-10's test set or ImageNet's validation set; None: not published."""

    dataset: Literal["cifar10", "imagenet"]
    depth: int
    shortcut: Literal["none", "A", "B", "C"]
    block: Literal["basic", "bottleneck"] = "basic"
    protocol: Protocol = "one view"
    """`one view`: the whole image (CIFAR-10) or its center. `10-crop`: four corners and the center, each also mirrored.
    `multi-scale`: fully convolutional at shorter sides 224, 256, 384, 480, 640 (section 3.4)."""
    stride_in: Literal["1x1", "3x3"] | None = None
    """Convolution of a bottleneck that has the stride; None for basic blocks."""
    error: float | None = None
    """Top-1 error: the mean if `runs` is above 1, otherwise that of one run (table 6, 110 layers: the best of five)."""
    std: float | None = None
    """Standard deviation of the top-1 error over `runs`."""
    runs: int = 1
    top5_error: float | None = None
    is_lower_bound: bool = False
    """True if `error` is only a lower bound."""
    parameters_millions: str | None = None
    """Number of parameters in millions, as printed, since the digits show the precision."""
    flops_billions: str | None = None
    """Billions of multiply-adds, as printed. Table 1 truncates some numbers and rounds others: 50 layers have 3.858."""
    source: str
    """Publication, with the number of the table."""

    @property
    def family(self) -> Literal["cifar", "imagenet"]:
        return "cifar" if self.dataset == "cifar10" else "imagenet"

    @property
    def model(self) -> ModelConfig:
        """The network, with the paper's width and stages."""
        return ModelConfig(
            family=self.family, depth=self.depth, block=self.block, shortcut=self.shortcut, stride_in=self.stride_in or "1x1"
        )


def _cifar(depth: int, error: float, shortcut: Literal["none", "A"] = "A", **more: Any) -> PublishedResult:
    return PublishedResult(dataset="cifar10", depth=depth, shortcut=shortcut, error=error, **more)


def _imagenet(depth: int, shortcut: Literal["none", "A", "B", "C"], **more: Any) -> PublishedResult:
    bottleneck: dict[str, Any] = {"block": "bottleneck", "stride_in": "1x1"} if depth >= 50 else {}
    return PublishedResult(dataset="imagenet", depth=depth, shortcut=shortcut, **bottleneck | more)


def _table(number: str) -> str:
    return f"{PAPER}, table {number}"


FLOPS = {18: "1.8", 34: "3.6", 50: "3.8", 101: "7.6", 152: "11.3"}
"""Billions of multiply-adds by depth (table 1): shortcut A with basic blocks, B with bottlenecks. Plain networks equal A."""

PUBLISHED: tuple[PublishedResult, ...] = (
    # Table 6. For 110 layers it gives the best of five runs as well as their mean and standard deviation.
    _cifar(20, 8.75, parameters_millions="0.27", source=_table("6")),
    _cifar(32, 7.51, parameters_millions="0.46", source=_table("6")),
    _cifar(44, 7.17, parameters_millions="0.66", source=_table("6")),
    _cifar(56, 6.97, parameters_millions="0.85", source=_table("6")),
    _cifar(110, 6.43, parameters_millions="1.7", source=_table("6")),
    _cifar(110, 6.61, std=0.16, runs=5, parameters_millions="1.7", source=_table("6")),
    _cifar(1202, 7.93, parameters_millions="19.4", source=_table("6")),
    _cifar(110, 60, "none", is_lower_bound=True, source=f"{PAPER}, section 4.2"),
    _cifar(20, 8.51, std=0.22, runs=5, source=REPRODUCTION),
    _cifar(56, 7.40, std=0.27, runs=5, source=REPRODUCTION),
    _cifar(110, 7.14, std=0.20, runs=5, source=REPRODUCTION),
    _cifar(20, 9.78, "none", std=0.13, runs=5, source=REPRODUCTION),
    _cifar(56, 12.95, "none", std=0.22, runs=5, source=REPRODUCTION),
    # Single runs of other reproductions.
    *(
        _cifar(depth, error, source="independent reproduction, single run")
        for depth, error in ((20, 8.27), (20, 8.29), (56, 6.61), (56, 6.94), (110, 6.32), (110, 6.73))
    ),
    _imagenet(18, "none", protocol="10-crop", error=27.94, flops_billions=FLOPS[18], source=_table("2")),
    _imagenet(18, "A", protocol="10-crop", error=27.88, flops_billions=FLOPS[18], source=_table("2")),
    _imagenet(34, "none", protocol="10-crop", error=28.54, top5_error=10.02, flops_billions=FLOPS[34], source=_table("3")),
    _imagenet(34, "A", protocol="10-crop", error=25.03, top5_error=7.76, flops_billions=FLOPS[34], source=_table("3")),
    _imagenet(34, "B", protocol="10-crop", error=24.52, top5_error=7.46, source=_table("3")),
    _imagenet(34, "C", protocol="10-crop", error=24.19, top5_error=7.40, source=_table("3")),
    _imagenet(50, "B", protocol="10-crop", error=22.85, top5_error=6.71, flops_billions=FLOPS[50], source=_table("3")),
    _imagenet(101, "B", protocol="10-crop", error=21.75, top5_error=6.05, flops_billions=FLOPS[101], source=_table("3")),
    _imagenet(152, "B", protocol="10-crop", error=21.43, top5_error=5.71, flops_billions=FLOPS[152], source=_table("3")),
    _imagenet(34, "B", protocol="multi-scale", error=21.84, top5_error=5.71, source=_table("4")),
    _imagenet(34, "C", protocol="multi-scale", error=21.53, top5_error=5.60, source=_table("4")),
    _imagenet(50, "B", protocol="multi-scale", error=20.74, top5_error=5.25, flops_billions=FLOPS[50], source=_table("4")),
    _imagenet(101, "B", protocol="multi-scale", error=19.87, top5_error=4.60, flops_billions=FLOPS[101], source=_table("4")),
    _imagenet(152, "B", protocol="multi-scale", error=19.38, top5_error=4.49, flops_billions=FLOPS[152], source=_table("4")),
    *(
        _imagenet(depth, "B", error=error, flops_billions=FLOPS[depth], source="the authors' release")
        for depth, error in ((50, 24.7), (101, 23.6), (152, 23.0))
    ),
    _imagenet(18, "B", error=30.242, source=TORCHVISION),
    _imagenet(34, "B", error=26.686, source=TORCHVISION),
    _imagenet(50, "B", error=23.870, stride_in="3x3", source=TORCHVISION),
)


def published_results(model: ModelConfig, dataset_name: str) -> tuple[PublishedResult, ...]:
    """Return the published results of an architecture on a data set, the paper's first. Most architectures have none.

    The place of a bottleneck's stride and the width are part of the architecture. Initial scales and the momentum of BatchNorm are
    not: they belong to the training recipe.
    """
    if model.match_flops or model.match_parameters:
        return ()  # these change the width
    wanted = _architecture(model)
    return tuple(
        entry
        for entry in PUBLISHED
        if entry.dataset == dataset_name and entry.stride_in in (None, model.stride_in) and _architecture(entry.model) == wanted
    )


def _architecture(model: ModelConfig) -> tuple[Any, ...]:
    model = model.resolved()
    return model.family, model.depth, model.block, model.shortcut, model.width, model.stages
