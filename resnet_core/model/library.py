"""Networks of torchvision and timm by name."""

import difflib
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from resnet_core.config import ModelConfig
from resnet_core.fields import ConfigError, reject

AUXILIARY = ("googlenet", "inception_v3")
"""Networks of torchvision with additional outputs in training, which are left out: loss and error are those of one output."""


class GrayAsColor(nn.Module):
    """Network for color images that gets gray ones, as three equal channels."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(x.expand(-1, 3, -1, -1))
        return logits


def build_library_network(config: ModelConfig) -> nn.Module:
    """Return a network of torchvision or timm with random initial weights.

    Args:
        config: resolved network with a `name`.

    Raises:
        ConfigError: the library is not installed or has no such network, or the images have a number of channels that it rejects.
    """
    library, _, name = (config.name or "").partition(":")
    build = {"torchvision": _torchvision, "timm": _timm}[library]
    try:
        return build(config, name)
    except ConfigError:
        raise
    except Exception as error:  # constructors raise many types
        raise reject("model.name", config.name, f"{type(error).__name__}: {' '.join(str(error).split())}") from error


def _torchvision(config: ModelConfig, name: str) -> nn.Module:
    from torchvision import models  # takes seconds to import

    known = models.list_models(module=models)
    if name not in known:
        raise _unknown(config, name, known)
    if config.in_channels not in (1, 3):
        accepted = "torchvision's networks take color images; accepted: 3, or 1 as three equal channels"
        raise reject("model.in_channels", config.in_channels, accepted)
    plain = {"aux_logits": False, "init_weights": True} if name in AUXILIARY else {}
    net: nn.Module = models.get_model(name, weights=None, num_classes=config.num_classes, **plain)
    return GrayAsColor(net) if config.in_channels == 1 else net


def _timm(config: ModelConfig, name: str) -> nn.Module:
    try:
        import timm
    except ImportError as error:
        accepted = f'timm cannot be imported ({error}); accepted: pip install "resnet-ablations[timm]", or torchvision:NAME'
        raise reject("model.name", config.name, accepted) from error
    if not timm.is_model(name):
        raise _unknown(config, name, timm.list_models())
    net: Any = timm.create_model(name, pretrained=False, num_classes=config.num_classes, in_chans=config.in_channels)
    assert isinstance(net, nn.Module)
    return net


def _unknown(config: ModelConfig, name: str, known: Sequence[str]) -> ConfigError:
    near = [f"{config.library}:{each}" for each in difflib.get_close_matches(name.lower(), known, n=3, cutoff=0.5)]
    hint = f"did you mean {' or '.join(near)}?" if near else f"such as {config.library}:resnet18"
    return reject("model.name", config.name, f"no network of {config.library}; {hint}")
