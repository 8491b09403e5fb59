"""Trainings whose results tests compare bit by bit."""

import io
from typing import Any

import torch
from torch import Tensor

from resnet_core import EpochResult, ModelConfig, RunSpec, fit

CLOCKED = {"images_per_second", "epoch_seconds", "peak_memory_mb", "train_seconds", "data_wait_seconds"}
"""Metrics that depend on time or memory, and so differ between equal trainings."""


def through_a_file(checkpoint: dict[str, Any]) -> Any:
    file = io.BytesIO()
    torch.save(checkpoint, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def train(spec: RunSpec, restore: Any = None, **how: Any) -> tuple[list[EpochResult], list[dict[str, Any]]]:
    """Train a run; return the results of all epochs and their checkpoints."""
    results, checkpoints = [], []
    for result in fit(spec, restore=restore, **how):
        results.append(result)
        checkpoints.append(through_a_file(result.checkpoint()))
    return results, checkpoints


def learned(history: list[dict[str, float]]) -> list[dict[str, float]]:
    """Return metrics without those that depend on time or memory."""
    return [{name: value for name, value in metrics.items() if name not in CLOCKED} for metrics in history]


def weights_differ(a: dict[str, Tensor], b: dict[str, Tensor]) -> list[str]:
    assert a.keys() == b.keys()
    return [name for name in a if not torch.equal(a[name], b[name])]


def paper_network(spec: RunSpec) -> ModelConfig:
    """Return the network of a run that trains one of He et al."""
    assert isinstance(spec.model, ModelConfig)
    return spec.model
