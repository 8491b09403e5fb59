"""Loss, error and predicted classes over all images of the evaluation split and over all workers."""

from collections.abc import Sequence

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from resnet_core.data.batches import Batches
from resnet_core.data.streaming import StreamedBatches
from resnet_core.heartbeat import Heartbeat, no_heartbeat
from resnet_core.training.arithmetic import autocast

TOP5_CLASSES = 100
"""Minimum number of classes for a top-5 error."""


@torch.inference_mode()
def evaluate(
    network: nn.Module,
    batches: Batches | StreamedBatches,
    *,
    eager: bool = False,
    heartbeat: Heartbeat = no_heartbeat,
    predicted: list[Tensor] | None = None,
) -> dict[str, float]:
    """Return `loss` and `error` over the evaluation split, and `error_top5` if there are 100 classes or more.

    Every image counts once, whatever the number of workers.

    Args:
        network: network, possibly wrapped by DistributedDataParallel.
        batches: images of the run.
        eager: bypass compiled code, which does not call hooks.
        heartbeat: called after every batch.
        predicted: receives the predicted classes of each batch of this worker (batch,), int64.

    Returns:
        Mean loss in nats and errors in percent.
    """
    network.eval()
    # Workers may have different numbers of batches, so DDP's collectives would deadlock. Call the network itself.
    network = network.module if isinstance(network, DistributedDataParallel) else network
    forward = network.forward if eager else network
    totals = Totals(batches.device, top5=batches.num_classes >= TOP5_CLASSES)
    for images, labels in batches.test():
        with autocast(batches.spec, batches.device):
            logits = forward(images)
        totals.add(F.cross_entropy(logits.float(), labels), logits, labels)
        if predicted is not None:
            predicted.append(logits.argmax(1))
        heartbeat()
    return totals.reduce()


def gather_predictions(predicted: Sequence[Tensor], batches: Batches | StreamedBatches, count: int) -> Tensor:
    """Return the predicted class of every evaluated image (count,), int32, on the CPU, in the order of the data set.

    All workers call it, and each gets the classes of all images.

    Args:
        predicted: predicted classes of each batch of this worker, as `evaluate` has collected them.
        batches: images of the run.
        count: number of images in the evaluation split.
    """
    classes = torch.zeros(count, dtype=torch.int32, device=batches.device)
    if predicted:  # a worker may have no images
        classes[batches.rank :: batches.spec.world_size] = torch.cat([*predicted]).int()  # the share that `test` yields
    if is_distributed():
        distributed.all_reduce(classes)
    return classes.cpu()


@torch.inference_mode()
def evaluate_views(
    net: nn.Module, batches: Batches | StreamedBatches, kind: str, *, heartbeat: Heartbeat = no_heartbeat
) -> dict[str, float]:
    """Return the errors over the evaluation split when the class probabilities of several views of each image are averaged.

    Args:
        net: network.
        batches: images of the run.
        kind: type of views, one of `DataConfig.extra_tests`.
        heartbeat: called after every view of a batch.

    Returns:
        `error`, and `error_top5` if there are 100 classes or more, in percent.
    """
    net.eval()
    totals = Totals(batches.device, top5=batches.num_classes >= TOP5_CLASSES)
    for views, labels in batches.views(kind):
        scores: list[Tensor] = []
        for images in views:
            with autocast(batches.spec, batches.device):
                scores.append(net(images).float().softmax(1))
            heartbeat()
        mean = torch.stack(scores).mean(0)
        totals.add(F.nll_loss(mean.log(), labels), mean, labels)
    return {name: value for name, value in totals.reduce().items() if name != "loss"}


class Totals:
    """Losses and counts of errors, kept on the device for each step and summed once, so that no step waits for the device.

    Args:
        device: device of the losses and logits.
        top5: count top-5 errors too.
    """

    def __init__(self, device: torch.device, *, top5: bool = False) -> None:
        self.device = device
        self.counts: list[int] = []
        self.losses: list[Tensor] = []
        self.wrong: dict[str, list[Tensor]] = {name: [] for name in ("error", "error_top5")[: 1 + top5]}

    def add(self, mean_loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Add a batch: its mean loss (), logits (N, classes) and labels (N,)."""
        self.counts.append(len(labels))
        self.losses.append(mean_loss)
        self.wrong["error"].append((logits.argmax(1) != labels).sum())
        if "error_top5" in self.wrong:
            self.wrong["error_top5"].append((logits.topk(5).indices != labels[:, None]).all(1).sum())

    def reduce(self) -> dict[str, float]:
        """Return the mean loss and the errors in percent over all images and workers. A worker may have no images."""
        sums = torch.zeros(2 + len(self.wrong), dtype=torch.float64, device=self.device)
        if self.counts:
            counts = torch.tensor(self.counts, dtype=torch.float64, device=self.device)
            loss = (torch.stack(self.losses).double() * counts).sum()
            sums = torch.stack([counts.sum(), loss, *(torch.stack(wrong).sum().double() for wrong in self.wrong.values())])
        if is_distributed():
            distributed.all_reduce(sums)
        count, total_loss, *wrong = sums.tolist()
        return {"loss": total_loss / count} | {name: 100 * n / count for name, n in zip(self.wrong, wrong, strict=True)}


def is_distributed() -> bool:
    """Return True if this process is a worker of a `torch.distributed` process group."""
    return distributed.is_available() and distributed.is_initialized()
