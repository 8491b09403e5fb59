"""Wall time of training with checkpoints, watchdog and journal, against the same with all of them off."""

import functools
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from ablations.engine.tracking.journal import Journal, Record
from ablations.engine.trial import checkpoints
from ablations.engine.trial.job import Job, Report
from ablations.engine.trial.watchdog import Watchdog
from ablations.engine.trial.worker import train_epochs
from benchmarks import record
from resnet_core import load_dataset, override, preset
from resnet_core.data.datasets import resolve
from resnet_core.heartbeat import Heartbeat, no_heartbeat
from resnet_core.training.loop import init_state

EPOCHS = 4
"""Epochs after the first, which warms up."""
DEPTHS = (20, 56)
SIGNS = 100_000


class NoCheckpoints(checkpoints.CheckpointFolder):
    """Storage that keeps nothing."""

    def __init__(self, *_: object) -> None: ...

    def check_writable(self) -> None: ...

    def latest(self, epoch: int | None = None) -> None: ...

    def save(self, state: dict[str, Any], epoch: int) -> None: ...


@contextmanager
def safe(journal: Journal) -> Iterator[tuple[Callable[[Report], object], Heartbeat]]:
    """As runs are trained."""

    def report(values: dict[str, Any]) -> None:
        written = Record(kind="epoch", fingerprint="0" * 20, generation=1, experiment_id="1", run="", time_ms=0, values=values)
        journal.append(written)

    with Watchdog(600, lambda: None) as watchdog:
        yield report, watchdog.alive


@contextmanager
def unsafe(_: Journal) -> Iterator[tuple[Callable[[Report], object], Heartbeat]]:
    """Nothing is kept, nothing is watched."""
    with mock.patch.object(checkpoints, "CheckpointFolder", NoCheckpoints):
        yield lambda _: None, no_heartbeat


def seconds_per_epoch(job: Job, variant: Callable[[Journal], Any]) -> float:
    """Wall seconds of an epoch in this process."""
    times: list[float] = []
    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch.dict(os.environ, {"RESNET_ABLATIONS_HOME": folder}),
        Journal("none", "safety", "benchmark") as journal,
        variant(journal) as (report, alive),
    ):
        for values in train_epochs(replace(job, storage=folder), "cpu", alive=alive):
            report(values)
            times.append(time.perf_counter())
        journal.clear()
    return (times[-1] - times[0]) / (len(times) - 1)


def job_of(depth: int, cache: Path) -> Job:
    spec = override(preset("digits"), {"depth": depth, "shortcut": "A", "epochs": EPOCHS + 1})
    dataset = load_dataset(spec.data, cache)
    return Job(
        fingerprint="benchmark",
        spec=resolve(spec, dataset).flat(),
        data_version=dataset.version,
        folder="run",
        storage="",
        cache=str(cache),
        cpus_per_worker=1,
        gpus_per_worker=0,
    )


def sign_of_life_ns() -> float:
    """Nanoseconds of what a step tells the watchdog."""
    with Watchdog(600, lambda: None) as watchdog:
        began = time.perf_counter_ns()
        for _ in range(SIGNS):
            watchdog.alive()
        return (time.perf_counter_ns() - began) / SIGNS


def checkpoint_ms(depth: int, cache: Path) -> float:
    """Milliseconds of one checkpoint: written, synced, renamed and read back."""
    spec = resolve(override(preset("digits"), {"depth": depth, "shortcut": "A"}), load_dataset(preset("digits").data, cache))
    state = init_state(spec, torch.device("cpu")).save()
    with tempfile.TemporaryDirectory() as folder:
        kept = checkpoints.CheckpointFolder(folder, "run")
        kept.save(state, 1)  # makes the folder
        began = time.perf_counter()
        kept.save(state, 2)
        return (time.perf_counter() - began) * 1000


def main() -> None:
    """Measures, prints and writes."""
    given = record.options(__file__, __doc__, rounds=9, extra=lambda _: None)
    torch.set_num_threads(1)
    series, ratios = [], []
    with tempfile.TemporaryDirectory() as cache:
        for depth in DEPTHS:
            job = job_of(depth, Path(cache))
            variants = {
                f"ResNet-{depth}, everything kept": functools.partial(seconds_per_epoch, job, safe),
                f"ResNet-{depth}, nothing kept": functools.partial(seconds_per_epoch, job, unsafe),
            }
            kept, not_kept = record.interleaved(variants, given.rounds, "s").values()
            series += [kept, not_kept]
            ratios.append(record.ratio(kept, not_kept, "≤ 1.02"))
            one = [checkpoint_ms(depth, Path(cache)) for _ in range(given.rounds)]
            series.append(record.Series(f"ResNet-{depth}, one checkpoint", "ms", one))
    series.append(record.Series("watchdog, one sign of life", "ns", [sign_of_life_ns() for _ in range(given.rounds)]))
    settings = {"preset": "digits", "threads": 1, "epochs of a round": EPOCHS}
    record.publish(record.Result("safety", settings, [*series, *ratios]), given)


if __name__ == "__main__":
    main()
