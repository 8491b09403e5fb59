"""State of a training: everything that it changes and that a checkpoint holds."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from resnet_core.training.probes import Row

Metrics = dict[str, float]
"""Metrics of an epoch, by name."""


@dataclass
class TrainState:
    """Everything that a training changes."""

    net: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    average: AveragedModel | None = None
    """Moving average of the weights; None without `optim.ema`."""
    step: int = 0
    """Number of finished steps."""
    warmup_steps: int | None = None
    """Length of the warm-up by training error in steps; None before its end."""
    history: list[Metrics] = field(default_factory=list)
    """Metrics of every finished epoch. A resumed run reports again those that were not delivered before the interruption."""
    probes: list[Row] = field(default_factory=list)
    """Rows that the probes have measured so far."""
    predictions: torch.Tensor | None = None
    """Predicted class of each test image (N,), int32, in the order of the data set. None before the last epoch, and with a
    validation split."""

    @property
    def evaluated(self) -> nn.Module:
        """Network that is evaluated: the moving average of the weights if there is one."""
        return self.average.module if self.average else self.net

    @property
    def epoch(self) -> int:
        """Number of finished epochs."""
        return len(self.history)

    def save(self) -> dict[str, Any]:
        """Return a copy of the state as tensors, numbers, lists and dicts."""
        state = {
            "model": self.net.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "step": self.step,
            "warmup_steps": self.warmup_steps,
            "history": self.history,
            "probes": self.probes,
        }
        if self.average:
            state["average"] = self.average.state_dict()
        if self.predictions is not None:
            state["predictions"] = self.predictions
        return {name: _copied(value) for name, value in state.items()}

    def load(self, saved: dict[str, Any]) -> None:
        """Restore a state that `save` returned; `saved` stays unchanged."""
        self.net.load_state_dict(saved["model"])
        self.optimizer.load_state_dict(_copied(saved["optimizer"]))  # copied: the optimizer would keep and train these tensors
        self.scaler.load_state_dict(saved["scaler"])
        if self.average:
            self.average.load_state_dict(saved["average"])
        self.step, self.warmup_steps = saved["step"], saved["warmup_steps"]
        self.history, self.probes = list(saved["history"]), list(saved["probes"])
        self.predictions = saved.get("predictions")  # checkpoints before 2026-11-28 have none


def evaluated_weights(saved: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Return the weights of the evaluated network from a state that `TrainState.save` returned.

    Args:
        saved: state of a training; the moving average of the weights takes precedence.
    """
    if "average" not in saved:
        return dict(saved["model"])
    prefix = "module."
    return {name.removeprefix(prefix): weight for name, weight in saved["average"].items() if name.startswith(prefix)}


def _copied(value: Any) -> Any:
    """Return a deep copy of plain values and tensors. `copy.deepcopy` takes five times as long for a network's many small
    tensors."""
    if isinstance(value, torch.Tensor):
        return value.clone()
    if isinstance(value, dict):
        return {name: _copied(each) for name, each in value.items()}
    return [_copied(each) for each in value] if isinstance(value, list) else value
