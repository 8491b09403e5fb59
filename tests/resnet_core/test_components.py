"""The shipped network of one's own: each piece is what its field says, and all of them train."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torchvision.ops import SqueezeExcitation, StochasticDepth

from ablations import components
from ablations.components import Components
from ablations.engine.study.expansion import make_plan
from ablations.engine.study.request import StudyRequest
from resnet_core import ConfigError, build_network, fit, measure_cost, override, preset
from tests.helpers.training_runs import train, weights_differ

PIECES: dict[str, dict[str, Any]] = {
    "plain": {},
    "group norm": {"norm": "group"},
    "no norm": {"norm": "none"},
    "GELU": {"activation": "gelu"},
    "stem of three": {"stem": "three"},
    "pooled shortcut": {"shortcut": "pooled"},
    "squeeze-and-excitation": {"squeeze": True},
    "pre-activation": {"pre_activation": True},
    "stochastic depth": {"stochastic_depth": 0.5},
    "all": {
        "stem": "three",
        "shortcut": "pooled",
        "squeeze": True,
        "pre_activation": True,
        "stochastic_depth": 0.2,
        "norm": "group",
    },
}


@pytest.mark.slow
def test_the_shipped_study_opens_with_its_command_and_cost_and_can_be_planned(tmp_path: Path) -> None:
    for text in ("ray job submit -- python ablations/components.py", "Cost: 36 runs on digits", "Expect: "):
        assert text in (components.__doc__ or "")
    plan = make_plan(components.STUDY.for_preset("smoke"), StudyRequest(preset="smoke"), cache=tmp_path)
    assert (len({run.fingerprint for run in plan.runs}), plan.skipped) == (36, ())


def count(net: nn.Module, kind: type[nn.Module]) -> int:
    return sum(isinstance(module, kind) for module in net.modules())


@pytest.mark.slow
@pytest.mark.parametrize("piece", PIECES)
def test_every_piece_trains_and_resumes(piece: str) -> None:
    spec = replace(preset("smoke"), model=Components(width=8, **PIECES[piece]))
    _, checkpoints = train(spec)
    _, (resumed,) = train(spec, restore=checkpoints[0])
    assert not weights_differ(checkpoints[1]["model"], resumed["model"])


def test_pieces_are_in_the_network() -> None:
    def net(**fields: Any) -> nn.Module:
        return build_network(Components(blocks=2, **fields), 32)

    plain = net()
    assert (count(plain, nn.BatchNorm2d), count(plain, nn.GroupNorm)) == (1 + 2 * 6 + 2, 0)
    assert (count(net(norm="group"), nn.GroupNorm), count(net(norm="none"), nn.BatchNorm2d)) == (15, 0)
    assert count(net(stem="three"), nn.Conv2d) == count(plain, nn.Conv2d) + 2
    assert count(net(shortcut="pooled"), nn.AvgPool2d) == 2
    assert count(net(squeeze=True), SqueezeExcitation) == 6
    rates = [module.p for module in net(stochastic_depth=0.6).modules() if isinstance(module, StochasticDepth)]
    assert rates == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    before = net(pre_activation=True)
    assert isinstance(before[1].residual[0], nn.BatchNorm2d)  # type: ignore[index]
    assert count(before, nn.BatchNorm2d) == 2 * 6 + 2 + 1


def test_odd_images_and_three_stages_have_the_cost_of_a_count() -> None:
    assert build_network(Components(shortcut="pooled"), 9)(torch.zeros(2, 3, 9, 9)).shape == (2, 10)
    stages = [16 * 16 * 9 * 2, (16 * 32 + 32 * 32) * 9 + 16 * 32, (32 * 64 + 64 * 64) * 9 + 32 * 64]
    weights = 3 * 16 * 9 + sum(stages) + 64 * 10 + 10
    norms = 2 * (16 + 2 * 16 + 3 * 32 + 3 * 64)
    assert measure_cost(Components(), 32).parameters == weights + norms


@pytest.mark.slow
def test_it_learns_the_digits() -> None:
    spec = override(replace(preset("digits"), model=Components()), {"epochs": 3, "train_examples": 640})
    *_, last = fit(spec)
    assert last.metrics["test/error"] < 70


def test_impossible_values_are_refused_in_one_line() -> None:
    with pytest.raises(ConfigError, match=r"^blocks=1, width=12: accepted"):
        Components(width=12)
    with pytest.raises(ConfigError, match=r"^stochastic_depth=1.0: accepted: from 0 to below 1$"):
        override(replace(preset("smoke"), model=Components()), {"stochastic_depth": 1})
