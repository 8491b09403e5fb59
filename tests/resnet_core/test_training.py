"""Training: right by a plain loop, repeatable to the bit, resumable to the bit, and honest in what it reports."""

import math
import sys
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from resnet_core import ConfigError, Diverged, fit, load_dataset, measure_cost, override, preset
from resnet_core.data.batches import Batches
from resnet_core.data.datasets import resolve
from resnet_core.training import loop as training
from resnet_core.training.arithmetic import arithmetic
from resnet_core.training.loop import init_state
from resnet_core.training.memory import PeakMemory
from tests.helpers.training_runs import CLOCKED, learned, through_a_file, train, weights_differ

SMOKE = preset("smoke")  # 128 images, 4 steps an epoch, 2 epochs
CPU = torch.device("cpu")
METRICS = {"train/loss", "train/error", "test/loss", "test/error", "lr", "images_per_second", "epoch_seconds", "peak_memory_mb"}
ONCE = {"parameters", "flops", "train_seconds"}


def test_epochs_are_what_a_plain_loop_does_and_report_its_loss_and_error() -> None:
    spec, dataset = override(SMOKE, {"lr": 0.05, "warmup_steps": 2}), load_dataset(SMOKE.data)
    spec = resolve(spec, dataset)
    results, _ = train(spec)

    net, batches = init_state(spec, CPU).net.train(), Batches(dataset, spec, device=CPU)
    sgd = torch.optim.SGD(net.parameters(), momentum=0.9, weight_decay=1e-4)
    for epoch, rates in enumerate([(0.01, 0.01, 0.05, 0.05), (0.005, 0.005, 0.0005, 0.0005)]):
        losses, wrong = [], 0
        for lr, (images, labels) in zip(rates, batches.train_epoch(epoch), strict=True):
            logits = net(images)
            loss = F.cross_entropy(logits, labels)
            losses.append(loss.item())
            wrong += int((logits.argmax(1) != labels).sum())
            sgd.param_groups[0]["lr"] = lr
            sgd.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            sgd.step()
        metrics = results[epoch].metrics
        assert metrics["train/loss"] == pytest.approx(np.mean(losses), rel=1e-4)
        assert metrics["train/error"] == 100 * wrong / 128
        assert metrics["lr"] == pytest.approx(rates[-1])
    torch.testing.assert_close(results[-1].state.net.state_dict(), net.state_dict(), rtol=1e-4, atol=1e-5)

    mean, std = (np.array(statistic).reshape(3, 1, 1) for statistic in (dataset.mean, dataset.std))
    with torch.no_grad():
        logits = net.eval()(torch.from_numpy(((dataset.examples(50) - mean) / std).astype(np.float32)))
    labels = torch.from_numpy(dataset.test.labels)
    assert metrics["test/loss"] == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-4)
    assert metrics["test/error"] == 100 * int((logits.argmax(1) != labels).sum()) / 50


def test_the_last_epoch_has_the_predicted_class_of_each_test_image_in_the_order_of_the_data_set() -> None:
    results, checkpoints = train(SMOKE)
    dataset, last = load_dataset(SMOKE.data), results[-1]
    batches = Batches(dataset, resolve(SMOKE, dataset), device=CPU)
    with torch.no_grad():
        expected = torch.cat([last.state.net.eval()(images).argmax(1) for images, _ in batches.test()])
    assert len(set(expected.tolist())) > 1, "a constant would be in any order"
    assert torch.equal(checkpoints[-1]["predictions"], expected.int())
    assert last.metrics["test/error"] == 100 * np.mean(checkpoints[-1]["predictions"].numpy() != dataset.test.labels)
    assert "predictions" not in checkpoints[0]

    _, (resumed,) = train(SMOKE, restore=checkpoints[0])
    assert torch.equal(resumed["predictions"], expected.int())
    (*_, validated), _ = train(override(SMOKE, {"data.validation": 0.2}))
    assert validated.state.predictions is None, "held-out images are a search's own"


def test_training_learns() -> None:
    results, _ = train(override(SMOKE, {"epochs": 6, "lr": 0.05, "global_batch_size": 16, "pad": 0, "flip": False}))
    errors = [result.metrics["test/error"] for result in results]
    assert errors[-1] < 20 < 50 < errors[0]


def test_each_epoch_reports_the_same_metrics_and_the_last_one_the_cost() -> None:
    results, checkpoints = train(SMOKE)
    assert [(result.epoch, result.last) for result in results] == [(1, False), (2, True)]
    assert [result.metrics.keys() for result in results] == [METRICS, METRICS | ONCE]
    assert all(math.isfinite(value) for result in results for value in result.metrics.values())
    assert all(result.metrics[name] > 0 for result in results for name in CLOCKED & result.metrics.keys())
    last, cost = results[-1].metrics, measure_cost(resolve(SMOKE, load_dataset(SMOKE.data)).model, 8)
    assert (last["parameters"], last["flops"]) == (cost.parameters, cost.flops)
    assert last["train_seconds"] == sum(result.metrics["epoch_seconds"] for result in results)
    assert checkpoints[-1]["history"] == [result.metrics for result in results]


def test_the_same_seed_gives_the_same_bits_and_another_seed_other_weights() -> None:
    torch.manual_seed(1)
    (_, first), (_, second) = train(SMOKE)[1], train(SMOKE)[1]
    assert not weights_differ(first["model"], second["model"])
    assert learned(first["history"]) == learned(second["history"])
    for seed in (1, 2**32):
        other = train(override(SMOKE, {"seed": seed}))[1][-1]["model"]
        assert {"conv1.weight", "fc.bias", "bn1.running_var"} <= set(weights_differ(first["model"], other))


@pytest.mark.parametrize("seed", [1, 2**32, 2**70])
def test_initial_weights_follow_from_the_seed_alone(seed: int) -> None:
    before = torch.get_rng_state()
    spec = resolve(SMOKE, load_dataset(SMOKE.data))
    zero, *others = (init_state(override(spec, {"seed": s}), CPU).net.state_dict() for s in (0, seed, seed))
    assert "conv1.weight" in weights_differ(zero, others[0])
    assert not weights_differ(*others)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, {"precision": "fp16"}, {"iterations": 14}, {"schedule": "cosine", "decay": "weights"}])
def test_a_run_restored_after_any_epoch_ends_with_the_bits_of_an_uninterrupted_one(changes: dict[str, Any]) -> None:
    spec = override(SMOKE, {"epochs": 4, **changes})
    results, checkpoints = train(spec)
    last = checkpoints[-1]
    assert len(checkpoints) == 4
    for epoch in (1, 2, 3):
        torch.manual_seed(1)
        continued, (*_, end) = train(spec, restore=checkpoints[epoch - 1])
        assert [(result.epoch, result.last) for result in continued] == [(later, later == 4) for later in range(epoch + 1, 5)]
        assert not weights_differ(end["model"], last["model"])
        momenta = ({str(k): v["momentum_buffer"] for k, v in state["optimizer"]["state"].items()} for state in (end, last))
        assert not weights_differ(*momenta)
        assert (end["step"], end["scaler"]) == (last["step"], last["scaler"])
        assert learned(end["history"]) == learned(last["history"])
        assert results[-1].metrics["test/loss"] == continued[-1].metrics["test/loss"]


def test_a_checkpoint_is_as_good_after_it_was_restored() -> None:
    _, (first, last) = train(SMOKE)
    for _ in range(2):
        _, (again,) = train(SMOKE, restore=first)
        assert not weights_differ(again["model"], last["model"])


def test_a_checkpoint_is_that_of_its_epoch_or_an_error() -> None:
    training = fit(SMOKE)
    first = next(training)
    held, kept = first.checkpoint(), through_a_file(first.checkpoint())
    last = next(training)
    with pytest.raises(RuntimeError, match=r"past epoch 1, .*: call checkpoint\(\) before"):
        first.checkpoint()
    assert weights_differ(held["model"], last.checkpoint()["model"])
    torch.testing.assert_close(held, kept, rtol=0, atol=0)
    assert list(training) == []
    assert last.checkpoint()["step"] == 8
    results = list(fit(SMOKE))
    with pytest.raises(RuntimeError, match="past epoch 1"):
        results[0].checkpoint()


BACKENDS: Any = torch.backends
SWITCHES = {
    "conv": (BACKENDS.cudnn.conv, "fp32_precision"),
    "rnn": (BACKENDS.cudnn.rnn, "fp32_precision"),
    "matmul": (BACKENDS.cuda.matmul, "fp32_precision"),
    "CPU conv": (BACKENDS.mkldnn.conv, "fp32_precision"),
    "CPU matmul": (BACKENDS.mkldnn.matmul, "fp32_precision"),
    "benchmark": (BACKENDS.cudnn, "benchmark"),
}


def switches() -> dict[str, Any]:
    values = {name: getattr(backend, switch) for name, (backend, switch) in SWITCHES.items()}
    return values | {"deterministic": torch.are_deterministic_algorithms_enabled()}


IEEE = {name: "ieee" for name in SWITCHES if name != "benchmark"} | {"benchmark": False, "deterministic": False}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, IEEE),
        ({"precision": "tf32"}, IEEE | {"conv": "tf32", "rnn": "tf32"}),
        ({"precision": "bf16"}, IEEE),
        ({"deterministic": True}, IEEE | {"deterministic": True}),
    ],
)
def test_every_part_of_a_training_uses_the_arithmetic_of_the_spec_and_restores_what_was_there(
    changes: dict[str, Any], expected: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    found: dict[str, dict[str, Any]] = {}

    def spy(name: str) -> None:
        real = getattr(training, name)
        monkeypatch.setattr(training, name, lambda *args, **how: (found.update({name: switches()}), real(*args, **how))[1])

    for name in ("train_epoch", "update_bn", "evaluate", "evaluate_views"):
        spy(name)
    # As another library may have left them.
    BACKENDS.cuda.matmul.fp32_precision = "tf32"
    BACKENDS.mkldnn.matmul.fp32_precision = "bf16"
    before = switches()
    try:
        for _ in fit(override(SMOKE, {"bn_recalibration": True, "extra_tests": "ten_crop", **changes})):
            assert switches() == before
        with pytest.raises(Diverged):
            list(fit(override(SMOKE, {"lr": 1e9, **changes})))
        assert switches() == before
    finally:
        BACKENDS.cuda.matmul.fp32_precision = BACKENDS.mkldnn.matmul.fp32_precision = "none"
    assert found == dict.fromkeys(("train_epoch", "update_bn", "evaluate", "evaluate_views"), expected)


def old_switches() -> tuple[bool, bool, str]:
    return torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32, torch.get_float32_matmul_precision()


@pytest.mark.parametrize("precision", ["fp32", "tf32"])
@pytest.mark.parametrize("products", ["highest", "high", "medium"])
@pytest.mark.parametrize("convolutions", [True, False])
def test_the_old_switches_can_be_read_in_a_training_and_are_restored(precision: str, products: str, convolutions: bool) -> None:
    """`torch.compile` reads them, and PyTorch refuses where they contradict the new ones."""
    spec = override(SMOKE, {"precision": precision})
    torch.set_float32_matmul_precision(products)
    torch.backends.cudnn.allow_tf32 = convolutions
    before = switches(), old_switches()
    try:
        for _ in range(2):
            with arithmetic(spec):
                assert old_switches() == (precision == "tf32", False, "highest")
            assert (switches(), old_switches()) == before
    finally:
        torch.backends.cudnn.allow_tf32 = True
        torch.set_float32_matmul_precision("highest")
        BACKENDS.cuda.matmul.fp32_precision = BACKENDS.mkldnn.matmul.fp32_precision = "none"


@pytest.mark.parametrize("convolutions", ["ieee", "tf32"])
def test_settings_that_contradict_each_other_are_restored_as_they_were(convolutions: str) -> None:
    """By the new switches only, as recent code sets them."""
    torch.set_float32_matmul_precision("high")
    BACKENDS.cuda.matmul.fp32_precision = BACKENDS.mkldnn.matmul.fp32_precision = "ieee"
    BACKENDS.cudnn.conv.fp32_precision = convolutions
    before = switches()
    try:
        with arithmetic(SMOKE):
            assert old_switches() == (False, False, "highest")
        assert switches() == before
        with pytest.raises(RuntimeError, match="mix of the legacy and new"):
            torch.backends.cuda.matmul.allow_tf32  # noqa: B018
        BACKENDS.cudnn.conv.fp32_precision = "tf32"
        BACKENDS.cuda.matmul.fp32_precision = "tf32"
        assert old_switches() == (True, True, "high")
    finally:
        torch.backends.cudnn.allow_tf32 = True
        torch.set_float32_matmul_precision("highest")
        BACKENDS.cuda.matmul.fp32_precision = BACKENDS.mkldnn.matmul.fp32_precision = "none"


def test_float32_trains_with_the_same_bits_whatever_other_code_allowed_and_so_does_deterministic() -> None:
    _, (*_, plain) = train(SMOKE)
    BACKENDS.mkldnn.matmul.fp32_precision = "bf16"
    try:
        _, (*_, allowed) = train(SMOKE)
    finally:
        BACKENDS.mkldnn.matmul.fp32_precision = "none"
    _, (*_, deterministic) = train(override(SMOKE, {"deterministic": True}))
    assert not weights_differ(allowed["model"], plain["model"])
    assert not weights_differ(deterministic["model"], plain["model"])


def test_a_finished_run_has_nothing_left_to_do_when_restored() -> None:
    _, checkpoints = train(SMOKE)
    assert list(fit(SMOKE, restore=checkpoints[-1])) == []
    before_there_were_predictions = {name: value for name, value in checkpoints[-1].items() if name != "predictions"}
    assert list(fit(SMOKE, restore=before_there_were_predictions)) == []


@pytest.mark.parametrize(("iterations", "steps"), [(3, [3]), (4, [4]), (9, [4, 8, 9])])
def test_iterations_count_steps_and_the_last_epoch_may_be_partial(iterations: int, steps: list[int]) -> None:
    _, checkpoints = train(override(SMOKE, {"iterations": iterations, "epochs": 1}))
    assert [checkpoint["step"] for checkpoint in checkpoints] == steps


def test_a_loss_that_is_not_finite_ends_the_run() -> None:
    with pytest.raises(Diverged, match=r"^the loss is not finite in epoch 1 \(learning rate 1e\+09\)$"):
        train(override(SMOKE, {"lr": 1e9, "schedule": "constant"}))


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_lower_precision_trains_close_to_fp32_and_keeps_weights_in_float32(precision: str) -> None:
    (exact,), _ = train(override(SMOKE, {"iterations": 1}))
    (rough,), (checkpoint,) = train(override(SMOKE, {"iterations": 1, "precision": precision}))
    assert rough.metrics["train/loss"] == pytest.approx(exact.metrics["train/loss"], rel=0.02)
    assert rough.metrics["train/loss"] != exact.metrics["train/loss"]
    assert {tensor.dtype for tensor in checkpoint["model"].values()} == {torch.float32, torch.int64}
    # fp16's first steps may be skipped until the scale of the loss fits.
    (_, later), _ = train(override(SMOKE, {"precision": precision}))
    assert later.metrics["train/loss"] < rough.metrics["train/loss"]


def test_label_smoothing_changes_training_but_not_the_reported_test_loss() -> None:
    smoothed = override(SMOKE, {"iterations": 1, "label_smoothing": 0.2, "lr": 0.0})
    (plain,), (smooth,) = train(override(smoothed, {"label_smoothing": 0.0}))[0], train(smoothed)[0]
    assert smooth.metrics["train/loss"] != plain.metrics["train/loss"]
    assert smooth.metrics["test/loss"] == plain.metrics["test/loss"]


def test_the_memory_layout_does_not_change_the_result() -> None:
    last, first = (train(override(SMOKE, {"iterations": 2, "channels_last": flag}))[0][-1].metrics for flag in (True, False))
    assert last["test/loss"] == pytest.approx(first["test/loss"], rel=1e-4)


@pytest.mark.slow
@pytest.mark.nightly
def test_a_compiled_network_trains_as_the_eager_one_and_saves_the_same_names() -> None:
    (eager, (*_, expected)), (compiled, (*_, saved)) = train(SMOKE), train(override(SMOKE, {"compile": True}))
    assert compiled[-1].metrics["test/loss"] == pytest.approx(eager[-1].metrics["test/loss"], rel=1e-3)
    assert saved["model"].keys() == expected["model"].keys()


def test_a_spec_for_more_workers_than_there_are_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^world_size=2: the process group has 1 workers$"):
        next(fit(override(SMOKE, {"world_size": 2})))


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the peak is that of the whole process")
def test_peak_memory_counts_what_was_held_since_its_creation() -> None:
    before = PeakMemory(CPU).read_mb()
    memory = PeakMemory(CPU)
    held = torch.ones(64 * 2**20, dtype=torch.uint8)
    assert held.sum() > 0
    del held
    assert memory.read_mb() > before + 60 > 60
    assert PeakMemory(CPU).read_mb() < before + 40
