"""Signals at initialisation: what residual networks keep steady at any depth, and plain ones do not.

Measured with seeds 0 and 1 (1202 layers: 0), 8 images of 8×8 pixels: standard deviation of the first and the last block's output,
the smallest one of a convolution's output, and the norm of the gradient of the first and the last convolution.

    network        first block    last block     smallest convolution    first gradient    last gradient
    ResNet-20      0.84 – 0.85    1.42 – 1.47    0.56                    3.7 – 4.9         1.1 – 1.3
    ResNet-56      0.82 – 0.83    2.44 – 2.48    0.57 – 0.58             15 – 18           1.4
    ResNet-110     0.84 – 0.86    3.58 – 3.66    0.56 – 0.57             27 – 38           1.3 – 1.5
    ResNet-1202    0.87           11.9           0.56                    407               1.3
    Plain-20       0.58 – 0.59    0.57 – 0.58    0.56                    9.5 – 9.8         0.9 – 1.1
    Plain-56       0.59           0.58           0.57 – 0.58             4.5e3 – 5.4e3     1.1
    Plain-110      0.58 – 0.59    0.57 – 0.59    0.56 – 0.57             1.3e7 – 1.7e7     1.1
    Plain-1202     0.59           0.59           0.56                    not finite        1.1

A residual network's signal grows with the square root of a stage's blocks, 0.84 of it throughout: every block adds as much
variance as the others. Its gradients grow towards the input about in proportion to depth. A plain network's signal neither grows
nor vanishes, and neither do its gradients vanish: they grow by a constant factor per layer, 1.13 to 1.16 here. Yang et al. 2019
(arXiv:1902.08129) derive such a growth from BatchNorm.
"""

import math
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from resnet_core import ModelConfig, build_model
from resnet_core.model.network import BasicBlock, ResNet


@dataclass(frozen=True)
class Signal:
    blocks: list[float]
    """Standard deviation of every block's output."""
    convolutions: list[float]
    """Standard deviation of every convolution's output."""
    gradients: list[float]
    """Norm of every convolution's gradient."""


def measure(depth: int, shortcut: Any, change: Callable[[ResNet], None] = lambda net: None) -> Signal:
    torch.manual_seed(0)
    net = build_model(ModelConfig(depth=depth, shortcut=shortcut))
    change(net)
    signal = Signal([], [], [])

    def listen(module: nn.Module, into: list[float]) -> None:
        module.register_forward_hook(lambda _, __, output: into.append(output.std().item()))

    convolutions = [module for module in net.modules() if isinstance(module, nn.Conv2d)]
    for conv in convolutions:
        listen(conv, signal.convolutions)
    for module in net.modules():
        if isinstance(module, BasicBlock):
            listen(module, signal.blocks)
    images, labels = torch.randn(8, 3, 8, 8), torch.randint(0, 10, (8,))
    F.cross_entropy(net(images), labels).backward()  # type: ignore[no-untyped-call]
    signal.gradients.extend(conv.weight.grad.norm().item() for conv in convolutions if conv.weight.grad is not None)
    return signal


DEPTHS = [20, 110, pytest.param(1202, marks=[pytest.mark.slow, pytest.mark.nightly])]


@pytest.mark.parametrize("depth", DEPTHS)
def test_a_residual_networks_signal_grows_with_the_square_root_of_depth(depth: int) -> None:
    signal, blocks = measure(depth, "A"), (depth - 2) // 6
    assert min(signal.blocks) > 0.75
    assert 0.75 < signal.blocks[-1] / math.sqrt(blocks) < 0.95


@pytest.mark.parametrize("depth", DEPTHS)
def test_a_residual_networks_gradients_neither_vanish_nor_grow_faster_than_depth(depth: int) -> None:
    gradients = measure(depth, "A").gradients
    assert min(gradients) > 0.5
    assert max(gradients) < depth / 2


@pytest.mark.parametrize("depth", [20, 56, 110])
@pytest.mark.parametrize("shortcut", ["none", "A"])
def test_convolutions_pass_on_the_strength_of_their_input(depth: int, shortcut: Any) -> None:
    """He et al. 2015 (arXiv:1502.01852): the variance that rectification halves, the weights double."""
    signal = measure(depth, shortcut)
    assert 0.5 < min(signal.convolutions) < 0.65


def without_gain(net: ResNet) -> None:
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="linear")


def as_pytorch_does(net: ResNet) -> None:
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            module.reset_parameters()


@pytest.mark.parametrize("initialise", [without_gain, as_pytorch_does])
def test_a_wrong_initialisation_shows_in_what_convolutions_pass_on(initialise: Callable[[ResNet], None]) -> None:
    """Measured: 0.41 without the gain of √2, 0.26 with PyTorch's own. BatchNorm hides it from everything after."""
    assert min(measure(20, "A", initialise).convolutions) < 0.45


def without_batchnorm(net: ResNet) -> None:
    for module in net.modules():
        for name, child in list(module.named_children()):
            if isinstance(child, nn.BatchNorm2d):
                setattr(module, name, nn.Identity())


def test_without_batchnorm_a_residual_networks_signal_explodes_and_a_plain_ones_vanishes() -> None:
    """Measured for 110 layers: 7.4e5 and 1.9e-11 after the last block."""
    assert measure(110, "A", without_batchnorm).blocks[-1] > 1e3
    assert measure(110, "none", without_batchnorm).blocks[-1] < 1e-6


@pytest.mark.parametrize("depth", [20, 56, 110])
def test_a_plain_networks_signal_does_not_vanish(depth: int) -> None:
    """The paper (section 4.1): with BatchNorm, forward signals have non-zero variances."""
    signal = measure(depth, "none")
    assert min(signal.blocks) > 0.5
    assert max(signal.blocks) < 0.8
    assert min(signal.gradients) > 0.5


@pytest.mark.slow
def test_a_plain_networks_gradients_grow_exponentially_towards_the_input() -> None:
    """Neither vanishing nor healthy: BatchNorm's backward pass amplifies in every layer."""
    growth = {}
    for depth in (20, 56, 110):
        gradients = measure(depth, "none").gradients
        growth[depth] = (gradients[0] / gradients[-1]) ** (1 / (depth - 2))
    assert all(1.1 < factor < 1.3 for factor in growth.values()), growth
    assert growth[110] == pytest.approx(growth[56], rel=0.03)


ONE_STEP = """
import sys
from pathlib import Path
import torch
from torch.nn import functional as F
from resnet_core import ModelConfig, build_model
from resnet_core.training.memory import PeakMemory

torch.manual_seed(0)
images, labels = torch.randn(4, 3, 32, 32), torch.randint(0, 10, (4,))
build_model(ModelConfig(depth=8), checkpoint_activations=True)(images).sum().backward()  # what the library itself needs
net = build_model(ModelConfig(depth=1202), checkpoint_activations=sys.argv[1] == "True")
optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
for parameter in net.parameters():
    parameter.grad = torch.ones_like(parameter).zero_()  # written, hence resident
before = int(Path("/proc/self/status").read_text().split("VmRSS:")[1].split()[0]) / 2**10
memory = PeakMemory(torch.device("cpu"))
loss = F.cross_entropy(net(images), labels)
loss.backward()
optimizer.step()
print(loss.item(), net.conv1.weight.double().sum().item(), net.layer3[-1].bn2.running_var.double().sum().item())
print(memory.read_mb() - before)
"""


@pytest.mark.slow
@pytest.mark.nightly
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_recomputing_activations_trains_1202_layers_in_a_fraction_of_the_memory() -> None:
    """Four images, which keep 88 MiB each. Measured with glibc as it is: 400 against 152 MiB, most of the latter being memory
    that is freed and not given back to the system. The setting here gives it back at once: 42 MiB."""
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}
    printed = {}
    for checkpointing in (False, True):
        command = [sys.executable, "-c", ONE_STEP, str(checkpointing)]
        printed[checkpointing] = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout.split(
            "\n"
        )
    assert printed[True][0] == printed[False][0], "the same loss, weights and statistics"
    kept, recomputed = float(printed[False][1]), float(printed[True][1])
    assert kept > 4 * 88 * 0.9
    assert recomputed < kept / 5
