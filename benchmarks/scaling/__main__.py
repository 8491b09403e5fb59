"""Images per second of `fit` with one and two DDP workers of one thread each, and what two processes cost without DDP."""

import argparse
import functools
import statistics
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

from benchmarks import record
from benchmarks.scaling.worker import BASE, work
from resnet_core import RunSpec, override

BATCH = 128


def spec_of(batch: int, steps: int, world_size: int = 1) -> RunSpec:
    """`steps` steps of `batch` images in every epoch, over all workers."""
    return override(BASE, {"global_batch_size": batch, "train_examples": steps * batch, "world_size": world_size})


def measure(spec: RunSpec, processes: int) -> float:
    """Images per second of all processes together."""
    with tempfile.TemporaryDirectory() as folder, ProcessPoolExecutor(processes, get_context("spawn")) as pool:
        work_with = functools.partial(work, spec=spec, processes=processes, store=f"file://{folder}/store")
        speeds = list(pool.map(work_with, range(processes)))
    # A DDP worker reports the speed of its group, the slowest worker's; processes by themselves add up.
    return min(speeds) if spec.world_size > 1 else sum(speeds)


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--steps", type=int, default=8, metavar="N", help="steps of an epoch (default: %(default)s)")


def main() -> None:
    """Measures, prints and writes."""
    given = record.options(__file__, __doc__, rounds=7, extra=add_options)
    steps = given.extra.steps
    one, one_half = f"1 worker × {BATCH}", f"1 worker × {BATCH // 2}"
    apart, apart_half = f"2 processes × {BATCH}, no DDP", f"2 processes × {BATCH // 2}, no DDP"
    two, two_half = f"2 workers × {BATCH}", f"2 workers × {BATCH // 2}"
    variants: dict[str, Callable[[], float]] = {
        one: lambda: measure(spec_of(BATCH, steps), 1),
        two_half: lambda: measure(spec_of(BATCH, steps, 2), 2),
        two: lambda: measure(spec_of(2 * BATCH, steps, 2), 2),
        one_half: lambda: measure(spec_of(BATCH // 2, 2 * steps), 1),
        apart_half: lambda: measure(spec_of(BATCH // 2, 2 * steps), 2),
        apart: lambda: measure(spec_of(BATCH, steps), 2),
    }
    series = record.interleaved(variants, given.rounds, "images/s")
    ratios = [
        record.ratio(series[two_half], series[one], "≥ 1.8"),
        record.ratio(series[two], series[one], "≥ 1.8"),
    ]
    settings = {"network": "ResNet-20 A, 3×32×32", "threads of a worker": 1, "backend": "gloo", "steps of an epoch": steps}
    losses = record.Breakdown(
        "Where the rest goes",
        ["factor", "global batch of 128", "128 for each worker"],
        [
            ["two cores, if nothing were lost", "2.00", "2.00"],
            ["half the batch for each worker", factor(series[one_half], series[one]), "1.00"],
            ["two processes at once", factor(series[apart_half], series[one_half], 2), factor(series[apart], series[one], 2)],
            ["DDP: sums of gradients, waiting", factor(series[two_half], series[apart_half]), factor(series[two], series[apart])],
        ],
    )
    record.publish(record.Result("scaling", settings, [*series.values(), *ratios], [losses]), given)


def factor(of: record.Series, to: record.Series, cores: int = 1) -> str:
    """Return the share of the speed per core that is left, from `to` to `of`."""
    return f"{statistics.median(record.ratio(of, to).values) / cores:.2f}"


if __name__ == "__main__":
    main()
