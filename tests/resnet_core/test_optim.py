"""The optimiser and its learning rate."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from resnet_core import PRESETS, ModelConfig, OptimConfig, build_model
from resnet_core.training.optim import average_of, learning_rate, make_optimizer, set_learning_rate

PAPER = PRESETS["cifar10"].optim
COSINE = OptimConfig(lr=0.2, schedule="cosine")


@pytest.mark.parametrize(
    ("config", "total_steps", "expected"),
    [
        (PAPER, 64_000, {0: 0.1, 31_999: 0.1, 32_000: 0.01, 47_999: 0.01, 48_000: 0.001, 63_999: 0.001}),
        (replace(PAPER, warmup_steps=400), 64_000, {0: 0.01, 399: 0.01, 400: 0.1, 32_000: 0.01}),
        (replace(PAPER, warmup_steps=5, warmup_lr=0.03), 8, {3: 0.03, 4: 0.03, 5: 0.01, 6: 0.001}),
        (OptimConfig(milestones=(0.55,)), 100, {54: 0.1, 55: 0.01}),  # 0.55 × 100 is 55.00000000000001
        (OptimConfig(milestones=()), 10, {0: 0.1, 9: 0.1}),
        (COSINE, 100, {0: 0.2, 25: 0.1 * (1 + math.sqrt(0.5)), 50: 0.1, 75: 0.1 * (1 - math.sqrt(0.5)), 100: 0.0}),
        (replace(COSINE, warmup_steps=10), 100, {9: 0.01, 50: 0.1}),
        (OptimConfig(lr=0.2, schedule="constant"), 100, {0: 0.2, 99: 0.2}),
    ],
)
def test_the_learning_rate_is_the_recipes_at_every_boundary(
    config: OptimConfig, total_steps: int, expected: dict[int, float]
) -> None:
    assert {step: learning_rate(config, step, total_steps) for step in expected} == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("decay", "kept"), [("all", 0.99), ("weights", 1.0)])
def test_decay_shrinks_weights_and_only_if_asked_batchnorm_and_biases(decay: Any, kept: float) -> None:
    net = build_model(ModelConfig(depth=8, width=8))
    for parameter in net.parameters():
        torch.nn.init.ones_(parameter)
        parameter.grad = torch.zeros_like(parameter)
    make_optimizer(net, OptimConfig(lr=0.1, weight_decay=0.1, decay=decay)).step()
    for name, parameter in net.named_parameters():
        weight = name == "fc.weight" or ".conv" in name or name.startswith("conv")
        torch.testing.assert_close(parameter.detach(), torch.full_like(parameter, 0.99 if weight else kept))


@pytest.mark.parametrize(("nesterov", "moved"), [(False, 0.1 + 0.1 * 1.9), (True, 0.1 * 1.9 + 0.1 * (1 + 0.9 * 1.9))])
def test_momentum_is_pytorchs(nesterov: bool, moved: float) -> None:
    net = torch.nn.Linear(1, 1, bias=False)
    before = net.weight.item()
    optimizer = make_optimizer(net, OptimConfig(lr=0.1, momentum=0.9, weight_decay=0, nesterov=nesterov))
    for _ in range(2):
        net.weight.grad = torch.ones_like(net.weight)
        optimizer.step()
    assert before - net.weight.item() == pytest.approx(moved, rel=1e-5)


@pytest.mark.parametrize("form", ["pytorch", "caffe"])
def test_the_momentum_form_decides_what_a_lower_learning_rate_applies_to(form: Any) -> None:
    net = torch.nn.Linear(1, 1, bias=False)
    config = OptimConfig(momentum=0.9, weight_decay=0.1, momentum_form=form)
    optimizer = make_optimizer(net, config)
    expected, v = net.weight.item(), 0.0
    for step, rate in enumerate([0.1, 0.1, 0.01, 0.01, 0.5]):
        gradient = step - 1.5
        total = gradient + 0.1 * expected
        v = 0.9 * v + (rate * total if form == "caffe" else total)  # the paper's Caffe, and PyTorch
        expected -= v if form == "caffe" else rate * v
        net.weight.grad = torch.full_like(net.weight, gradient)
        set_learning_rate(optimizer, config, rate)
        optimizer.step()
        assert net.weight.item() == pytest.approx(expected, rel=1e-4)


def test_a_warm_up_by_error_keeps_its_rate_until_it_is_over() -> None:
    config = OptimConfig(warmup_error=80.0)
    assert learning_rate(config, 5000, 64_000, warming_up=True) == 0.01
    assert learning_rate(config, 0, 64_000, warming_up=False) == 0.1


def test_a_first_step_that_overflows_in_fp16_leaves_no_momentum() -> None:
    net = torch.nn.Linear(64, 64, bias=False)
    optimizer, scaler = make_optimizer(net, OptimConfig(lr=0.1, weight_decay=0)), torch.amp.GradScaler("cpu")
    before = net.weight.detach().clone()
    for gradient in (float("inf"), 1.0):
        scaler.scale(net(torch.zeros(1, 64)).sum()).backward()
        net.weight.grad = torch.full_like(net.weight, gradient) * scaler.get_scale()
        scaler.step(optimizer)
        scaler.update()
    assert torch.equal(optimizer.state[net.weight]["momentum_buffer"], torch.ones(64, 64))
    torch.testing.assert_close(net.weight.detach(), before - 0.1)


def test_a_moving_average_copies_whole_numbers() -> None:
    net = torch.nn.Linear(2, 2)
    net.register_buffer("index", torch.arange(1000))
    average = average_of(net, OptimConfig(ema=0.9))
    assert average is not None
    for step in range(20):
        torch.nn.init.constant_(net.bias, float(step > 0))
        average.update_parameters(net)
    assert torch.equal(average.module.get_buffer("index"), torch.arange(1000))
    torch.testing.assert_close(average.module.get_parameter("bias").detach(), torch.full((2,), 1 - 0.9**19))
