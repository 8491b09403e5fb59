"""Loss and error over all scored images and all workers."""

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from resnet_core.data.batches import Batches
from resnet_core.data.streaming import StreamedBatches
from resnet_core.heartbeat import Heartbeat as Heartbeat
from resnet_core.heartbeat import no_heartbeat as no_heartbeat
from resnet_core.model.network import ResNet
from resnet_core.training.arithmetic import autocast


@torch.inference_mode()
def evaluate(
    network: nn.Module, batches: Batches | StreamedBatches, *, eager: bool = False, heartbeat: Heartbeat = no_heartbeat
) -> dict[str, float]:
    """Loss and error (percent) over all scored images, each counted once whatever the number of workers.

    From 100 classes on, also the top-5 error.

    Args:
        network: may be wrapped for data-parallel training.
        batches: the images.
        eager: never runs compiled code, which does not call hooks.
        heartbeat: called after every batch.
    """
    network.eval()
    # Workers may hold different numbers of batches here: call the network itself, never DDP's collectives.
    network = network.module if isinstance(network, DistributedDataParallel) else network
    forward = network.forward if eager else network
    totals = Totals(batches.device, top5=(batches.spec.model.num_classes or 0) >= 100)
    for images, labels in batches.test():
        with autocast(batches.spec, batches.device):
            logits = forward(images)
        totals.add(F.cross_entropy(logits.float(), labels), logits, labels)
        heartbeat()
    return totals.reduce()


@torch.inference_mode()
def evaluate_views(
    net: ResNet, batches: Batches | StreamedBatches, kind: str, *, heartbeat: Heartbeat = no_heartbeat
) -> dict[str, float]:
    """Error (percent) over all scored images where the scores of each are the mean over several views of it.

    Args:
        net: the network.
        batches: where the views come from.
        kind: one of `DataConfig.extra_tests`.
        heartbeat: called after every view of a batch.
    """
    net.eval()
    totals = Totals(batches.device, top5=(batches.spec.model.num_classes or 0) >= 100)
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
    """Losses and counts on the device, kept step by step and added up once: a step costs few operations and no waiting."""

    def __init__(self, device: torch.device, *, top5: bool = False) -> None:
        self.device = device
        self.counts: list[int] = []
        self.losses: list[Tensor] = []
        self.wrong: dict[str, list[Tensor]] = {name: [] for name in ("error", "error_top5")[: 1 + top5]}

    def add(self, mean_loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        self.counts.append(len(labels))
        self.losses.append(mean_loss)
        self.wrong["error"].append((logits.argmax(1) != labels).sum())
        if "error_top5" in self.wrong:
            self.wrong["error_top5"].append((logits.topk(5).indices != labels[:, None]).all(1).sum())

    def reduce(self) -> dict[str, float]:
        """Loss and errors (percent) over all images and workers; a worker may have none."""
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
    """Whether this process is one worker of a group."""
    return distributed.is_available() and distributed.is_initialized()
