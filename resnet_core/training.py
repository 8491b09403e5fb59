"""Training: small named functions, assembled once in `fit`, read top to bottom.

`fit` knows nothing of who calls it. With `torch.distributed` initialised it is one worker of a data-parallel group.
"""

import inspect
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from resnet_core.config import RunSpec
from resnet_core.cost import measure_cost
from resnet_core.data import Batches, derived_seed
from resnet_core.datasets import Dataset, load_dataset, resolve
from resnet_core.fields import reject
from resnet_core.memory import PeakMemory
from resnet_core.model import ResNet, build_model
from resnet_core.optim import learning_rate, make_optimizer

Metrics = dict[str, float]
AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Diverged(Exception):  # noqa: N818 - an outcome of a run, not a mistake
    """The loss is no longer finite."""


@dataclass
class TrainState:
    """Everything that training changes."""

    net: ResNet
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    step: int = 0
    history: list[Metrics] = field(default_factory=list)
    """Metrics of every finished epoch: a restored run can report again what its predecessor could not deliver."""

    @property
    def epoch(self) -> int:
        return len(self.history)

    def save(self) -> dict[str, Any]:
        return {
            "model": self.net.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "step": self.step,
            "history": self.history,
        }

    def load(self, saved: dict[str, Any]) -> None:
        self.net.load_state_dict(saved["model"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.scaler.load_state_dict(saved["scaler"])
        self.step = saved["step"]
        self.history = list(saved["history"])


@dataclass(frozen=True)
class EpochResult:
    """One finished epoch, counted from 1, and the state to continue from. Valid until the generator is advanced."""

    epoch: int
    metrics: Metrics
    """`train/loss`, `train/error`, `test/loss`, `test/error` (percent), `lr`, `images_per_second`, `epoch_seconds`,
    `peak_memory_mb`; with the last epoch also `parameters`, `flops`, `train_seconds`."""
    last: bool
    state: TrainState

    def checkpoint(self) -> dict[str, Any]:
        """What `fit(restore=…)` takes: tensors, numbers, lists and dicts only, loadable with `weights_only=True`."""
        return self.state.save()


def fit(
    spec: RunSpec,
    *,
    dataset: Dataset | None = None,
    device: str | torch.device = "cpu",
    restore: dict[str, Any] | None = None,
) -> Iterator[EpochResult]:
    """Trains one network and yields after every epoch.

    Args:
        spec: what to train; fields that the data set decides may be left open.
        dataset: the images; loaded from `spec.data` if None.
        device: where to train, such as `cpu`, `cuda` or `cuda:1`.
        restore: an `EpochResult.checkpoint()` of the same spec to continue from.

    Raises:
        Diverged: the loss is not finite.
        ConfigError: spec and data contradict each other, or the process group has another size than `spec.world_size`.
    """
    device = torch.device(device)
    rank = _rank(spec)
    dataset = dataset or load_dataset(spec.data)
    spec = resolve(spec, dataset)
    batches = Batches(dataset, spec, device=device, rank=rank)
    total_steps = spec.optim.total_steps(len(dataset.train.labels))
    state = init_state(spec, device)
    if restore is not None:
        state.load(restore)
    network = _prepare(state.net, spec)
    while state.step < total_steps:
        memory, started = PeakMemory(device), time.perf_counter()
        steps = min(batches.steps_per_epoch, total_steps - state.step)
        train = train_epoch(network, state, batches, steps=steps, total_steps=total_steps)
        trained = time.perf_counter()
        average_batchnorm(state.net)
        test = evaluate(network, batches)
        finished = time.perf_counter()
        metrics = {
            **{f"train/{name}": value for name, value in train.items()},
            **{f"test/{name}": value for name, value in test.items()},
            "lr": learning_rate(spec.optim, state.step - 1, total_steps),
            "images_per_second": steps * spec.optim.global_batch_size / (trained - started),
            "epoch_seconds": finished - started,
            "peak_memory_mb": memory.read_mb(),
        }
        state.history.append(metrics)
        if not (math.isfinite(metrics["train/loss"]) and math.isfinite(metrics["test/loss"])):
            raise Diverged(f"the loss is not finite in epoch {state.epoch} (learning rate {metrics['lr']:g})")
        last = state.step >= total_steps
        if last:
            cost = measure_cost(spec.model, dataset.image_size)
            seconds = sum(past["epoch_seconds"] for past in state.history)
            metrics |= {"parameters": cost.parameters, "flops": cost.flops, "train_seconds": seconds}
        yield EpochResult(state.epoch, metrics, last, state)


def init_state(spec: RunSpec, device: torch.device) -> TrainState:
    """A fresh network from the spec's seed, with its optimiser."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derived_seed(spec.seed, "weights"))
        net = build_model(spec.model)  # on the CPU: the same weights whatever the device
    net.to(device).to(memory_format=torch.channels_last if spec.channels_last else torch.contiguous_format)
    scaler = torch.amp.GradScaler(device.type, enabled=spec.precision == "fp16")
    return TrainState(net, make_optimizer(net, spec.optim), scaler)


def train_epoch(network: nn.Module, state: TrainState, batches: Batches, *, steps: int, total_steps: int) -> dict[str, float]:
    """Trains for `steps` steps. Returns loss and error (percent) over all images and workers, as they were trained on."""
    spec = batches.spec
    network.train()
    totals = Totals(batches.device)
    for _, (images, labels) in zip(range(steps), batches.train_epoch(state.epoch), strict=False):
        for group in state.optimizer.param_groups:
            group["lr"] = learning_rate(spec.optim, state.step, total_steps)
        with _autocast(spec, batches.device):
            logits = network(images)
        loss = F.cross_entropy(logits.float(), labels, label_smoothing=spec.optim.label_smoothing)
        state.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        state.scaler.step(state.optimizer)
        state.scaler.update()
        state.optimizer.zero_grad()
        state.step += 1
        totals.add(loss.detach(), logits.detach(), labels)
    return totals.reduce()


@torch.inference_mode()
def evaluate(network: nn.Module, batches: Batches) -> dict[str, float]:
    """Loss and error (percent) over the whole test set, each image counted once whatever the number of workers."""
    network.eval()
    # Workers may hold different numbers of batches here: call the network itself, never DDP's collectives.
    network = network.module if isinstance(network, DistributedDataParallel) else network
    totals = Totals(batches.device)
    for images, labels in batches.test():
        with _autocast(batches.spec, batches.device):
            logits = network(images)
        totals.add(F.cross_entropy(logits.float(), labels), logits, labels)
    return totals.reduce()


class Totals:
    """Sums and counts on the device, without a synchronisation per step; divided once, after adding up all workers."""

    def __init__(self, device: torch.device) -> None:
        self.loss = torch.zeros((), dtype=torch.float64, device=device)
        self.wrong = torch.zeros((), dtype=torch.int64, device=device)
        self.count = 0

    def add(self, mean_loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        self.loss += mean_loss.double() * len(labels)
        self.wrong += (logits.argmax(1) != labels).sum()
        self.count += len(labels)

    def reduce(self) -> dict[str, float]:
        sums = torch.stack([self.loss, self.wrong.double(), torch.full_like(self.loss, self.count)])
        if _distributed():
            distributed.all_reduce(sums)
        loss, wrong, count = sums.tolist()
        return {"loss": loss / count, "error": 100 * wrong / count}


def average_batchnorm(net: nn.Module) -> None:
    """Makes the running statistics of all workers equal: their mean. Each worker normalises by its own share of a batch."""
    if not _distributed():
        return
    buffers = [b for b in net.buffers() if b.is_floating_point()]
    flat = torch.cat([b.reshape(-1) for b in buffers])
    distributed.all_reduce(flat)
    flat /= distributed.get_world_size()
    for buffer, mean in zip(buffers, flat.split_with_sizes([b.numel() for b in buffers]), strict=True):
        buffer.copy_(mean.view_as(buffer))


def _prepare(net: ResNet, spec: RunSpec) -> nn.Module:
    """The callable form of the network; its weights and statistics stay those of `net`."""
    network: nn.Module = net
    if _distributed():
        # Statistics are averaged once an epoch instead of broadcast every step. Newer torch calls the switch by another name.
        names = inspect.signature(DistributedDataParallel).parameters
        off: dict[str, Any] = {"forward_sync_buffers" if "forward_sync_buffers" in names else "broadcast_buffers": False}
        network = DistributedDataParallel(net, gradient_as_bucket_view=True, **off)
    if spec.compile:
        network.compile()
    return network


def _autocast(spec: RunSpec, device: torch.device) -> torch.autocast:
    return torch.autocast(device.type, AUTOCAST.get(spec.precision), enabled=spec.precision in AUTOCAST)


def _distributed() -> bool:
    return distributed.is_available() and distributed.is_initialized()


def _rank(spec: RunSpec) -> int:
    size = distributed.get_world_size() if _distributed() else 1
    if size != spec.world_size:
        raise reject("world_size", spec.world_size, f"the process group has {size} workers")
    return distributed.get_rank() if size > 1 else 0
