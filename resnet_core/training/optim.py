"""The optimizer and the learning rate as a pure function of the step."""

import math

import torch
from torch import nn

from resnet_core.config import OptimConfig


def learning_rate(config: OptimConfig, step: int, total_steps: int, *, warming_up: bool = False) -> float:
    """Learning rate of step `step` (from 0) of `total_steps`; of a warm-up by training error as long as that is `warming_up`."""
    if warming_up or step < config.warmup_steps:
        return config.warmup_lr
    if config.schedule == "step":
        # round: 0.55 of 100 steps is step 55, not 55.00000000000001
        drops = sum(step >= round(milestone * total_steps) for milestone in config.milestones)
        return config.lr / 10.0**drops
    if config.schedule == "cosine":
        return config.lr * (1 + math.cos(math.pi * step / total_steps)) / 2
    return config.lr


def make_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.SGD:
    """SGD over the model's parameters, with or without weight decay on BatchNorm and biases."""
    parameters = list(model.parameters())
    decayed = [p for p in parameters if _decays(p, config)]
    kept = [p for p in parameters if not _decays(p, config)]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": kept, "weight_decay": 0.0}]
    optimizer = torch.optim.SGD(
        [group for group in groups if group["params"]],
        lr=config.lr,
        momentum=config.momentum,
        nesterov=config.nesterov,
        fused=True,
    )
    if config.momentum:
        for parameter in parameters:
            # Else the first step makes it of whatever memory holds, also where a loss scaler then skips that step.
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def _decays(parameter: torch.Tensor, config: OptimConfig) -> bool:
    return config.decay == "all" or parameter.ndim > 1


def set_momentum_and_decay(optimizer: torch.optim.Optimizer, config: OptimConfig) -> None:
    """Sets momentum and weight decay of the next steps: a restored optimizer has those of its past."""
    for group in optimizer.param_groups:
        group["momentum"] = config.momentum
        group["weight_decay"] = config.weight_decay if _decays(group["params"][0], config) else 0.0


def set_learning_rate(optimizer: torch.optim.Optimizer, config: OptimConfig, rate: float) -> None:
    """Sets the rate of the next step, and keeps that of past steps where the velocity accumulates updates."""
    for group in optimizer.param_groups:
        if config.momentum_form == "caffe" and config.momentum and group["lr"] != rate:
            # PyTorch multiplies the whole velocity by the new rate: undo that for what is in it already.
            velocity = [optimizer.state[parameter]["momentum_buffer"] for parameter in group["params"]]
            torch._foreach_mul_(velocity, group["lr"] / rate)
        group["lr"] = rate
