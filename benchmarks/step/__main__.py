"""Images per second of `fit`, against the same network in a bare PyTorch loop, and of our ResNet-18 against torchvision's."""

import argparse
import time
from collections.abc import Callable, Iterator

import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks import record
from resnet_core import DataConfig, ModelConfig, OptimConfig, RunSpec, build_network, fit, load_dataset
from resnet_core.data.datasets import Dataset, Split, resolve
from resnet_core.training.optim import make_optimizer

Measure = Callable[[], float]

CIFAR = RunSpec(
    model=ModelConfig(depth=20),
    data=DataConfig(name="synthetic", image_size=32, train_examples=1280, test_examples=10),
    optim=OptimConfig(epochs=1000, global_batch_size=128, lr=0.01, schedule="constant"),
)
DIGITS = RunSpec(
    model=ModelConfig(depth=20),
    data=DataConfig(name="digits", pad=0, flip=False, test_examples=10),
    optim=OptimConfig(epochs=1000, global_batch_size=64, lr=0.02, schedule="constant"),
)
RESNET18 = RunSpec(
    model=ModelConfig(family="imagenet", depth=18, shortcut="B"),
    data=DataConfig(name="synthetic", image_size=64, train_examples=128, test_examples=10),
    optim=OptimConfig(epochs=1000, global_batch_size=32, lr=0.01, schedule="constant"),
)


def bare_loop(net: nn.Module, spec: RunSpec, dataset: Dataset) -> Iterator[float]:
    """Images per second of one epoch after another, with nothing in it but what training needs.

    Images are normalized floats in the network's memory format before the clock starts; there is no augmentation, no
    shuffling and no metric.
    """
    net.to(memory_format=torch.channels_last).train()
    optimizer = make_optimizer(net, spec.optim)
    batches = make_batches(spec, dataset)
    while True:
        started = time.perf_counter()
        for images, labels in batches:
            torch.autograd.backward(F.cross_entropy(net(images), labels))
            optimizer.step()
            optimizer.zero_grad()
        yield len(batches) * spec.optim.global_batch_size / (time.perf_counter() - started)


def make_batches(spec: RunSpec, dataset: Dataset) -> list[tuple[Tensor, Tensor]]:
    """Full batches of normalized images (N, C, H, W), float32, channels_last, and labels."""
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (dataset.mean, dataset.std))
    assert isinstance(dataset.train, Split)
    images = ((torch.from_numpy(dataset.train.images) - mean) / std).contiguous(memory_format=torch.channels_last)
    labels, batch = torch.from_numpy(dataset.train.labels), spec.optim.global_batch_size
    return [(images[i : i + batch], labels[i : i + batch]) for i in range(0, len(labels) - batch + 1, batch)]


def epochs_of_fit(spec: RunSpec, dataset: Dataset) -> Iterator[float]:
    """Images per second of one epoch of `fit` after another, as it reports them: data, augmentation and metrics included."""
    for result in fit(spec, dataset=dataset):
        yield result.metrics["images_per_second"]


def against_bare(spec: RunSpec, name: str) -> dict[str, Measure]:
    """`fit` and the bare loop on one network and data set."""
    dataset = load_dataset(spec.data)
    spec = resolve(spec, dataset)
    torch.manual_seed(spec.seed)
    bare = bare_loop(build_network(spec.model, dataset.image_size), spec, dataset)
    return warmed({f"fit, {name}": epochs_of_fit(spec, dataset), f"bare loop, {name}": bare})


def against_torchvision() -> dict[str, Measure]:
    """Our ResNet-18 and torchvision's in the same bare loop."""
    dataset = load_dataset(RESNET18.data)
    spec = resolve(RESNET18, dataset)
    ours, theirs = build_network(spec.model, dataset.image_size), torchvision.models.resnet18(num_classes=len(dataset.classes))
    theirs.load_state_dict(ours.state_dict())  # the same network: it would not load otherwise
    return warmed({"ResNet-18, ours": bare_loop(ours, spec, dataset), "ResNet-18, torchvision's": bare_loop(theirs, spec, dataset)})


def warmed(epochs: dict[str, Iterator[float]]) -> dict[str, Measure]:
    """One epoch of each before any is timed."""
    for each in epochs.values():
        next(each)
    return {name: each.__next__ for name, each in epochs.items()}


def several(measure: Measure, times: int) -> Measure:
    """The mean of a few epochs, where one is too short to time."""
    return lambda: times / sum(1 / measure() for _ in range(times))


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="of every variant (default: %(default)s)")


def main() -> None:
    """Measures, prints and writes."""
    given = record.options(__file__, __doc__, rounds=15, extra=add_options)
    torch.set_num_threads(given.extra.threads)
    cifar, digits, resnet18 = against_bare(CIFAR, "32×32"), against_bare(DIGITS, "digits"), against_torchvision()
    digits = {name: several(measure, 4) for name, measure in digits.items()}
    wanted = {"fit, 32×32": "≥ 0.98", "fit, digits": "≥ 0.98"}
    series: list[record.Series] = []
    ratios: list[record.Series] = []
    for variants in (cifar, digits, resnet18):
        ours, other = record.interleaved(variants, given.rounds, "images/s").values()
        series += [ours, other]
        ratios.append(record.ratio(ours, other, wanted.get(ours.name, "")))
    settings = {"threads": given.extra.threads, "batch": "128 (32×32), 64 (digits), 32 (ResNet-18, 64×64)"}
    record.publish(record.Result("step", settings, [*series, *ratios]), given)


if __name__ == "__main__":
    main()
