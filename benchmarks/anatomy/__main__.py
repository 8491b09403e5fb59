"""Shares of the time of a training epoch: forward, backward, optimizer, and the rest of `fit`."""

import argparse
import functools
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.nn import functional as F

from benchmarks import record
from benchmarks.step.__main__ import CIFAR, DIGITS
from resnet_core import RunSpec, fit, load_dataset
from resnet_core.model.network import ResNet

PARTS: dict[str, tuple[Any, str]] = {
    "network": (ResNet, "forward"),
    "loss": (F, "cross_entropy"),
    "backward": (torch.Tensor, "backward"),
    "optimiser step": (torch.optim.SGD, "step"),
    "gradients to none": (torch.optim.SGD, "zero_grad"),
}
"""Necessary parts of a training step, each with the function that does it."""


class Clock:
    """Seconds in each part since the last reading. On a GPU every part is waited for, which makes the whole slower."""

    def __init__(self, device: torch.device) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.device = device

    def timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, with its time added to `part`."""

        @functools.wraps(function)
        def timed(*arguments: Any, **named: Any) -> Any:
            if torch.is_inference_mode_enabled():
                return function(*arguments, **named)  # the test at the end of the epoch
            started = self._now()
            try:
                return function(*arguments, **named)
            finally:
                self.seconds[part] += self._now() - started

        return timed

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


def shares(spec: RunSpec, clock: Clock) -> Iterator[dict[str, float]]:
    """Percent of the training time of one epoch after another, for each part and for the rest."""
    dataset = load_dataset(spec.data)
    for result in fit(spec, dataset=dataset, device=clock.device):
        images = len(dataset.train.labels) // spec.optim.global_batch_size * spec.optim.global_batch_size
        whole = images / result.metrics["images_per_second"]
        found = {part: 100 * seconds / whole for part, seconds in clock.seconds.items()}
        yield found | {"everything else": 100 - sum(found.values())}
        clock.seconds.clear()


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="default: %(default)s")
    parser.add_argument("--device", default="cpu", help="default: %(default)s")


def main() -> None:
    """Measures, prints and writes."""
    given = record.options(__file__, __doc__, rounds=20, extra=add_options)
    torch.set_num_threads(given.extra.threads)
    clock = Clock(torch.device(given.extra.device))
    for part, (owner, name) in PARTS.items():
        setattr(owner, name, clock.timed(part, getattr(owner, name)))
    series, rows = [], []
    for name, spec in (("32×32", CIFAR), ("digits", DIGITS)):
        epochs = shares(spec, clock)
        next(epochs)  # the first epoch warms up
        measured = [next(epochs) for _ in range(given.rounds)]
        series.append(record.Series(f"everything else, {name}", "%", [epoch["everything else"] for epoch in measured], "≤ 3"))
        rows += [[f"{part}, {name}", f"{statistics.median(epoch[part] for epoch in measured):.2f} %"] for part in measured[0]]
    breakdown = record.Breakdown("Share of an epoch's training time, median", ["", "share"], rows)
    settings = {"threads": given.extra.threads, "device": given.extra.device, "batch": "128 (32×32), 64 (digits)"}
    record.publish(record.Result("anatomy", settings, series, [breakdown]), given)


if __name__ == "__main__":
    main()
