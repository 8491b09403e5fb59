"""One run in a plain process: `python -m benchmarks.overhead.plain SEED EPOCHS CACHE`."""

import sys
from collections.abc import Callable
from pathlib import Path


def train(seed: int, epochs: int, cache: str, report: Callable[[dict[str, float]], object]) -> None:
    """Trains ResNet-20 A on digits with one thread, and nothing else: no checkpoints, no records."""
    import torch

    from resnet_core import fit, load_dataset, override, preset

    torch.set_num_threads(1)
    spec = override(preset("digits"), {"depth": 20, "shortcut": "A", "epochs": epochs, "seed": seed})
    for result in fit(spec, dataset=load_dataset(spec.data, Path(cache))):
        report(result.metrics)


if __name__ == "__main__":
    train(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], lambda _: None)
