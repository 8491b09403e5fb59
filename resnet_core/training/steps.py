"""One training step: as it is written, or on a GPU replayed as a CUDA graph.

A step of a CIFAR network is hundreds of kernels of a few microseconds each. Launched one by one from Python, most of the time goes
into launching; a graph of all of them is launched at once. It computes the same.
"""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from resnet_core.config import RunSpec
from resnet_core.training.arithmetic import autocast
from resnet_core.training.evaluation import is_distributed
from resnet_core.training.probes import Gradients

Scores = tuple[Tensor, Tensor]
"""Mean loss (), and logits (N, classes) as they were trained on; the logits are valid until the next step."""
WARM_STEPS = 3
"""So many steps run as written before one is captured: libraries choose algorithms and reserve memory, compilers compile."""


class Step:
    """Forward pass, backward pass and update by one batch. The optimizer has its learning rate, momentum and decay already."""

    def __init__(self, network: nn.Module, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, spec: RunSpec) -> None:
        self.network, self.optimizer, self.scaler, self.spec = network, optimizer, scaler, spec

    def __call__(self, images: Tensor, labels: Tensor, smoothing: float = 0.0, gradients: Gradients | None = None) -> Scores:
        """Trains on images (N, C, H, W) and labels (N,), and shows the gradients to the probe if there is one."""
        with autocast(self.spec, images.device):
            logits: Tensor = self.network(images)
        loss = F.cross_entropy(logits.float(), labels, label_smoothing=smoothing)
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        if gradients:
            gradients.add(self.scaler.scale(torch.ones((), device=images.device)))
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        return loss.detach(), logits.detach()


@functools.cache
def side_stream(device: torch.device) -> torch.cuda.Stream:
    """One for all graphs of a process: its libraries keep some 64 MB for every stream that they were used on."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


class Graph:
    """Work on a GPU that is captured once, then repeated on the same memory."""

    def __init__(self, device: torch.device) -> None:
        self.stream = side_stream(device)
        self.graph = torch.cuda.CUDAGraph()

    def warm(self, work: Callable[[], Scores]) -> Scores:
        """Does it where it will be captured: what PyTorch keeps of a backward pass belongs to a stream."""
        current = torch.cuda.current_stream(self.stream.device)
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            scores = work()
        current.wait_stream(self.stream)
        return scores

    def capture(self, work: Callable[[], Scores]) -> Scores:
        """Does nothing yet. Every replay writes into what is returned."""
        # Other threads of the process may reserve memory meanwhile.
        with torch.cuda.graph(self.graph, stream=self.stream, capture_error_mode="thread_local"):
            return work()

    def replay(self) -> None:
        self.graph.replay()


class ReplayedStep(Step):
    """A step on batches of one shape that is captured after a few steps.

    A graph keeps momentum, decay and label smoothing as they were when it was captured, and is captured anew where they change.
    The learning rate may change with every step: the GPU reads it. Steps with a probe run as written, and no graph holds memory.
    """

    def __init__(self, network: nn.Module, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, spec: RunSpec) -> None:
        super().__init__(network, optimizer, scaler, spec)
        self.rate = torch.zeros((), device=next(network.parameters()).device)
        self.settings: tuple[float, ...] = ()
        self.scores: Scores | None = None

    def __call__(self, images: Tensor, labels: Tensor, smoothing: float = 0.0, gradients: Gradients | None = None) -> Scores:
        groups = self.optimizer.param_groups
        settings = (bool(gradients), smoothing, *(group[name] for group in groups for name in ("momentum", "weight_decay")))
        if settings != self.settings:
            self.settings, self.graph, self.scores, self.warm_steps = settings, Graph(images.device), None, 0
        run = super().__call__
        with self._rate_on_device():
            if gradients or self.warm_steps < WARM_STEPS:
                self.warm_steps += 1
                return self.graph.warm(lambda: run(images, labels, smoothing, gradients))
            if not self.scores:
                self.images, self.labels = images.clone(memory_format=torch.preserve_format), labels.clone()
                self.scores = self.graph.capture(lambda: run(self.images, self.labels, smoothing))
        self.images.copy_(images)
        self.labels.copy_(labels)
        self.graph.replay()
        loss, logits = self.scores
        return loss.clone(), logits

    @contextmanager
    def _rate_on_device(self) -> Iterator[None]:
        """The optimizer finds its learning rate in a tensor, in warm steps too: a replayed one then rounds as they do."""
        groups = self.optimizer.param_groups
        (rate,) = {group["lr"] for group in groups}
        self.rate.fill_(rate)
        for group in groups:
            group["lr"] = self.rate
        try:
            yield
        finally:
            for group in groups:
                group["lr"] = rate


def make_step(
    network: nn.Module, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, spec: RunSpec, *, replay: bool = True
) -> Step:
    """A step, with `replay` a replayed one where that pays and can be done.

    It cannot where the scaler of fp16 decides on the host, nor where workers wait for each other. Streamed images train networks
    whose kernels take longer than their launch, on batches whose memory a graph would hold twice.
    """
    on_gpu = next(network.parameters()).device.type == "cuda"
    pays = on_gpu and not is_distributed() and not spec.data.streamed and spec.precision != "fp16"
    return (ReplayedStep if replay and pays else Step)(network, optimizer, scaler, spec)
