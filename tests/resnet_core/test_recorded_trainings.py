"""Training computes what it computed when `TRAINING_VERSION` was set: else runs that are done would stand for something else."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from resnet_core import RunSpec
from resnet_core.data import datasets, decoding
from resnet_core.data.batches import Batches
from resnet_core.identity import NOT_IDENTITY, TRAINING_VERSION
from tests.resnet_core import trainings
from tests.resnet_core.trainings import TRAININGS, moved, numbers_of, plain, spec_of

RECORDED: dict[str, Any] = json.loads(trainings.FILE.read_text())
RENEW = "numbers move with a new TRAINING_VERSION and a line in its log only; then: python -m tests.resnet_core.trainings"


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trainings.make_images(tmp_path_factory.mktemp("images"))


def differences(name: str, images: Path) -> list[str]:
    spec = spec_of(TRAININGS[name], images)
    return list(moved(spec, RECORDED["trainings"][name]["numbers"], numbers_of(spec)))


def test_what_is_recorded_belongs_to_this_version_and_covers_every_field() -> None:
    assert RECORDED["training_version"] == TRAINING_VERSION, RENEW
    assert {name: each["changes"] for name, each in RECORDED["trainings"].items()} == plain(TRAININGS), (
        "python -m tests.resnet_core.trainings"
    )
    fields = {name.partition("=")[0].partition(" ")[0] for name in TRAININGS}
    missing = RunSpec().flat().keys() - fields - trainings.ELSEWHERE - {*NOT_IDENTITY}
    assert not missing, "a training for each field, in tests/resnet_core/trainings.py"


def test_defaults_are_the_recorded_ones() -> None:
    """Fingerprints leave out what a run has by default."""
    defaults = plain(RunSpec().flat())
    assert {name: defaults.get(name, "no such field") for name in RECORDED["defaults"]} == RECORDED["defaults"], RENEW


@pytest.mark.slow
@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name == "world_size")) for name in TRAININGS])
def test_a_short_training_gives_the_recorded_numbers(name: str, images: Path) -> None:
    assert not differences(name, images), RENEW


def other_momentum(monkeypatch: pytest.MonkeyPatch) -> None:
    class Dampened(torch.optim.SGD):
        def __init__(self, parameters: Any, **how: Any) -> None:
            super().__init__(parameters, **how, dampening=0.01)

    monkeypatch.setattr(torch.optim, "SGD", Dampened)


def other_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    kaiming = torch.nn.init.kaiming_normal_
    monkeypatch.setattr(torch.nn.init, "kaiming_normal_", lambda weight, **how: kaiming(weight, **how | {"mode": "fan_in"}))


def other_augmentation(monkeypatch: pytest.MonkeyPatch) -> None:
    share = Batches._share
    monkeypatch.setattr(
        Batches, "_share", lambda self, drawn: ~share(self, drawn) if drawn.dtype == torch.bool else share(self, drawn)
    )


def other_order(monkeypatch: pytest.MonkeyPatch) -> None:
    randperm = torch.randperm
    monkeypatch.setattr(torch, "randperm", lambda n, **how: randperm(n, **how).flip(0))


def reordered_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """A refactoring: the same sum in another order of operations."""

    def normalized(self: Batches, images: torch.Tensor) -> torch.Tensor:
        return images / self.std - self.mean / self.std

    monkeypatch.setattr(Batches, "_normalized", normalized)


@pytest.mark.parametrize(
    ("change", "moves"),
    [
        (other_momentum, True),
        (other_weights, True),
        (other_augmentation, True),
        (other_order, True),
        (reordered_code, False),
    ],
)
def test_a_change_of_the_training_moves_the_numbers_and_a_refactoring_does_not(
    change: Callable[[pytest.MonkeyPatch], None], moves: bool, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change(monkeypatch)
    assert bool(differences("optim.momentum", images)) is moves


@pytest.mark.slow
@pytest.mark.parametrize("name", ["data.name=imagefolder", "data.stream"])
@pytest.mark.parametrize("rule", ["orientation", "transparency", "depth"])
def test_what_is_done_to_image_files_moves_the_numbers(name: str, rule: str, images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "_kept", {})  # the images as other tests have read them
    if rule == "orientation":
        monkeypatch.setattr(decoding, "_orientation", lambda _: None)
    elif rule == "transparency":
        monkeypatch.setattr(decoding, "BACKGROUND", "black")
    else:
        monkeypatch.setattr(decoding, "_upper_8_bits", lambda image, _: Image.fromarray(np.asarray(image).astype(np.uint8)))
    assert differences(name, images)


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the recorded table with one training."""
    name = "optim.momentum"
    few = {**RECORDED, "trainings": {name: RECORDED["trainings"][name]}}
    path = tmp_path / "trainings.json"
    path.write_text(json.dumps(few))
    monkeypatch.setattr(trainings, "FILE", path)
    monkeypatch.setattr(trainings, "TRAININGS", {name: TRAININGS[name]})
    return path


def test_moved_numbers_are_recorded_with_a_new_version_only(
    table: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = table.read_text()
    assert trainings.main() == 0
    assert json.loads(table.read_text())["trainings"] == json.loads(before)["trainings"]
    other_weights(monkeypatch)
    assert trainings.main() == 1
    assert "optim.momentum: epoch 1 test/" in capsys.readouterr().out
    monkeypatch.setattr(trainings, "TRAINING_VERSION", TRAINING_VERSION + 1)
    assert trainings.main() == 0
    now = json.loads(table.read_text())
    assert now["training_version"] == TRAINING_VERSION + 1
    assert now["trainings"] != json.loads(before)["trainings"]
