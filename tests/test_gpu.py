"""On a real GPU: a replayed step is the step as written, deterministic runs repeat to the bit, and fp32 is float32."""

import gc
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from ablations.engine.trial.checkpoints import CheckpointFolder
from resnet_core import load_dataset, override, preset
from resnet_core.data.batches import Batches
from resnet_core.data.datasets import resolve
from resnet_core.training.loop import init_state
from resnet_core.training.steps import ReplayedStep, make_step
from tests.helpers.training_runs import learned, train, weights_differ

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.alone,
    pytest.mark.slow,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU"),
]

# 5 steps an epoch; of a network with every kind of kernel.
SPEC = override(
    preset("smoke"),
    {"depth": 20, "shortcut": "B", "width": 16, "image_size": 32, "train_examples": 320, "test_examples": 200, "pad": 4}
    | {"global_batch_size": 64, "epochs": 4, "lr": 0.05, "schedule": "cosine", "deterministic": True},
)
CHANGES: dict[str, dict[str, Any]] = {
    "fp32": {},
    "tf32": {"precision": "tf32"},
    "bf16": {"precision": "bf16"},
    "max pooling": {"family": "imagenet", "depth": 18, "block": "basic"},
    "changes": {"changes": ("2:momentum=0.5", "3:label_smoothing=0.1")},
    "probes": {"precision": "bf16", "probes": ("gradients", "responses"), "probe_epochs": (2,)},
    "bottleneck": {"block": "bottleneck", "shortcut": "A", "stages": (2, 2, 2), "precision": "bf16"},
    "memory": {"checkpoint_activations": True},
    "NCHW": {"channels_last": False},
    "updates": {"momentum_form": "caffe", "schedule": "step"},
}


@pytest.mark.parametrize("changes", CHANGES.values(), ids=CHANGES)
def test_a_replayed_training_is_the_one_that_is_written(changes: dict[str, Any]) -> None:
    spec = override(SPEC, changes)
    (_, (*_, end)), (_, (*_, last)) = (train(spec, device="cuda", replay=replay) for replay in (True, False))
    assert not weights_differ(end["model"], last["model"])
    assert learned(end["history"]) == learned(last["history"])


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16", "fp16"])
def test_a_continued_run_ends_with_the_bits_of_an_undisturbed_one(precision: str) -> None:
    spec = override(SPEC, {"precision": precision})
    _, checkpoints = train(spec, device="cuda")
    for epoch in (1, 3):
        _, (*_, end) = train(spec, device="cuda", restore=checkpoints[epoch - 1])
        assert not weights_differ(end["model"], checkpoints[-1]["model"])
        assert learned(end["history"]) == learned(checkpoints[-1]["history"])


def test_a_checkpoint_opens_on_a_machine_without_a_gpu(tmp_path: Path) -> None:
    state = init_state(SPEC, torch.device("cuda"))
    CheckpointFolder(str(tmp_path), "run").save(state.save(), 1)
    (file,) = tmp_path.glob("run/*.pt")
    model = torch.load(file, weights_only=True)["model"]
    assert {tensor.device.type for tensor in model.values()} == {"cpu"}
    assert all(torch.equal(model[name], tensor.cpu()) for name, tensor in state.net.state_dict().items())


def test_a_deterministic_run_repeats_to_the_bit_also_after_one_that_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """cuDNN may choose other algorithms in between, and cuBLAS has read its settings."""
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    for changes in CHANGES["bottleneck"], CHANGES["max pooling"]:
        spec = override(SPEC, changes)
        train(override(spec, {"deterministic": False}), device="cuda")
        (_, (*_, first)), (_, (*_, second)) = (train(spec, device="cuda") for _ in range(2))
        assert not weights_differ(first["model"], second["model"])


@pytest.mark.skipif(torch.cuda.is_available() and torch.cuda.get_device_capability() < (8, 0), reason="no TF32 before Ampere")
def test_fp32_is_float32_and_tf32_is_not() -> None:
    """By one step, against the CPU in float32: TF32 rounds factors to 10 bits."""
    ((cpu,), _) = train(override(SPEC, {"iterations": 1}))
    errors = {}
    for precision in ("fp32", "tf32"):
        ((gpu,), _) = train(override(SPEC, {"iterations": 1, "precision": precision}), device="cuda")
        errors[precision] = abs(gpu.metrics["train/loss"] / cpu.metrics["train/loss"] - 1)
    assert errors["fp32"] < 1e-5
    assert 10 * errors["fp32"] < errors["tf32"] < 1e-2


def test_one_step_is_that_of_the_cpu() -> None:
    spec = override(SPEC, {"iterations": 1})
    ((gpu,), (on_gpu,)), ((cpu,), (on_cpu,)) = (train(spec, device=device) for device in ("cuda", "cpu"))
    assert gpu.metrics["train/loss"] == pytest.approx(cpu.metrics["train/loss"], rel=1e-5)
    assert gpu.metrics["test/error"] == pytest.approx(cpu.metrics["test/error"], abs=1)
    moved = {name: tensor.cpu() for name, tensor in on_gpu["model"].items()}
    torch.testing.assert_close(moved, on_cpu["model"], rtol=1e-3, atol=1e-4)


def test_images_are_those_of_the_cpu_however_many_are_made_at_once() -> None:
    dataset = load_dataset(SPEC.data)
    spec = resolve(SPEC, dataset)
    gpu, cpu = (Batches(dataset, spec, device=torch.device(device)) for device in ("cuda", "cpu"))
    pairs = [*zip(gpu.train_epoch(3), cpu.train_epoch(3), strict=True)]
    assert len(pairs) == 5
    for (images, labels), (wanted, wanted_labels) in pairs:
        assert images.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(images.cpu(), wanted)
        assert torch.equal(labels.cpu(), wanted_labels)


def held() -> int:
    gc.collect()
    torch.cuda.empty_cache()
    return torch.cuda.memory_reserved()


def test_a_graph_is_captured_and_its_memory_is_given_back() -> None:
    spec = resolve(SPEC, load_dataset(SPEC.data))
    state = init_state(spec, torch.device("cuda"))
    step = make_step(state.net, state.optimizer, state.scaler, spec)
    assert isinstance(step, ReplayedStep)
    del state, step

    train(SPEC, device="cuda")
    before = held()
    for _ in range(3):
        train(SPEC, device="cuda")
    assert held() == before


def test_too_little_memory_is_told_as_such_and_the_next_run_has_it_all(tmp_path: Path) -> None:
    from ablations.engine.trial import outcomes, worker
    from tests.helpers.ray_jobs import make_job  # needs Ray

    size = {"optim__global_batch_size": 64, "data__image_size": 32, "model__depth": 20, "model__width": 16}
    reports: list[dict[str, Any]] = []

    def run(name: str, **settings: Any) -> None:
        job = make_job(tmp_path, name, **size | settings)
        reports.extend(outcomes.with_outcome(worker.train_epochs(job, "cuda")))

    run("small")
    before = held()
    torch.cuda.set_per_process_memory_fraction((before + 1e9) / torch.cuda.get_device_properties(0).total_memory)
    try:
        run("large", model__width=1024)
        assert torch.cuda.memory_reserved() == before  # its neighbours can have it
        run("next")
        assert [report.get("epoch", report.get("outcome")) for report in reports] == [1, 2, "completed", "oom", 1, 2, "completed"]
        assert re.match(r"OutOfMemory: a batch of 64 images on NVIDIA .+: CUDA out of memory", reports[3]["message"])
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
