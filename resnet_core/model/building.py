"""Networks of any kind from their configuration, and their check before a training."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from resnet_core.config import ModelConfig, Network
from resnet_core.fields import ConfigError
from resnet_core.model.library import build_library_network
from resnet_core.model.network import build_model

DEFAULT_CHANNELS, DEFAULT_CLASSES = 3, 10
"""Color channels and classes of a network of one's own that is built without a data set."""
RECOMPUTE = "checkpoint_activations"
"""Attribute of a network that recomputes activations in the backward pass if it is True."""


def build_network(
    config: ModelConfig | Network,
    image_size: int,
    *,
    in_channels: int | None = None,
    num_classes: int | None = None,
    checkpoint_activations: bool = False,
) -> nn.Module:
    """Return a network with initial weights that are drawn from PyTorch's global random generator.

    Args:
        config: network of He et al., of another library, or of one's own.
        image_size: side of the square images, in pixels.
        in_channels: number of color channels. None: the configuration's, else 3.
        num_classes: number of classes. None: the configuration's, else the paper's for a network of He et al. and 10 for others.
        checkpoint_activations: recompute activations in the backward pass to save memory. A network that is not of He et al. must
            have an attribute of this name, which is set to True.

    Raises:
        ConfigError: the library or the network is unknown, `build` fails or returns no `torch.nn.Module`, or the network cannot
            recompute its activations.
    """
    if isinstance(config, ModelConfig):
        config = config.resolved(num_classes=num_classes, in_channels=in_channels)
        if not config.name:
            return build_model(config, checkpoint_activations=checkpoint_activations)
        net = build_library_network(config)
    else:
        net = _build_own(config, image_size, in_channels or DEFAULT_CHANNELS, num_classes or DEFAULT_CLASSES)
    if checkpoint_activations:
        if not can_recompute(net):
            raise cannot_recompute(config)
        setattr(net, RECOMPUTE, True)
    return net


def _build_own(config: Network, image_size: int, in_channels: int, num_classes: int) -> nn.Module:
    name = label(config)
    net: Any = attempt(f"{name}.build", lambda: config.build(image_size, in_channels, num_classes))
    if not isinstance(net, nn.Module):
        raise ConfigError(f"{name}.build: returns {type(net).__name__}; accepted: a torch.nn.Module")
    for layer, tensor in (*net.named_parameters(), *net.named_buffers()):
        if is_lazy(tensor):
            accepted = "layers with given sizes, or a forward pass of zeros inside build"
            raise ConfigError(f"{name}.build: {layer} has no size before the first images; accepted: {accepted}")
    return net


def label(config: ModelConfig | Network) -> str:
    """Return the name of a network for messages: `torchvision:resnet18`, or the class of its configuration."""
    return (config.name if isinstance(config, ModelConfig) else None) or type(config).__name__


def can_recompute(net: nn.Module) -> bool:
    """Return True if a network has the attribute that `RunSpec.checkpoint_activations` sets."""
    return hasattr(net, RECOMPUTE)


def cannot_recompute(config: ModelConfig | Network) -> ConfigError:
    """Return the error for a network without the attribute that `RunSpec.checkpoint_activations` sets."""
    accepted = f"the module of {label(config)} has no attribute checkpoint_activations, by which forward would recompute"
    return ConfigError(f"checkpoint_activations=true: {accepted}; accepted: false")


def attempt(what: str, work: Callable[[], Any]) -> Any:
    """Return the result of code that users wrote; any exception becomes a ConfigError that names the code."""
    try:
        return work()
    except ConfigError:
        raise
    except Exception as error:  # code of users may raise anything
        raise ConfigError(f"{what}: {type(error).__name__}: {' '.join(str(error).split())}") from error


def checked_output(name: str, output: Any, images: Tensor, num_classes: int) -> Tensor:
    """Return the output of a network; raise ConfigError if it is no tensor (N, num_classes) of floating-point logits.

    Args:
        name: name of the network, for the message.
        output: value that the network returned.
        images: images (N, C, H, W) that it was given.
        num_classes: number of classes of the data set.
    """
    accepted = f"accepted: logits ({len(images)}, {num_classes}), a number for each image and class"
    if not isinstance(output, Tensor):
        raise ConfigError(f"{name}: its output is a {type(output).__name__}; {accepted}")
    if output.shape != (len(images), num_classes) or not output.is_floating_point():
        given = f"{tuple(output.shape)} of {str(output.dtype).removeprefix('torch.')}"
        raise ConfigError(f"{name}: its output for {len(images)} images is {given}; {accepted}")
    return output


def in_layout(net: nn.Module, *, channels_last: bool) -> nn.Module:
    """Return the network with its weights of 4 dimensions in the memory layout NHWC or NCHW; others stay as they are."""
    # `Module.to` would also convert weights of 5 dimensions, which have no such layout.
    layout = torch.channels_last if channels_last else torch.contiguous_format
    for tensor in (*net.parameters(), *net.buffers()):
        if tensor.ndim == 4:
            tensor.data = tensor.data.to(memory_format=layout)
    return net
