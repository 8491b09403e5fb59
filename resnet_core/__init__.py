"""Residual networks of He et al. 2015 (arXiv:1512.03385) in plain PyTorch: configurations, networks, data sets and training.

Train a ResNet-20 on scikit-learn's digits for one epoch, without a download:

    >>> from resnet_core import fit, override, preset
    >>> spec = override(preset("digits"), {"model.depth": 20, "optim.epochs": 1})
    >>> for result in fit(spec, device="cpu"):
    ...     print(f"epoch {result.epoch}: {result.metrics['parameters']:,} parameters, {result.metrics['flops']:,} multiply-adds")
    epoch 1: 269,434 parameters, 2,516,608 multiply-adds
    >>> sorted(name for name in result.metrics if name.startswith("test/"))
    ['test/error', 'test/loss']

`RunSpec` describes a run completely, and docs/fields.md lists its fields. `fit(spec, restore=result.checkpoint())` resumes a
training. On a busy machine, call `torch.set_num_threads(1)` first: small networks gain little from more threads.

This package exports the names in `__all__`; other modules may change in any release. It depends on PyTorch 2.9 or later, and
neither on Ray nor on MLflow. A name is imported on first use, so that configurations and error messages do not wait for torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

from resnet_core.config import DataConfig, ModelConfig, Network, OptimConfig, RunSpec
from resnet_core.fields import ConfigError
from resnet_core.identity import fingerprint
from resnet_core.overrides import override
from resnet_core.presets import PRESETS, preset

if TYPE_CHECKING:
    from resnet_core.data.datasets import Dataset, load_dataset
    from resnet_core.data.readers import Images
    from resnet_core.model.building import build_network
    from resnet_core.model.cost import Cost, measure_cost
    from resnet_core.model.network import ResNet, build_model
    from resnet_core.model.torchvision import from_torchvision, to_torchvision
    from resnet_core.training.divergence import Diverged
    from resnet_core.training.loop import EpochResult, fit

_MODULES = {
    "Cost": "model.cost",
    "measure_cost": "model.cost",
    "Dataset": "data.datasets",
    "Images": "data.readers",
    "load_dataset": "data.datasets",
    "ResNet": "model.network",
    "build_model": "model.network",
    "build_network": "model.building",
    "from_torchvision": "model.torchvision",
    "to_torchvision": "model.torchvision",
    "Diverged": "training.divergence",
    "EpochResult": "training.loop",
    "fit": "training.loop",
}
"""Module of each name that is imported on first use."""

__all__ = [
    "PRESETS",
    "ConfigError",
    "Cost",
    "DataConfig",
    "Dataset",
    "Diverged",
    "EpochResult",
    "Images",
    "ModelConfig",
    "Network",
    "OptimConfig",
    "ResNet",
    "RunSpec",
    "build_model",
    "build_network",
    "fingerprint",
    "fit",
    "from_torchvision",
    "load_dataset",
    "measure_cost",
    "override",
    "preset",
    "to_torchvision",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
