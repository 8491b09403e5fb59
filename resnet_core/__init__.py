"""Residual networks of He et al. 2015: configurations, networks, data and training in plain PyTorch.

Names are imported when first used, so that configurations and their error messages do not wait for torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

from resnet_core.config import (
    PRESETS,
    DataConfig,
    ModelConfig,
    OptimConfig,
    RunSpec,
    override,
    preset,
)
from resnet_core.fields import ConfigError
from resnet_core.identity import fingerprint

if TYPE_CHECKING:
    from resnet_core.cost import Cost, measure_cost
    from resnet_core.datasets import Dataset, load_dataset
    from resnet_core.model import ResNet, build_model
    from resnet_core.training import Diverged, EpochResult, fit

_LAZY = {
    "Cost": "cost",
    "measure_cost": "cost",
    "Dataset": "datasets",
    "load_dataset": "datasets",
    "ResNet": "model",
    "build_model": "model",
    "Diverged": "training",
    "EpochResult": "training",
    "fit": "training",
}

__all__ = [
    "PRESETS",
    "ConfigError",
    "Cost",
    "DataConfig",
    "Dataset",
    "Diverged",
    "EpochResult",
    "ModelConfig",
    "OptimConfig",
    "ResNet",
    "RunSpec",
    "build_model",
    "fingerprint",
    "fit",
    "load_dataset",
    "measure_cost",
    "override",
    "preset",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)
