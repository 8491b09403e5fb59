"""Replayed steps train as steps that run as written do. Here a capture is repeated by the CPU; a real one: tests/test_gpu.py."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from resnet_core import override, preset
from resnet_core.training import loop as training
from resnet_core.training.steps import ReplayedStep, Scores, Step
from tests.helpers.training_runs import learned, train, weights_differ

SMOKE = override(preset("smoke"), {"epochs": 4, "schedule": "cosine"})  # 4 steps an epoch
CHANGES = {
    "recipe": {},
    "momentum and smoothing change": {"changes": ("2:momentum=0.5", "2:label_smoothing=0.1", "3:weight_decay=0.01")},
    "no momentum": {"momentum": 0.0},
    "momentum of updates": {"momentum_form": "caffe"},
    "warm-up by error": {"warmup_error": 85.0},
    "averaged statistics": {"bn_recalibration": True},
    "probes": {"probes": ("gradients", "responses"), "probe_epochs": (1, 3)},
    "bf16": {"precision": "bf16"},
}


class Repeated:
    """A graph that repeats its work with what the optimiser held when it was captured, as a real one does."""

    optimizer: torch.optim.Optimizer
    captures: int
    replays: int

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def warm(self, work: Callable[[], Scores]) -> Scores:
        return work()

    def capture(self, work: Callable[[], Scores]) -> Scores:
        type(self).captures += 1
        self.work, self.groups = work, [dict(group) for group in self.optimizer.param_groups]
        self.scores = torch.full((), torch.nan), torch.full((32, 10), torch.nan)
        return self.scores

    def replay(self) -> None:
        type(self).replays += 1
        now = [dict(group) for group in self.optimizer.param_groups]
        for group, then in zip(self.optimizer.param_groups, self.groups, strict=True):
            group.update(then)
        for kept, new in zip(self.scores, self.work(), strict=True):
            kept.copy_(new)
        for group, values in zip(self.optimizer.param_groups, now, strict=True):
            group.update(values)


def make_replayed(network: Any, optimizer: Any, scaler: Any, spec: Any, *, replay: bool) -> Step:
    Repeated.optimizer, Repeated.captures, Repeated.replays = optimizer, 0, 0
    return ReplayedStep(network, optimizer, scaler, spec)


@pytest.fixture
def replayed(monkeypatch: pytest.MonkeyPatch) -> type[Repeated]:
    monkeypatch.setattr("resnet_core.training.steps.Graph", Repeated)
    monkeypatch.setattr(training, "make_step", make_replayed)
    return Repeated


@pytest.mark.slow
@pytest.mark.parametrize("changes", CHANGES.values(), ids=CHANGES)
def test_replayed_steps_train_as_those_that_run_as_written(
    changes: dict[str, Any], replayed: type[Repeated], monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = override(SMOKE, changes)
    results, (*_, end) = train(spec)
    assert replayed.replays
    monkeypatch.setattr("resnet_core.training.steps.WARM_STEPS", 1000)
    as_written, (*_, last) = train(spec)
    assert not replayed.replays
    assert not weights_differ(end["model"], last["model"])
    assert learned(end["history"]) == learned(last["history"])
    assert end["probes"] == last["probes"]
    assert results[-1].state.warmup_steps == as_written[-1].state.warmup_steps


def test_a_graph_is_captured_once_and_again_only_where_what_it_keeps_changes(replayed: type[Repeated]) -> None:
    train(SMOKE)
    assert (replayed.captures, replayed.replays) == (1, 16 - 3)
    train(override(SMOKE, {"changes": ("3:momentum=0.5",)}))
    assert (replayed.captures, replayed.replays) == (2, 16 - 3 - 3)


def test_steps_of_probed_epochs_run_as_written(replayed: type[Repeated]) -> None:
    train(override(SMOKE, {"probes": ("gradients",), "probe_epochs": (1, 4)}))
    assert (replayed.captures, replayed.replays) == (1, 8 - 3)


def test_checkpoints_hold_numbers_and_continue_on_either_kind(replayed: type[Repeated], monkeypatch: pytest.MonkeyPatch) -> None:
    _, checkpoints = train(SMOKE)
    assert all(isinstance(group["lr"], float) for group in checkpoints[1]["optimizer"]["param_groups"])
    continued, (*_, end) = train(SMOKE, restore=checkpoints[1])
    assert not weights_differ(end["model"], checkpoints[-1]["model"])
    assert len(continued) == 2
    monkeypatch.undo()  # the step as written, with its rate in double precision
    _, (*_, plain) = train(SMOKE, restore=checkpoints[1])
    torch.testing.assert_close(plain["model"], end["model"], rtol=1e-4, atol=1e-5)
