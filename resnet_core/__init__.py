"""Residual networks of He et al. 2015: configurations, networks, data and training in plain PyTorch.

Names are imported when first used, so that configurations and their error messages do not wait for torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

from resnet_core.config import DataConfig, ModelConfig, OptimConfig, RunSpec
from resnet_core.fields import ConfigError
from resnet_core.identity import fingerprint
from resnet_core.overrides import override
from resnet_core.presets import PRESETS, preset

if TYPE_CHECKING:
    from resnet_core.data.datasets import Dataset, load_dataset
    from resnet_core.model.cost import Cost, measure_cost
    from resnet_core.model.network import ResNet, build_model
    from resnet_core.training.loop import Diverged, EpochResult, fit

_LAZY = {
    "Cost": "model.cost",
    "measure_cost": "model.cost",
    "Dataset": "data.datasets",
    "load_dataset": "data.datasets",
    "ResNet": "model.network",
    "build_model": "model.network",
    "Diverged": "training.loop",
    "EpochResult": "training.loop",
    "fit": "training.loop",
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
