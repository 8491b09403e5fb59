"""The state of a training: what it changes, and what a checkpoint holds."""

from dataclasses import dataclass, field
from typing import Any

import torch

from resnet_core.model.network import ResNet
from resnet_core.training.probes import Row

Metrics = dict[str, float]


@dataclass
class TrainState:
    """Everything that training changes."""

    net: ResNet
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    step: int = 0
    warmup_steps: int | None = None
    """How long a warm-up by training error took, once it is over."""
    history: list[Metrics] = field(default_factory=list)
    """Metrics of every finished epoch: a restored run can report again what its predecessor could not deliver."""
    probes: list[Row] = field(default_factory=list)
    """What the probes saw so far."""

    @property
    def epoch(self) -> int:
        return len(self.history)

    def save(self) -> dict[str, Any]:
        """Return everything as plain values, copied: later steps do not change them."""
        state = {
            "model": self.net.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "step": self.step,
            "warmup_steps": self.warmup_steps,
            "history": self.history,
            "probes": self.probes,
        }
        return {name: _copied(value) for name, value in state.items()}

    def load(self, saved: dict[str, Any]) -> None:
        self.net.load_state_dict(saved["model"])
        self.optimizer.load_state_dict(_copied(saved["optimizer"]))  # it would take the tensors themselves, and train them
        self.scaler.load_state_dict(saved["scaler"])
        self.step, self.warmup_steps = saved["step"], saved["warmup_steps"]
        self.history, self.probes = list(saved["history"]), list(saved["probes"])


def _copied(value: Any) -> Any:
    """Return a copy of plain values and tensors. `copy.deepcopy` takes five times as long for a network's many small tensors."""
    if isinstance(value, torch.Tensor):
        return value.clone()
    if isinstance(value, dict):
        return {name: _copied(each) for name, each in value.items()}
    return [_copied(each) for each in value] if isinstance(value, list) else value
