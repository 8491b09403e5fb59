"""How fast networks train here: a few real steps of the cheapest and the most expensive, some seconds in all."""

import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

from ablations.engine.submission.planning.cost_and_power import ComputeMode, CostModel, compute_mode, multiply_adds
from resnet_core import RunSpec, measure_cost

BUDGET_SECONDS = 2.0
"""For each network, unless three steps take longer; a step that does is the only one."""
STEPS = (3, 30)
"""At least and at most."""
MAX_STEP = {"cpu": (1e9, 2e10), "cuda": (4e9, 4e12)}
"""Bytes of activations and multiply-adds: of larger batches a part is measured."""


def calibrate(
    specs: Sequence[RunSpec], image_size: int, *, cpus_per_worker: float, gpus_per_worker: float
) -> dict[ComputeMode, CostModel]:
    """Cost models of networks from measured training steps on random images, for each mode of computing.

    Networks are not compiled here, since that takes longer than the rest. A GPU is measured as if no other run shared it.

    Args:
        specs: resolved runs.
        image_size: side of their images in pixels.
        cpus_per_worker: threads of a worker.
        gpus_per_worker: above 0: a GPU is measured. Nothing is if this machine has none.
    """
    import torch

    if gpus_per_worker and not torch.cuda.is_available():
        return {}
    device = "cuda" if gpus_per_worker else "cpu"
    modes: dict[ComputeMode, dict[int, RunSpec]] = {}
    for spec in specs:
        modes.setdefault(compute_mode(spec), {})[multiply_adds(spec, image_size, _images_per_worker(spec))] = spec
    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, int(cpus_per_worker)))
    try:
        return {
            name: _fitted([_measured(by_size[size], image_size, device) for size in {min(by_size), max(by_size)}])
            for name, by_size in modes.items()
        }
    finally:
        torch.set_num_threads(threads)


def _images_per_worker(spec: RunSpec) -> int:
    """Images of a step on one worker."""
    return spec.optim.global_batch_size // spec.world_size


def _fitted(measured: Sequence[tuple[float, float, float]]) -> CostModel:
    """The model whose relative errors are least, with no negative cost; of layers, multiply-adds and seconds of steps."""
    import numpy as np
    from scipy.optimize import nnls

    relative = np.array([[layers / seconds, work / seconds] for layers, work, seconds in measured])
    scale = relative.max(0)
    found, _ = nnls(relative / scale, np.ones(len(measured)))
    return CostModel(*(found / scale).tolist())


def _measured(spec: RunSpec, image_size: int, device: str) -> tuple[float, float, float]:
    """Layers, multiply-adds and seconds of a training step."""
    most_bytes, most_work = MAX_STEP[device]
    cost = measure_cost(spec.model, image_size)
    images = max(2, int(min(_images_per_worker(spec), most_bytes / cost.activation_bytes, most_work / (3 * cost.flops))))
    _step(spec, 2, image_size, device)()  # the start of a device and its libraries takes seconds, once
    seconds = _median_seconds(_step(spec, images, image_size, device))
    return spec.model.depth, multiply_adds(spec, image_size, images), seconds


def _median_seconds(step: Callable[[], object]) -> float:
    """Of a step, the first apart: it also reserves memory and chooses algorithms."""
    took: list[float] = []
    for count in itertools.count(1):
        started = time.perf_counter()
        step()
        took.append(time.perf_counter() - started)
        if max(took) > BUDGET_SECONDS or count == STEPS[1] or (count >= STEPS[0] and sum(took) > BUDGET_SECONDS):
            break
    return statistics.median(took[1:] or took)


def _step(spec: RunSpec, images: int, image_size: int, device: str) -> Callable[[], object]:
    """A training step on random images; it ends when the device has done it."""
    import torch

    from resnet_core.training.arithmetic import arithmetic
    from resnet_core.training.loop import init_state, train_epoch
    from resnet_core.training.steps import make_step

    state = init_state(spec, torch.device(device))
    layout = torch.channels_last if spec.channels_last else torch.contiguous_format
    shape = (images, spec.model.in_channels or 3, image_size, image_size)
    batch = torch.rand(shape, device=device).contiguous(memory_format=layout)
    labels = torch.zeros(images, dtype=torch.int64, device=device)
    batches: Any = SimpleNamespace(
        spec=spec, device=torch.device(device), steps_per_epoch=1, train_epoch=lambda _: iter([(batch, labels)])
    )
    step = make_step(state.net, state.optimizer, state.scaler, spec, replay=spec.world_size == 1)  # as a group's workers train

    def compute() -> None:
        with arithmetic(spec):
            train_epoch(step, state, batches, steps=1, total_steps=STEPS[1] + 1)

    return compute
