"""The paper's choices where PyTorch makes others: warm-up by training error, BatchNorm's statistics, splits, tests and probes."""

from typing import Any

import pytest
import torch
from torch import nn

from resnet_core import ConfigError, fit, load_dataset, override, preset
from resnet_core.data.batches import Batches
from resnet_core.data.datasets import resolve
from tests.helpers.training_runs import learned, train, weights_differ

SMOKE = preset("smoke")  # 128 images, 4 steps an epoch, 2 epochs
CPU = torch.device("cpu")
CHOICES: dict[str, dict[str, Any]] = {
    "warm-up by error": {"warmup_error": 85.0, "epochs": 4, "pad": 0, "flip": False},
    "updates in the velocity": {"momentum_form": "caffe", "schedule": "cosine"},
    "averaged statistics": {"bn_recalibration": True},
    "per-pixel mean": {"normalize": "pixel"},
    "validation split": {"validation": 0.25},
    "ten crops": {"extra_tests": "ten_crop"},
    "checkpointed activations": {"checkpoint_activations": True},
    "probes": {"probes": "responses,gradients", "probe_epochs": "1,2"},
}


@pytest.mark.slow
@pytest.mark.parametrize("choice", CHOICES)
def test_a_resumed_run_ends_bit_equal_whatever_the_recipe(choice: str) -> None:
    spec = override(SMOKE, CHOICES[choice])
    results, checkpoints = train(spec)
    resumed, _ = train(spec, checkpoints[0])
    assert [result.epoch for result in resumed] == list(range(2, len(results) + 1))
    assert not weights_differ(resumed[-1].state.net.state_dict(), results[-1].state.net.state_dict())
    assert learned(resumed[-1].state.history) == learned(results[-1].state.history)
    assert resumed[-1].state.probes == results[-1].state.probes


def test_a_warm_up_lasts_until_the_training_error_is_low_enough() -> None:
    """An epoch has 4 steps here, so that the error is looked at once in each."""
    warm = override(SMOKE, {**CHOICES["warm-up by error"], "epochs": 6, "schedule": "constant", "lr": 0.05})
    metrics = [result.metrics for result in fit(warm)]
    errors, rates = ([epoch[name] for epoch in metrics] for name in ("train/error", "lr"))
    warmed = next(i for i, error in enumerate(errors) if error < 85)
    assert 0 < warmed < 5, "the case is worth looking at"
    assert rates == [0.01] * (warmed + 1) + [0.05] * (5 - warmed)
    assert metrics[-1]["warmup_steps"] == 4 * (warmed + 1)


def test_a_warm_up_that_never_ends_is_not_reported_as_one_that_did() -> None:
    *_, last = fit(override(SMOKE, {"warmup_error": 1.0, "warmup_lr": 1e-6}))
    assert last.metrics["lr"] == 1e-6
    assert "warmup_steps" not in last.metrics


def test_averaged_statistics_are_those_of_an_epoch_of_training_images() -> None:
    dataset = load_dataset(SMOKE.data)
    spec = resolve(override(SMOKE, {"bn_recalibration": True}), dataset)
    (*_, last), (*_, saved) = train(spec)
    outputs: list[torch.Tensor] = []
    net = last.state.net.train()
    assert isinstance(net.conv1, torch.nn.Conv2d)
    net.conv1.register_forward_hook(lambda _module, _inputs, output: outputs.append(output))
    with torch.no_grad():
        for images, _ in Batches(dataset, spec, device=CPU).train_epoch(last.epoch - 1):
            net(images)
    mean = torch.stack([output.mean((0, 2, 3)) for output in outputs]).mean(0)
    torch.testing.assert_close(saved["model"]["bn1.running_mean"], mean, rtol=1e-4, atol=1e-5)
    # The training itself is the same; only what BatchNorm remembers differs.
    running = train(SMOKE)[1][-1]["model"]
    assert {name.rpartition(".")[2] for name in weights_differ(saved["model"], running)} == {
        "running_mean",
        "running_var",
        "num_batches_tracked",
    }


def test_a_run_with_a_validation_split_reports_it_and_nothing_of_the_test_set() -> None:
    *_, last = fit(override(SMOKE, {"validation": 0.25, "extra_tests": "ten_crop"}))
    names = {name.partition("/")[0] for name in last.metrics if "/" in name}
    assert names == {"train", "validation"}
    assert "validation/ten_crop_error" in last.metrics


def test_extra_tests_are_made_of_the_final_network_only() -> None:
    results, _ = train(override(SMOKE, {"extra_tests": "ten_crop"}))
    assert ["test/ten_crop_error" in result.metrics for result in results] == [False, True]
    assert 0 <= results[-1].metrics["test/ten_crop_error"] <= 100


def test_looking_inside_changes_nothing() -> None:
    plain, probed = (train(override(SMOKE, changes))[0][-1] for changes in ({}, CHOICES["probes"]))
    assert not weights_differ(plain.state.net.state_dict(), probed.state.net.state_dict())
    assert learned(plain.state.history) == learned(probed.state.history)
    assert not plain.state.probes
    assert {(row["probe"], row["epoch"]) for row in probed.state.probes} == {
        (probe, epoch) for probe in ("responses", "gradients") for epoch in (1, 2)
    }


def test_probes_look_at_the_first_and_the_last_epoch_unless_told_otherwise() -> None:
    *_, last = fit(override(SMOKE, {"probes": "gradients", "epochs": 3}))
    assert {row["epoch"] for row in last.state.probes} == {1, 3}
    with pytest.raises(ConfigError, match="probe_epochs"):
        next(fit(override(SMOKE, {"probes": "gradients", "probe_epochs": "9"})))


def test_batchnorm_takes_the_momentum_of_its_field() -> None:
    *_, last = fit(override(SMOKE, {"bn_momentum": 0.3}))
    assert {module.momentum for module in last.state.net.modules() if isinstance(module, nn.BatchNorm2d)} == {0.3}


def test_asking_for_epochs_ends_a_recipe_that_counts_iterations() -> None:
    paper = preset("cifar10")
    assert override(paper, {"epochs": 8}).optim.total_steps(50_000) == 8 * 390
    assert override(paper, {"lr": 0.2}).optim.total_steps(50_000) == 64_000
    assert override(paper, {"epochs": 8, "iterations": 100}).optim.total_steps(50_000) == 100
