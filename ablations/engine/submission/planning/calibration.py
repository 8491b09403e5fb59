"""Calibration of a cost model: time a few real training steps of the cheapest and the most expensive network, for seconds."""

import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

from ablations.engine.submission.planning.cost_and_power import ComputeMode, CostModel, compute_mode, multiply_adds
from resnet_core import RunSpec, measure_cost
from resnet_core.data.datasets import Sizes

BUDGET_SECONDS = 2.0
"""Time spent on each network, in seconds. It is exceeded if `MIN_STEPS` steps take longer, or a single step does."""
MIN_STEPS, MAX_STEPS = 3, 30
"""Minimum and maximum number of timed steps of each network."""
MAX_STEP_SIZE = {"cpu": (1e9, 2e10), "cuda": (4e9, 4e12)}
"""Maximum bytes of activations and multiply-adds of a timed step, by device. For a larger batch, only a part of it is timed."""


def calibrate(
    specs: Sequence[RunSpec], sizes_of: Callable[[RunSpec], Sizes], *, cpus_per_worker: float, gpus_per_worker: float
) -> dict[ComputeMode, CostModel]:
    """Return a cost model for each compute mode, from timed training steps on random images.

    Networks are not compiled, which would take longer than the timing. A GPU is timed as if no other run shared it.

    Args:
        specs: resolved runs.
        sizes_of: function that returns the size, channels and classes of a run's images.
        cpus_per_worker: threads of a worker.
        gpus_per_worker: if above 0, time a GPU; without one, return nothing.
    """
    import torch

    if gpus_per_worker and not torch.cuda.is_available():
        return {}
    device = "cuda" if gpus_per_worker else "cpu"
    modes: dict[ComputeMode, dict[int, RunSpec]] = {}
    for spec in specs:
        modes.setdefault(compute_mode(spec), {})[multiply_adds(spec, sizes_of(spec), _images_per_worker(spec))] = spec
    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, int(cpus_per_worker)))
    try:
        return {
            name: _fit([_time_network(by_work[work], sizes_of(by_work[work]), device) for work in {min(by_work), max(by_work)}])
            for name, by_work in modes.items()
        }
    finally:
        torch.set_num_threads(threads)


def _images_per_worker(spec: RunSpec) -> int:
    """Return the number of images that one worker computes in a step."""
    return spec.optim.global_batch_size // spec.world_size


def _fit(measured: Sequence[tuple[float, float, float]]) -> CostModel:
    """Fit a cost model to layers, multiply-adds and seconds of steps, with least-squares relative errors and no negative cost."""
    import numpy as np
    from scipy.optimize import nnls

    relative = np.array([[layers / seconds, work / seconds] for layers, work, seconds in measured])
    scale = relative.max(0)
    found, _ = nnls(relative / scale, np.ones(len(measured)))
    return CostModel(*(found / scale).tolist())


def _time_network(spec: RunSpec, sizes: Sizes, device: str) -> tuple[float, float, float]:
    """Return layers, multiply-adds and seconds of a training step."""
    most_bytes, most_work = MAX_STEP_SIZE[device]
    cost = measure_cost(spec.model, **sizes)
    images = max(2, int(min(_images_per_worker(spec), most_bytes / cost.activation_bytes, most_work / (3 * cost.flops))))
    _step(spec, 2, sizes, device)()  # the first use of a device and its libraries takes seconds
    seconds = _median_seconds(_step(spec, images, sizes, device))
    return spec.depth, multiply_adds(spec, sizes, images), seconds


def _median_seconds(step: Callable[[], object]) -> float:
    """Return the median duration of a step, without the first one, which also reserves memory and chooses algorithms."""
    took: list[float] = []
    for count in itertools.count(1):
        started = time.perf_counter()
        step()
        took.append(time.perf_counter() - started)
        if max(took) > BUDGET_SECONDS or count == MAX_STEPS or (count >= MIN_STEPS and sum(took) > BUDGET_SECONDS):
            break
    return statistics.median(took[1:] or took)


def _step(spec: RunSpec, images: int, sizes: Sizes, device: str) -> Callable[[], object]:
    """Return a function that trains one step on random images and returns when the device has finished."""
    import torch

    from resnet_core.training.arithmetic import arithmetic
    from resnet_core.training.loop import init_state, train_epoch
    from resnet_core.training.steps import make_step

    state = init_state(spec, torch.device(device), **sizes)
    layout = torch.channels_last if spec.channels_last else torch.contiguous_format
    shape = (images, sizes["in_channels"], sizes["image_size"], sizes["image_size"])
    batch = torch.rand(shape, device=device).contiguous(memory_format=layout)
    labels = torch.zeros(images, dtype=torch.int64, device=device)
    batches: Any = SimpleNamespace(
        spec=spec,
        device=torch.device(device),
        steps_per_epoch=1,
        rank=0,
        num_classes=sizes["num_classes"],
        train_epoch=lambda _: iter([(batch, labels)]),
    )
    step = make_step(state.net, state.optimizer, state.scaler, spec, replay=spec.world_size == 1)  # graphs as in training

    def compute() -> None:
        with arithmetic(spec):
            train_epoch(step, state, batches, steps=1, total_steps=MAX_STEPS + 1)

    return compute
