"""SGD and AdamW, and the learning rate as a pure function of the step."""

import functools
import inspect
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from resnet_core.config import OptimConfig

Tensors = list[Tensor] | tuple[Tensor, ...]


def learning_rate(config: OptimConfig, step: int, total_steps: int, *, warming_up: bool = False) -> float:
    """Return the learning rate of a step.

    Args:
        config: schedule.
        step: number of the step, from 0.
        total_steps: steps of the whole training.
        warming_up: True while a warm-up by training error lasts.
    """
    if warming_up or step < config.warmup_steps:
        return config.warmup_lr
    if config.schedule == "step":
        # rounded: 0.55 × 100 is 55.00000000000001 in floating point
        drops = sum(step >= round(milestone * total_steps) for milestone in config.milestones)
        return config.lr / 10.0**drops
    if config.schedule == "cosine":
        return config.lr * (1 + math.cos(math.pi * step / total_steps)) / 2
    return config.lr


@functools.cache
def _uncompiled(kind: type[torch.optim.Optimizer]) -> Callable[..., torch.optim.Optimizer]:
    """Return an optimizer that computes the same without PyTorch's compiler, whose import takes 3 s of CPU time in each process.

    PyTorch wraps these methods to keep `torch.compile` out of them. Here, `torch.compile` gets networks only.
    """
    wrapped = ("add_param_group", "load_state_dict", "state_dict", "zero_grad")
    methods = {name: inspect.unwrap(getattr(kind, name)) for name in wrapped}
    return type(kind.__name__, (kind,), {**methods, "step": torch.no_grad()(inspect.unwrap(kind.step))})


def make_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """Return the optimizer of the parameters of a network; `config.decay` decides whether BatchNorm and biases decay."""
    parameters = list(model.parameters())
    decayed = [p for p in parameters if _decays(p, config)]
    kept = [p for p in parameters if not _decays(p, config)]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": kept, "weight_decay": 0.0}]
    groups = [group for group in groups if group["params"]]
    if config.algorithm == "adamw":
        first, second = config.betas
        on_gpu = parameters[0].device.type == "cuda"  # a CUDA graph needs the count of steps on the GPU
        return _uncompiled(torch.optim.AdamW)(groups, lr=config.lr, betas=(first, second), fused=True, capturable=on_gpu)
    optimizer = _uncompiled(torch.optim.SGD)(
        groups,
        lr=config.lr,
        momentum=config.momentum,
        nesterov=config.nesterov,
        fused=True,
    )
    if config.momentum:
        for parameter in parameters:
            # SGD would create it uninitialized in the first step, even if a loss scaler then skips that step.
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def average_of(net: nn.Module, config: OptimConfig) -> AveragedModel | None:
    """Return the moving average of a network's weights and statistics; None if the run asks for none."""
    if config.ema is None:
        return None
    average = get_ema_multi_avg_fn(config.ema)  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def update(averaged: Tensors, current: Tensors, count: Tensor | int) -> None:
        """Average tensors of one data type. Whole numbers, such as indices and counts, are copied: averages would be truncated."""
        if averaged[0].is_floating_point() or averaged[0].is_complex():
            average(averaged, current, count)
        else:
            torch._foreach_copy_(averaged, current)

    # Its count of updates stays on the CPU: on a GPU, every update would wait for the device.
    return AveragedModel(net, multi_avg_fn=update, use_buffers=True)


def _decays(parameter: torch.Tensor, config: OptimConfig) -> bool:
    return config.decay == "all" or parameter.ndim > 1


def set_momentum_and_decay(optimizer: torch.optim.Optimizer, config: OptimConfig) -> None:
    """Set momentum and weight decay of the next steps. They may differ from those of a restored checkpoint (`optim.changes`)."""
    for group in optimizer.param_groups:
        if config.algorithm == "sgd":
            group["momentum"] = config.momentum
        group["weight_decay"] = config.weight_decay if _decays(group["params"][0], config) else 0.0


def set_learning_rate(optimizer: torch.optim.Optimizer, config: OptimConfig, rate: float) -> None:
    """Set the learning rate of the next step. With `momentum_form="caffe"`, past gradients keep their learning rate."""
    for group in optimizer.param_groups:
        if config.momentum_form == "caffe" and config.momentum and group["lr"] != rate:
            # PyTorch multiplies the whole momentum buffer by the new rate. Rescale the buffer to undo this for past gradients.
            buffers = [optimizer.state[parameter]["momentum_buffer"] for parameter in group["params"]]
            torch._foreach_mul_(buffers, group["lr"] / rate)
        group["lr"] = rate
