"""One training step: eager, or replayed as a CUDA graph on a GPU.

A step of a CIFAR network runs hundreds of kernels of a few microseconds each, so that launching them one by one from Python takes
most of the time. A CUDA graph launches all of them at once, and computes the same.
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
"""Mean loss () and logits (N, classes) of a training step. The logits are valid until the next step."""
WARM_STEPS = 3
"""Number of eager steps before the capture, in which libraries choose algorithms and reserve memory, and compilers compile."""


class Step:
    """Eager training step: forward pass, backward pass and update.

    The caller sets learning rate, momentum and weight decay in the optimizer before each step.
    """

    def __init__(self, network: nn.Module, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, spec: RunSpec) -> None:
        self.network, self.optimizer, self.scaler, self.spec = network, optimizer, scaler, spec

    def __call__(self, images: Tensor, labels: Tensor, smoothing: float = 0.0, gradients: Gradients | None = None) -> Scores:
        """Train on one batch.

        Args:
            images: images (N, C, H, W), float32.
            labels: labels (N,), int64, or probabilities of the classes (N, classes).
            smoothing: label smoothing, a fraction.
            gradients: probe that measures the gradients of this step.
        """
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
    """Return the stream of all graphs of this process. Libraries keep about 64 MB for every stream that they were used on."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


class Graph:
    """CUDA graph: work on a GPU that is captured once, then replayed on the same memory."""

    def __init__(self, device: torch.device) -> None:
        self.stream = side_stream(device)
        self.graph = torch.cuda.CUDAGraph()

    def warm(self, work: Callable[[], Scores]) -> Scores:
        """Run `work` eagerly on the stream of the capture, since PyTorch binds the state of a backward pass to its stream."""
        current = torch.cuda.current_stream(self.stream.device)
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            scores = work()
        current.wait_stream(self.stream)
        return scores

    def capture(self, work: Callable[[], Scores]) -> Scores:
        """Capture `work` without running it, and return the tensors that every replay writes to."""
        # "thread_local": other threads of the process may allocate memory during the capture.
        with torch.cuda.graph(self.graph, stream=self.stream, capture_error_mode="thread_local"):
            return work()

    def replay(self) -> None:
        """Run the captured work."""
        self.graph.replay()


class ReplayedStep(Step):
    """Training step that is captured as a CUDA graph after a few eager steps. All batches must have the same shape.

    A graph fixes momentum, weight decay and label smoothing, and is captured again when they change. The learning rate may change
    in every step, since the GPU reads it from a tensor. An epoch with a probe captures no graph: all its steps run eagerly.
    """

    def __init__(self, network: nn.Module, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, spec: RunSpec) -> None:
        super().__init__(network, optimizer, scaler, spec)
        self.rate = torch.zeros((), device=next(network.parameters()).device)
        self.settings: tuple[float, ...] = ()
        self.scores: Scores | None = None

    def __call__(self, images: Tensor, labels: Tensor, smoothing: float = 0.0, gradients: Gradients | None = None) -> Scores:
        groups = self.optimizer.param_groups
        settings = (
            bool(gradients),
            smoothing,
            *(group.get(name, 0.0) for group in groups for name in ("momentum", "weight_decay")),
        )
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
        """Pass the learning rate to the optimizer as a tensor. Eager steps do so too: both kinds then round alike."""
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
    """Return the training step of a run: replayed if `replay` is True and a CUDA graph is possible and faster, else eager.

    A graph is impossible if the gradient scaler of `fp16` decides on the host, if workers wait for each other, or if a network
    of one's own reads numbers from tensors, for which `fit` sets `replay` to False. It is not
    faster with streamed images: their networks have kernels that take longer than their launch, and a graph would hold their
    batches twice.

    Args:
        network: callable form of the network.
        optimizer: optimizer of its parameters.
        scaler: gradient scaler, enabled for `fp16`.
        spec: resolved run.
        replay: allow CUDA graphs.
    """
    on_gpu = next(network.parameters()).device.type == "cuda"
    replayable = on_gpu and not is_distributed() and not spec.data.streamed and spec.precision != "fp16"
    return (ReplayedStep if replay and replayable else Step)(network, optimizer, scaler, spec)
