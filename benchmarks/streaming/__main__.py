"""Images per second of `fit` where images are decoded in every epoch, against the same images held in memory."""

import argparse
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks import record
from resnet_core import RunSpec, fit, load_dataset, override
from resnet_core.data import make_batches
from resnet_core.data.datasets import resolve

SIZE = (500, 375)
"""Pixels of the images: about the median of ImageNet."""
NETWORKS: dict[str, dict[str, Any]] = {
    "ResNet-18, 224×224": {"family": "imagenet", "depth": 18, "image_size": 224, "global_batch_size": 16},
    "ResNet-8, 32×32": {"family": "cifar", "depth": 8, "width": 8, "image_size": 32, "global_batch_size": 16},
}
"""One that trains slower than a core decodes, and one that trains faster."""


def write_images(root: Path, count: int) -> None:
    """Photograph-like JPEGs: smooth shapes, some texture, quality 90."""
    random = np.random.default_rng(0)
    for split, number in (("train", count), ("val", 4)):
        for i in range(number):
            folder = root / split / f"class{i % 2}"
            folder.mkdir(parents=True, exist_ok=True)
            shapes = Image.fromarray(random.integers(0, 256, (12, 16, 3), np.uint8)).resize(SIZE, Image.Resampling.BICUBIC)
            pixels = np.asarray(shapes, np.float32) + random.normal(0, 8, (SIZE[1], SIZE[0], 3))
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{i}.jpg", quality=90)


def epochs(spec: RunSpec, waits: list[float] | None = None) -> Iterator[float]:
    """Images per second of one epoch after another; the share of waiting, in percent, goes to `waits`."""
    for result in fit(spec):
        if waits is not None:
            waits.append(100 * result.metrics["data_wait_seconds"] / result.metrics["epoch_seconds"])
        yield result.metrics["images_per_second"]


def decoding(spec: RunSpec) -> Iterator[float]:
    """Images per second of decoding alone."""
    dataset = load_dataset(spec.data)
    batches = make_batches(dataset, resolve(spec, dataset), device=torch.device("cpu"))
    for epoch in range(10**9):
        started = time.perf_counter()
        images = sum(len(labels) for _, labels in batches.train_epoch(epoch))
        yield images / (time.perf_counter() - started)


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--images", type=int, default=96, metavar="N", help="in an epoch (default: %(default)s)")
    parser.add_argument("--decode-workers", type=int, default=1, metavar="N", help="processes (default: %(default)s)")


def main() -> None:
    """Measures, prints and writes."""
    given = record.options(__file__, __doc__, rounds=5, extra=add_options)
    torch.set_num_threads(1)
    series: list[record.Series] = []
    with tempfile.TemporaryDirectory() as folder:
        write_images(Path(folder), given.extra.images)
        data = {"data.name": "imagefolder", "data.root": folder, "pad": 0, "epochs": 1000, "lr": 0.01, "schedule": "constant"}
        for name, network in NETWORKS.items():
            memory = override(RunSpec(), {**data, **network})
            side = network["image_size"]
            streams = {"data.stream": True, "data.scale": (side * 8 // 7, side * 2), "decode_workers": given.extra.decode_workers}
            streamed = override(memory, streams)
            waits: list[float] = []
            variants = {f"streamed, {name}": epochs(streamed, waits), f"in memory, {name}": epochs(memory)}
            for variant in (*variants.values(), decoder := decoding(streamed)):
                next(variant)  # the first epoch warms up
            waits.clear()
            measured = record.interleaved({key: value.__next__ for key, value in variants.items()}, given.rounds, "images/s")
            of, to = measured.values()
            ratio = record.ratio(of, to, "≥ 0.9 where decoding is the faster")
            series += [of, to, ratio, record.Series(f"share of an epoch spent waiting, {name}", "%", waits)]
            series.append(record.Series(f"decoding alone, {side}×{side}", "images/s", [next(decoder) for _ in range(given.rounds)]))
    settings = {"threads": 1, "decode workers": given.extra.decode_workers, "images": f"{given.extra.images} JPEGs of 500×375"}
    record.publish(record.Result("streaming", settings, series), given)


if __name__ == "__main__":
    main()
