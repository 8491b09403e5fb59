"""Several trainings on one GPU at once, each a process: images per second of all together."""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.gpu.__main__ import DEVICE, SPEC
from resnet_core import fit, load_dataset
from resnet_core.overrides import override

WINDOW = 8.0
"""Seconds in which steps count."""
STEPS = 100
"""Steps of an epoch. Whole epochs are counted."""


def train(depth: int, start: float, number: int) -> None:
    """Trains until the window is over, and prints how many steps fell into it."""
    images = STEPS * SPEC.optim.global_batch_size
    spec = override(SPEC, {"depth": depth, "train_examples": images, "test_examples": 100, "seed": number})
    steps = 0
    for result in fit(spec, dataset=load_dataset(spec.data), device=DEVICE):
        now = time.time()
        if result.epoch == 1 and now > start:
            raise SystemExit("not ready in time")
        if now > start + WINDOW:
            break
        if now > start:
            steps += STEPS
    print(steps, flush=True)


def together(depth: int, processes: int, lead: float) -> float:
    """Images per second of so many processes."""
    start = time.time() + lead
    command = [sys.executable, "-m", "benchmarks.gpu.packed", "--depth", str(depth), "--start", str(start)]
    running = [
        subprocess.Popen(
            [*command, "--number", str(i)], stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )
        for i in range(processes)
    ]
    printed = [process.communicate()[0] for process in running]
    if any(process.returncode for process in running):
        raise SystemExit(f"not all of {processes} processes trained through the window")
    return sum(map(int, printed)) * SPEC.optim.global_batch_size / WINDOW


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.packed", description=__doc__)
    parser.add_argument("--depth", type=int, default=20)
    parser.add_argument("--start", type=float)
    parser.add_argument("--number", type=int, default=0)
    parser.add_argument("--processes", type=int, nargs="*", default=[1, 2, 4, 8])
    parser.add_argument("--lead", type=float, default=15.0, help="seconds that processes get to start")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    if given.start:
        train(given.depth, given.start, given.number)
        return
    found = {}
    for processes in given.processes:
        found[processes] = together(given.depth, processes, given.lead)
        print(f"ResNet-{given.depth}, {processes} processes: {found[processes]:,.0f} images/s", flush=True)
    if given.out:
        given.out.write_text(json.dumps(found))


if __name__ == "__main__":
    main()
