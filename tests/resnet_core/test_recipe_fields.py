"""Mixup, CutMix, random erasing, moving averages and AdamW compute what they say, resume exactly and refuse contradictions."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed
from torch.multiprocessing.spawn import spawn

from resnet_core import ConfigError, RunSpec, fit, override, preset
from resnet_core.training.mixing import augmented, erased
from resnet_core.training.state import evaluated_weights
from tests.helpers.training_runs import learned, train, weights_differ

SMOKE = preset("smoke")
RECIPES: dict[str, dict[str, Any]] = {
    "mixup": {"mixup": 0.4},
    "cutmix": {"cutmix": 1.0},
    "erasing": {"erasing": 0.5},
    "ema": {"ema": 0.9, "bn_recalibration": True, "probes": ("responses",)},
    "adamw": {"algorithm": "adamw", "lr": 0.002, "betas": (0.9, 0.99), "decay": "weights"},
    "all": {"mixup": 0.2, "cutmix": 1.0, "erasing": 0.3, "ema": 0.95, "algorithm": "adamw", "lr": 0.002, "label_smoothing": 0.1},
}


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", *(pytest.param(each, marks=pytest.mark.nightly) for each in ("bf16", "fp16"))])
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_resumed_training_ends_as_an_uninterrupted_one(recipe: str, precision: str) -> None:
    spec = override(SMOKE, RECIPES[recipe] | {"precision": precision})
    _, checkpoints = train(spec)
    _, (resumed,) = train(spec, restore=checkpoints[0])
    for part in ("model", "average") if "ema" in RECIPES[recipe] else ("model",):
        assert not weights_differ(checkpoints[1][part], resumed[part])
    assert learned(checkpoints[1]["history"]) == learned(resumed["history"])
    plain = train(override(SMOKE, {"precision": precision}))[1][-1]
    assert weights_differ(plain["model"], resumed["model"]) or recipe == "ema"


def work(rank: int, spec: RunSpec, folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    states = [result.checkpoint() for result in fit(spec)]
    *_, resumed = fit(spec, restore=states[0])
    torch.save([states[-1], resumed.checkpoint()], f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


@pytest.mark.nightly
@pytest.mark.slow
def test_two_workers_stay_equal_and_resume(tmp_path: Path) -> None:
    spec = override(SMOKE, RECIPES["all"] | {"world_size": 2})
    spawn(work, args=(spec, str(tmp_path)), nprocs=2)  # type: ignore[no-untyped-call]
    (whole, resumed), (other, _) = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    for part in ("model", "average"):
        assert not weights_differ(whole[part], resumed[part])
        assert not weights_differ(whole[part], other[part])
    assert learned(whole["history"]) == learned(other["history"])


def batches(count: int = 3, size: int = 8) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [(torch.rand(size, 3, 8, 8, generator=generator), torch.arange(size) % 4) for _ in range(count)]


def mixed(changes: dict[str, Any], rank: int = 0) -> list[tuple[Tensor, Tensor]]:
    return list(augmented(batches(), override(SMOKE, changes), 0, rank=rank, num_classes=4))


def test_mixup_blends_images_and_labels_by_the_same_share() -> None:
    for (images, labels), (blended, shares) in zip(batches(), mixed({"mixup": 0.8}), strict=True):
        neighbors, others = images.roll(1, 0), labels.roll(1, 0)
        own = shares[0, labels[0]]
        assert torch.allclose(blended, own * images + (1 - own) * neighbors, atol=1e-6)
        expected = own * torch.eye(4)[labels] + (1 - own) * torch.eye(4)[others]
        assert torch.allclose(shares, expected, atol=1e-6)


def test_cutmix_takes_a_rectangle_of_the_neighbor() -> None:
    for (images, labels), (blended, shares) in zip(batches(), mixed({"cutmix": 1.0}), strict=True):
        foreign = (blended != images).any(1)
        assert torch.equal(blended, torch.where(foreign[:, None], images.roll(1, 0), images))
        assert shares[0, labels[0]] == pytest.approx(1 - foreign[0].float().mean().item(), abs=1e-6)


def test_steps_epochs_and_workers_draw_their_own_shares() -> None:
    shares = [labels.max(1).values[0].item() for rank in (0, 1) for _, labels in mixed({"mixup": 0.8}, rank)]
    assert len({*shares}) == 6


def test_rectangles_are_erased_in_each_image_on_its_own() -> None:
    images = torch.ones(2000, 3, 32, 32)
    found = erased(images, 0.25, torch.Generator().manual_seed(0)) == 0
    assert torch.equal(found.any(1), found.all(1))
    area = found[:, 0].sum((1, 2)).float()
    assert 0.21 < (area > 0).float().mean() < 0.29
    assert 0.015 < area[area > 0].min() / 1024 < area.max() / 1024 < 0.36
    for one in found[area > 0][:50, 0]:
        rows, columns = one.any(1).nonzero(), one.any(0).nonzero()
        height, width = int(rows[-1] - rows[0]) + 1, int(columns[-1] - columns[0]) + 1
        assert one.sum() == height * width  # a rectangle
        assert 0.2 < height / width < 5
    assert torch.equal(images, torch.ones_like(images))  # the caller's images are as they were


def test_workers_erase_what_one_process_would() -> None:
    images = torch.ones(8, 1, 16, 16)
    whole = erased(images, 0.9, torch.Generator().manual_seed(3))
    parts = [erased(images[:4], 0.9, torch.Generator().manual_seed(3), rank=rank, workers=2) for rank in (0, 1)]
    assert torch.equal(whole, torch.cat(parts))


def test_evaluation_uses_the_average_of_the_weights_of_all_steps() -> None:
    spec = override(SMOKE, {"ema": 0.5, "iterations": 3, "epochs": 1})
    steps = [train(override(spec, {"iterations": n, "schedule": "constant", "ema": None}))[1][-1]["model"] for n in (1, 2, 3)]
    (result,), (checkpoint,) = train(override(spec, {"schedule": "constant"}))
    name = "layer1.0.conv1.weight"
    expected = 0.25 * steps[0][name] + 0.25 * steps[1][name] + 0.5 * steps[2][name]
    assert torch.allclose(evaluated_weights(checkpoint)[name], expected, atol=1e-6)
    assert torch.equal(checkpoint["model"][name], steps[2][name])
    plain, *_ = fit(override(spec, {"schedule": "constant", "ema": None}))
    assert result.metrics["train/loss"] == plain.metrics["train/loss"]
    assert result.metrics["test/loss"] != plain.metrics["test/loss"]
    assert evaluated_weights(plain.checkpoint()).keys() == evaluated_weights(checkpoint).keys()


def test_adamw_is_pytorch_s() -> None:
    spec = override(SMOKE, {"algorithm": "adamw", "lr": 0.01, "betas": "0.8,0.9", "weight_decay": 0.1, "iterations": 1})
    ((result,), _) = train(spec)
    optimizer = result.state.optimizer
    assert isinstance(optimizer, torch.optim.AdamW)
    assert [group["betas"] for group in optimizer.param_groups] == [(0.8, 0.9)]
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1]


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "adamw and momentum": ({"algorithm": "adamw", "momentum": 0.5}, r"^optim.momentum=0.5: is no setting of optim.algorithm=adamw"),
    "adamw and caffe": ({"algorithm": "adamw", "momentum_form": "caffe"}, r"^optim.momentum_form=caffe: is no setting of .*adamw"),
    "adamw and nesterov": (
        {"algorithm": "adamw", "nesterov": True},
        r"^optim.nesterov=true: is no setting of optim.algorithm=adamw",
    ),
    "sgd and betas": ({"betas": (0.8, 0.9)}, r"^optim.betas=\[0.8, 0.9\]: is no setting of optim.algorithm=sgd"),
    "one beta": ({"algorithm": "adamw", "betas": (0.8,)}, r"^optim.betas=\[0.8\]: accepted: two numbers from 0 to below 1"),
    "changing momentum": (
        {"algorithm": "adamw", "changes": ("1:momentum=0.5",)},
        r"^optim.changes=.*: momentum is no setting of optim.algorithm=adamw$",
    ),
    "average of nothing": ({"ema": 1}, r"^optim.ema=1.0: accepted: above 0 and below 1"),
    "negative": ({"mixup": -1}, r"^data.mixup=-1.0: accepted: finite and at least 0$"),
    "no probability": ({"erasing": 1.5}, r"^data.erasing=1.5: accepted: a probability from 0 to 1$"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_contradictions_are_refused_in_one_line(kind: str) -> None:
    changes, message = REFUSED[kind]
    with pytest.raises(ConfigError, match=message):
        override(RunSpec(), changes)
