"""Training loop: `fit` assembles small functions, to be read from top to bottom.

`fit` uses neither Ray nor MLflow. If `torch.distributed` is initialized, it trains as one worker of a data-parallel group.
"""

import inspect
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import update_bn

from resnet_core.config import RunSpec
from resnet_core.data import make_batches
from resnet_core.data.batches import Batches, derived_seed
from resnet_core.data.datasets import Dataset, load_dataset, resolve
from resnet_core.data.streaming import StreamedBatches
from resnet_core.fields import reject
from resnet_core.heartbeat import Heartbeat, no_heartbeat
from resnet_core.model.building import build_network, in_layout
from resnet_core.model.cost import measure_cost
from resnet_core.model.measurement import can_capture
from resnet_core.training.arithmetic import arithmetic, autocast
from resnet_core.training.divergence import Diverged
from resnet_core.training.evaluation import Totals, evaluate, evaluate_views, gather_predictions, is_distributed
from resnet_core.training.memory import PeakMemory
from resnet_core.training.mixing import augmented, mixes
from resnet_core.training.optim import average_of, learning_rate, make_optimizer, set_learning_rate, set_momentum_and_decay
from resnet_core.training.probes import Gradients, Responses
from resnet_core.training.state import Metrics, TrainState
from resnet_core.training.steps import Step, make_step

Batch = tuple[torch.Tensor, torch.Tensor]
"""Images (N, C, H, W) and labels (N,)."""
WARMUP_WINDOW_STEPS = 20
"""Steps over which a warm-up by training error averages the error."""


@dataclass(frozen=True)
class EpochResult:
    """Metrics of a finished epoch and the state of the training.

    The state is live: it changes when the generator advances to the next epoch.
    """

    epoch: int
    """Number of the epoch, from 1."""
    metrics: Metrics
    """Metrics by name. Every epoch has `train/loss` and `test/loss` (nats), `train/error` and `test/error` (percent), `lr`,
    `images_per_second`, `epoch_seconds` and `peak_memory_mb` (MiB). With a validation split, `validation/…` replaces `test/…`.
    Streamed images add `data_wait_seconds`. The last epoch adds `parameters`, `flops`, `train_seconds`, the errors of extra
    tests such as `test/ten_crop_error`, and `warmup_steps` after a warm-up by training error."""
    last: bool
    """True for the last epoch of the training."""
    state: TrainState
    """Live state of the training, with the network in `state.net`."""
    steps: int
    """Number of steps from the start of the training to the end of this epoch."""

    def checkpoint(self) -> dict[str, Any]:
        """Return a copy of the state for `fit(restore=…)`.

        It holds tensors, numbers, lists and dicts only, so that `torch.load` accepts it with `weights_only=True`.

        Raises:
            RuntimeError: the generator has advanced, and the state of this epoch is gone.
        """
        if self.state.step != self.steps:
            when = "call checkpoint() before advancing the generator"
            raise RuntimeError(f"the training has advanced past epoch {self.epoch}, whose state is no longer available: {when}")
        return self.state.save()


def fit(
    spec: RunSpec,
    *,
    dataset: Dataset | None = None,
    device: str | torch.device = "cpu",
    restore: dict[str, Any] | None = None,
    heartbeat: Heartbeat = no_heartbeat,
    replay: bool = True,
) -> Iterator[EpochResult]:
    """Train one network and yield a result after every epoch.

    PyTorch's number of CPU threads (`torch.set_num_threads`) affects the last bits of a training on a CPU. Studies use one thread
    for each CPU of a worker.

    Args:
        spec: run to train. Fields that depend on the data set, such as `model.num_classes`, may be None.
        dataset: images, from `load_dataset`. None: load `spec.data`.
        device: device to train on, such as `cpu`, `cuda` or `cuda:1`.
        restore: checkpoint to resume from, of the same spec or of one that differs in later `optim.changes` only.
        heartbeat: called after every training step and every evaluated batch.
        replay: allow CUDA graphs on a GPU: results are equal and training is faster, but hooks and debuggers see no replayed step.

    Yields:
        The metrics of each finished epoch, with the live state of the training.

    Raises:
        Diverged: the loss is not finite.
        ConfigError: spec and data set contradict each other, or the process group does not have `spec.world_size` workers.

    Example:
        >>> for result in fit(override(preset("digits"), {"depth": 20, "epochs": 3})):
        ...     print(result.epoch, result.metrics["test/error"])
    """
    device = torch.device(device)
    rank = _rank(spec)
    dataset = dataset or load_dataset(spec.data, heartbeat=heartbeat)
    spec = resolve(spec, dataset)
    batches = make_batches(dataset, spec, device=device, rank=rank)
    images = len(dataset.train.labels)
    total_steps, probed = spec.optim.total_steps(images), spec.probed_epochs(spec.optim.total_epochs(images))
    state = init_state(spec, device, **dataset.sizes)
    if restore is not None:
        state.load(restore)
    network = _prepare(state.net, spec)
    if isinstance(network, DistributedDataParallel):
        with arithmetic(spec):
            _finalize_buckets(network, spec, dataset, device)
    evaluated = _compiled(state.evaluated, spec) if state.average else network
    step = make_step(network, state.optimizer, state.scaler, spec, replay=replay and can_capture(spec, **dataset.sizes))
    while state.step < total_steps:
        probes = spec.probes if state.epoch + 1 in probed else ()
        memory, started = PeakMemory(device), time.perf_counter()
        steps = min(batches.steps_per_epoch, total_steps - state.step)
        with arithmetic(spec), _seeded_generators(spec, state.epoch, rank, device):
            train = train_epoch(
                step, state, batches, steps=steps, total_steps=total_steps, probe="gradients" in probes, heartbeat=heartbeat
            )
            trained, waited = time.perf_counter(), batches.wait_seconds
            last = state.step >= total_steps
            finalize_batchnorm(state, batches, last=last, heartbeat=heartbeat)
            predicted: list[torch.Tensor] | None = [] if last and spec.data.evaluation_split == "test" else None
            test = _test(evaluated, state, batches, probe="responses" in probes, heartbeat=heartbeat, predicted=predicted)
        finished = time.perf_counter()
        evaluation_split = spec.data.evaluation_split
        metrics = {
            **{f"train/{name}": value for name, value in train.items()},
            **{f"{evaluation_split}/{name}": value for name, value in test.items()},
            "lr": state.optimizer.param_groups[0]["lr"],
            "images_per_second": steps * spec.optim.global_batch_size / (trained - started),
            "epoch_seconds": finished - started,
            "peak_memory_mb": memory.read_mb(),
        }
        if spec.data.streamed:
            metrics["data_wait_seconds"] = waited
        state.history.append(metrics)
        if not (math.isfinite(metrics["train/loss"]) and math.isfinite(metrics[f"{evaluation_split}/loss"])):
            raise Diverged(f"the loss is not finite in epoch {state.epoch} (learning rate {metrics['lr']:g})")
        if last:
            with arithmetic(spec):
                metrics |= _final_metrics(state, dataset, batches, heartbeat)
        if predicted is not None:
            state.predictions = gather_predictions(predicted, batches, len(dataset.test.labels))
        yield EpochResult(state.epoch, metrics, last, state, state.step)


@contextmanager
def _seeded_generators(spec: RunSpec, epoch: int, rank: int, device: torch.device) -> Iterator[None]:
    """Seed PyTorch's global generators for one epoch of one worker, and restore them afterwards.

    What a network draws, as for dropout, then depends on the seed, the epoch and the worker only, and a resumed run draws the same.
    """
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(derived_seed(spec.seed, f"epoch {epoch} worker {rank}"))
        yield


def _test(
    network: nn.Module,
    state: TrainState,
    batches: Batches | StreamedBatches,
    *,
    probe: bool,
    heartbeat: Heartbeat,
    predicted: list[torch.Tensor] | None,
) -> dict[str, float]:
    """Return loss and errors over the evaluation split. With `probe`, also append layer responses to `state.probes`."""
    if not probe:
        return evaluate(network, batches, heartbeat=heartbeat, predicted=predicted)
    with Responses(state.evaluated) as responses:
        test = evaluate(network, batches, eager=True, heartbeat=heartbeat, predicted=predicted)
    state.probes += responses.read(state.epoch + 1)
    return test


def _final_metrics(state: TrainState, dataset: Dataset, batches: Batches | StreamedBatches, heartbeat: Heartbeat) -> Metrics:
    """Return the metrics that only the last epoch has."""
    spec = batches.spec
    cost = measure_cost(spec.model, **dataset.sizes)
    metrics: Metrics = {"parameters": cost.parameters, "flops": cost.flops}
    for kind in spec.data.extra_tests:
        views = evaluate_views(state.evaluated, batches, kind, heartbeat=heartbeat)
        metrics |= {f"{spec.data.evaluation_split}/{kind}_{name}": value for name, value in views.items()}
    if state.warmup_steps is not None:
        metrics["warmup_steps"] = state.warmup_steps
    return metrics | {"train_seconds": sum(past["epoch_seconds"] for past in state.history)}


def init_state(
    spec: RunSpec, device: torch.device, *, image_size: int = 32, in_channels: int | None = None, num_classes: int | None = None
) -> TrainState:
    """Return the initial state of a training: a network drawn from `spec.seed`, and its optimizer.

    Args:
        spec: resolved run.
        device: device of the training.
        image_size: side of the images, in pixels; networks of He et al. do not depend on it.
        in_channels: number of color channels, as for `build_network`.
        num_classes: number of classes, as for `build_network`.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derived_seed(spec.seed, "weights"))
        # Built on the CPU, so that initial weights do not depend on the device.
        net = build_network(
            spec.model,
            image_size,
            in_channels=in_channels,
            num_classes=num_classes,
            checkpoint_activations=spec.checkpoint_activations,
        )
    in_layout(net.to(device), channels_last=spec.channels_last)
    scaler = torch.amp.GradScaler(device.type, enabled=spec.precision == "fp16")
    return TrainState(net, make_optimizer(net, spec.optim), scaler, average_of(net, spec.optim))


def train_epoch(
    step: Step,
    state: TrainState,
    batches: Batches | StreamedBatches,
    *,
    steps: int,
    total_steps: int,
    probe: bool = False,
    heartbeat: Heartbeat = no_heartbeat,
) -> dict[str, float]:
    """Train for one epoch and return its mean loss in nats and its errors in percent, over all images and workers.

    Args:
        step: training step of the run.
        state: state of the training, which the epoch advances.
        batches: images of the run.
        steps: steps of this epoch; the last epoch may be partial.
        total_steps: steps of the whole training.
        probe: append the norms of gradients to `state.probes`.
        heartbeat: called after every step.
    """
    spec = batches.spec
    optim = spec.optim.at_epoch(state.epoch)
    set_momentum_and_decay(state.optimizer, optim)
    step.network.train()
    totals, recent = Totals(batches.device), Totals(batches.device)
    gradients = Gradients(state.net) if probe else None
    epoch: Iterator[Batch] = batches.train_epoch(state.epoch)
    if mixes(spec):
        epoch = augmented(epoch, spec, state.epoch, rank=batches.rank, num_classes=batches.num_classes)
    for _, (images, labels) in zip(range(steps), epoch, strict=False):
        warming_up = optim.warmup_error is not None and state.warmup_steps is None
        set_learning_rate(state.optimizer, optim, learning_rate(optim, state.step, total_steps, warming_up=warming_up))
        loss, logits = step(images, labels, optim.label_smoothing, gradients)
        if state.average:
            state.average.update_parameters(state.net)
        labels = labels.argmax(1) if labels.ndim == 2 else labels  # of blended labels, the larger share
        state.step += 1
        totals.add(loss, logits, labels)
        if warming_up:
            recent.add(loss, logits, labels)
            recent = _end_warmup(state, spec, recent, batches.steps_per_epoch)
        heartbeat()
    if gradients:
        state.probes += gradients.read(state.epoch + 1)
    return totals.reduce()


def _end_warmup(state: TrainState, spec: RunSpec, recent: "Totals", steps_per_epoch: int) -> "Totals":
    """End a warm-up by training error if the error is low enough, and return the totals to continue with.

    The check waits for the device and therefore happens every 20 steps only, or at the end of shorter epochs.
    """
    done = (state.step - 1) % steps_per_epoch + 1
    if done % WARMUP_WINDOW_STEPS and not done == steps_per_epoch < WARMUP_WINDOW_STEPS:
        return recent
    if recent.reduce()["error"] < (spec.optim.warmup_error or 0):
        state.warmup_steps = state.step
    return Totals(recent.device)


def finalize_batchnorm(
    state: TrainState, batches: Batches | StreamedBatches, *, last: bool, heartbeat: Heartbeat = no_heartbeat
) -> None:
    """Set the BatchNorm statistics for evaluation, equal on all workers: running, or recalibrated after the last epoch."""
    if last and batches.spec.optim.bn_recalibration:
        with autocast(batches.spec, batches.device):
            update_bn(_with_heartbeat(batches.train_epoch(state.epoch), heartbeat), state.evaluated)
    average_batchnorm(state.net)
    if state.average:
        average_batchnorm(state.average.module)


def _with_heartbeat(steps: Iterator[Batch], heartbeat: Heartbeat) -> Iterator[Batch]:
    for batch in steps:
        yield batch
        heartbeat()


def average_batchnorm(net: nn.Module) -> None:
    """Average the running statistics over all workers. In training, each worker normalizes by its own share of a batch."""
    if not is_distributed():
        return
    buffers = [b for b in net.buffers() if b.is_floating_point()]
    if not buffers:  # a network without BatchNorm
        return
    flat = torch.cat([b.reshape(-1) for b in buffers])
    distributed.all_reduce(flat)
    flat /= distributed.get_world_size()
    for buffer, mean in zip(buffers, flat.split_with_sizes([b.numel() for b in buffers]), strict=True):
        buffer.copy_(mean.view_as(buffer))


def _prepare(net: nn.Module, spec: RunSpec) -> nn.Module:
    """Return `net` wrapped for data-parallel training and compiled, if the run asks for it. Weights and statistics are shared."""
    network: nn.Module = net
    if is_distributed():
        # Statistics are averaged once per epoch, not broadcast in every step. Newer PyTorch renamed the switch.
        names = inspect.signature(DistributedDataParallel).parameters
        off: dict[str, Any] = {"forward_sync_buffers" if "forward_sync_buffers" in names else "broadcast_buffers": False}
        network = DistributedDataParallel(net, gradient_as_bucket_view=True, **off)
    return _compiled(network, spec)


def _compiled(network: nn.Module, spec: RunSpec) -> nn.Module:
    if spec.compile:
        network.compile()
    return network


def _finalize_buckets(network: DistributedDataParallel, spec: RunSpec, dataset: Dataset, device: torch.device) -> None:
    """Run one backward pass without an update, so that DDP finalizes the order of its gradient buckets.

    DDP rebuilds its buckets after the first backward pass. With more than two workers, their order decides the last bit of the
    summed gradients, and a resumed run would differ from an uninterrupted one.
    """
    statistics = [buffer.clone() for buffer in network.buffers()]
    share = spec.optim.global_batch_size // spec.world_size
    images = torch.zeros(share, dataset.in_channels, dataset.image_size, dataset.image_size, device=device)
    images = images.to(memory_format=torch.channels_last if spec.channels_last else torch.contiguous_format)
    network.train()  # type: ignore[no-untyped-call]
    with autocast(spec, device):
        network(images).float().sum().backward()
    network.zero_grad()
    for buffer, before in zip(network.buffers(), statistics, strict=True):
        buffer.copy_(before)


def _rank(spec: RunSpec) -> int:
    """Return this worker's rank; raise ConfigError if the process group does not have `spec.world_size` workers."""
    size = distributed.get_world_size() if is_distributed() else 1
    if size != spec.world_size:
        raise reject("world_size", spec.world_size, f"the process group has {size} workers")
    return distributed.get_rank() if size > 1 else 0
