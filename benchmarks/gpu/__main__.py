"""Training on a GPU: epochs of `fit` as written, replayed and compiled, and of a conventional loop, side by side."""

import argparse
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as MapDataset
from torchvision import transforms

from benchmarks import record
from resnet_core import DataConfig, OptimConfig, RunSpec, build_network, fit, load_dataset
from resnet_core.data.datasets import Dataset, Split, resolve
from resnet_core.overrides import override

SPEC = RunSpec(
    data=DataConfig(name="synthetic", image_size=32, train_examples=50_048, test_examples=10_000),
    optim=OptimConfig(epochs=1000, global_batch_size=128, schedule="constant", lr=0.01),
    precision="bf16",
)
DEPTHS = (20, 56, 110)
RECIPE_EPOCHS = 64_000 / 391
RECIPE_WANTED = {20: "≤ 60", 56: "≤ 150"}
DEVICE = "cuda"


class Pictures(MapDataset[tuple[Tensor, int]]):
    """A data set that does the work of torchvision's CIFAR10 for each image: a picture from an array, then its transforms."""

    def __init__(self, images: Split, transform: Callable[[Image.Image], Tensor]) -> None:
        self.arrays = images.images.transpose(0, 2, 3, 1).copy()
        self.labels, self.transform = images.labels.tolist(), transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.arrays[index])), self.labels[index]


def conventional(spec: RunSpec, dataset: Dataset, workers: int) -> Iterator[float]:
    """Seconds of one epoch after another of the loop that most repositories have: float32, workers that transform pictures, the
    loss read in every step, the test set after each epoch."""
    assert isinstance(dataset.train, Split)
    assert isinstance(dataset.test, Split)
    mean, std = ([value / 255 for value in values] for values in (dataset.mean, dataset.std))
    plain = [transforms.ToTensor(), transforms.Normalize(mean, std)]
    moved = [transforms.RandomCrop(32, 4), transforms.RandomHorizontalFlip()]
    common: dict[str, Any] = {"num_workers": workers, "pin_memory": True, "persistent_workers": True}
    train = DataLoader(Pictures(dataset.train, transforms.Compose(moved + plain)), 128, shuffle=True, drop_last=True, **common)
    test = DataLoader(Pictures(dataset.test, transforms.Compose(plain)), 128, **common)
    net = build_network(spec.model, 32).to(DEVICE)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)
    while True:
        started, total = time.perf_counter(), 0.0
        net.train()
        for images, labels in train:
            loss = F.cross_entropy(net(images.to(DEVICE, non_blocking=True)), labels.to(DEVICE, non_blocking=True))
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            total += loss.item()
        net.eval()
        wrong = 0
        with torch.no_grad():
            for images, labels in test:
                wrong += int((net(images.to(DEVICE)).argmax(1).cpu() != labels).sum())
        yield time.perf_counter() - started


def epochs_of_fit(spec: RunSpec, dataset: Dataset, *, replay: bool = True) -> Iterator[float]:
    """Seconds of one epoch of `fit` after another, the test included."""
    for result in fit(spec, dataset=dataset, device=DEVICE, replay=replay):
        yield result.metrics["epoch_seconds"]


def variants(depth: int, dataset: Dataset, given: argparse.Namespace) -> dict[str, Callable[[], float]]:
    """Seconds of an epoch of each variant; one epoch of each is over."""
    spec = resolve(override(SPEC, {"depth": depth}), dataset)
    name = f"ResNet-{depth}"
    epochs = {
        f"{name}, fit": epochs_of_fit(spec, dataset),
        f"{name}, fit as written": epochs_of_fit(spec, dataset, replay=False),
    }
    if depth in given.conventional:
        epochs[f"{name}, conventional loop"] = conventional(spec, dataset, given.workers)
    if depth in given.compiled:
        epochs[f"{name}, fit compiled"] = epochs_of_fit(override(spec, {"compile": True}), dataset)
    for label, each in epochs.items():
        began = time.perf_counter()
        next(each)
        print(f"{label}: first epoch {time.perf_counter() - began:.1f} s", flush=True)
    return {label: each.__next__ for label, each in epochs.items()}


def add_options(parser: argparse.ArgumentParser) -> None:
    numbers: dict[str, Any] = {"type": int, "nargs": "*", "metavar": "DEPTH"}
    parser.add_argument("--depths", default=list(DEPTHS), **numbers)
    parser.add_argument("--conventional", default=[20], help="depths whose conventional loop is measured", **numbers)
    parser.add_argument("--compiled", default=[], help="depths that are compiled, too", **numbers)
    parser.add_argument("--workers", type=int, default=16, metavar="N", help="of the conventional loop (default: %(default)s)")


def main() -> None:
    """Measures, prints and writes."""
    given = record.options(__file__, __doc__, rounds=5, extra=add_options)
    dataset = load_dataset(SPEC.data)
    series: list[record.Series] = []
    for depth in given.extra.depths:
        measured = record.interleaved(variants(depth, dataset, given.extra), given.rounds, "s")
        series += measured.values()
        ours = measured[f"ResNet-{depth}, fit"]
        wanted = {"fit as written": "≥ 2.5", "conventional loop": "≥ 5"}
        others = {name.split(", ")[1]: each for name, each in measured.items() if each is not ours}
        series += [record.ratio(each, ours, wanted.get(kind, "")) for kind, each in others.items()]
        whole = [seconds * RECIPE_EPOCHS for seconds in ours.values]
        series.append(record.Series(f"ResNet-{depth}, 64,000 steps at that speed", "s", whole, RECIPE_WANTED.get(depth, "")))
    settings = {"batch": 128, "precision": "bf16 (conventional: fp32)", "images": "50,048 to train, 10,000 to test, each epoch"}
    record.publish(record.Result("gpu", settings, series), given)


if __name__ == "__main__":
    main()
