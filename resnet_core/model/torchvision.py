"""Exchange of networks with torchvision, whose ResNets are the ImageNet family with option B and `stride_in="3x3"`."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from resnet_core.config import IMAGENET_STAGES, ModelConfig
from resnet_core.fields import ConfigError, reject
from resnet_core.model.network import ResNet, build_model

if TYPE_CHECKING:
    import torchvision


def to_torchvision(net: ResNet) -> "torchvision.models.ResNet":
    """Return a `torchvision.models.ResNet` that computes the same as `net`, with its own copy of the weights.

    Args:
        net: network of the ImageNet family with option B, width 64 and, for bottlenecks, `stride_in="3x3"`.

    Raises:
        ConfigError: torchvision has no such network.
    """
    config = net.config
    required = {"family": "imagenet", "shortcut": "B", "width": 64, "in_channels": 3}
    if config.block == "bottleneck":
        required["stride_in"] = "3x3"
    for name, value in required.items():
        if getattr(config, name) != value:
            raise reject(f"model.{name}", getattr(config, name), f"torchvision's networks have {value}")
    if IMAGENET_STAGES.get((config.block, config.depth)) != config.stages:
        known = ", ".join(str(depth) for _, depth in IMAGENET_STAGES)
        raise reject("model.stages", config.stages, f"torchvision's networks have those of depths {known}")
    from torchvision import models

    with torch.device("meta"):
        theirs = getattr(models, f"resnet{config.depth}")(weights=None, num_classes=config.num_classes)
    theirs.load_state_dict(_copied(net.state_dict()), assign=True)
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = config.bn_momentum
    return theirs.train(net.training)


def from_torchvision(source: nn.Module | Mapping[str, Tensor], *, depth: int) -> ResNet:
    """Return the network of a torchvision ResNet or of its state dict, such as published weights, with its own copy of the weights.

    Args:
        source: a `torchvision.models.ResNet` or its `state_dict()`, with any number of classes.
        depth: 18, 34, 50, 101 or 152.

    Raises:
        ConfigError: the source is not a torchvision ResNet of this depth.
    """
    blocks = {known: block for block, known in IMAGENET_STAGES}
    if depth not in blocks:
        raise reject("depth", depth, f"accepted: {', '.join(map(str, blocks))}")
    state: Mapping[str, Any] = source.state_dict() if isinstance(source, nn.Module) else source
    fc = state.get("fc.weight")
    if not isinstance(fc, Tensor) or fc.ndim != 2:
        raise _reject("fc.weight", "missing, or not a matrix", depth)
    options: dict[str, Any] = {"block": "basic"} if blocks[depth] == "basic" else {"block": "bottleneck", "stride_in": "3x3"}
    if isinstance(source, nn.Module):
        momenta = {module.momentum for module in source.modules() if isinstance(module, nn.BatchNorm2d)}
        options["bn_momentum"] = next(iter(momenta)) if len(momenta) == 1 else 0.1
    config = ModelConfig(family="imagenet", depth=depth, shortcut="B", num_classes=len(fc), **options)
    with torch.device("meta"):
        net = build_model(config)
    expected = net.state_dict()
    # Weights that were published before BatchNorm counted its batches lack `num_batches_tracked`.
    absent = {name: torch.zeros_like(count, device=fc.device) for name, count in expected.items() if name.endswith("_tracked")}
    state = absent | dict(state)
    for name in sorted(expected.keys() ^ state.keys()):
        raise _reject(name, "missing" if name in expected else "unknown", depth)
    for name, tensor in expected.items():
        if not isinstance(state[name], Tensor) or state[name].shape != tensor.shape:
            shape = "×".join(map(str, getattr(state[name], "shape", ())))
            raise _reject(name, f"has shape {shape}, not {'×'.join(map(str, tensor.shape))}", depth)
    if isinstance(source, nn.Module):
        _check_strides(source, net, depth)
        net.train(source.training)
    net.load_state_dict(_copied(state), assign=True)
    return net


def _check_strides(source: nn.Module, net: ResNet, depth: int) -> None:
    """Raise ConfigError if the strides of `source` differ from those of `net`.

    A state dict does not hold strides. Without this check, the weights of a ResNet with `stride_in="1x1"` would load without an
    error into a network with other strides.
    """
    for name, module in net.named_modules():
        if isinstance(module, nn.Conv2d) and (stride := getattr(source.get_submodule(name), "stride", None)) != module.stride:
            raise _reject(name, f"has stride {stride}, not {module.stride}", depth)


def _copied(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in state.items()}


def _reject(name: str, problem: str, depth: int) -> ConfigError:
    return reject("source", name, f"{problem}; accepted: torchvision's resnet{depth} or its state dict")
