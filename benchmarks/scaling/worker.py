"""One process of a measurement. In a file of its own, since spawned processes do not import `__main__.py`."""

import statistics
from datetime import timedelta

import torch
from torch import distributed

from resnet_core import DataConfig, ModelConfig, OptimConfig, RunSpec, fit

EPOCHS = 4
"""Repetitions of each measurement. The first, which warms up, does not count."""

BASE = RunSpec(
    model=ModelConfig(depth=20),
    data=DataConfig(name="synthetic", image_size=32, test_examples=16),
    optim=OptimConfig(epochs=EPOCHS, lr=0.01, schedule="constant"),
)


def work(rank: int, spec: RunSpec, processes: int, store: str) -> float:
    """One process: trains alone, or as a DDP worker if the spec has several. Returns its images per second."""
    torch.set_num_threads(1)
    # Also where nothing is shared: all start at the same moment.
    distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=processes, timeout=timedelta(minutes=2))
    distributed.barrier()
    if spec.world_size == 1:
        distributed.destroy_process_group()
    speeds = [result.metrics["images_per_second"] for result in fit(spec)]
    return statistics.median(speeds[1:])
