"""Processor time of an epoch (training and test) with probes, against the same without."""

import argparse
import time
from collections.abc import Iterator
from typing import Any

import torch

from benchmarks import record
from resnet_core import DataConfig, ModelConfig, OptimConfig, RunSpec, fit, load_dataset, override
from resnet_core.data.datasets import Dataset

EPOCHS = 1000
"""More than are ever measured: epochs are alike, and none is the last."""
SPEC = RunSpec(
    model=ModelConfig(depth=20),
    data=DataConfig(name="synthetic", image_size=32, train_examples=1280, test_examples=256),
    optim=OptimConfig(epochs=EPOCHS, global_batch_size=128, lr=0.01, schedule="constant"),
)
ALWAYS = tuple(range(1, EPOCHS + 1))
VARIANTS: dict[str, dict[str, Any]] = {
    "without": {},
    "in other epochs": {"probes": "responses,gradients", "probe_epochs": (EPOCHS,)},
    "responses": {"probes": "responses", "probe_epochs": ALWAYS},
    "gradients": {"probes": "gradients", "probe_epochs": ALWAYS},
    "both": {"probes": "responses,gradients", "probe_epochs": ALWAYS},
}
WANTED = {"in other epochs": "≤ 1.01", "both": "≤ 1.05"}


def epochs_of_fit(spec: RunSpec, dataset: Dataset) -> Iterator[float]:
    """Processor seconds of one epoch of `fit` after another.

    Not the clock's, which also count what else the machine does: with one thread, what a probe costs is work.
    """
    epochs = fit(spec, dataset=dataset)
    while True:
        started = time.process_time()
        next(epochs)
        yield time.process_time() - started


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="of every variant (default: %(default)s)")


def main() -> None:
    """Measures, prints and writes."""
    given = record.options(__file__, __doc__, rounds=15, extra=add_options)
    torch.set_num_threads(given.extra.threads)
    dataset = load_dataset(SPEC.data)
    epochs = {name: epochs_of_fit(override(SPEC, changes), dataset) for name, changes in VARIANTS.items()}
    for each in epochs.values():
        next(each)  # to warm up
    seconds = record.interleaved({name: each.__next__ for name, each in epochs.items()}, given.rounds, "s")
    ratios = [record.ratio(seconds[name], seconds["without"], WANTED.get(name, "")) for name in VARIANTS if name != "without"]
    settings = {"threads": given.extra.threads, "batch": 128, "training images": 1280, "test images": 256}
    record.publish(record.Result("probes", settings, [*seconds.values(), *ratios]), given)


if __name__ == "__main__":
    main()
