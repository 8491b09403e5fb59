"""Training under a policy: fields that change on the way, and runs that start from another one's checkpoint, to the bit."""

import dataclasses
import hashlib
import pickle
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed
from torch.multiprocessing.spawn import spawn
from torch.nn import functional as F

from ablations.engine.trial.checkpoints import CheckpointFolder
from ablations.engine.trial.job import Job
from ablations.engine.trial.worker import train_epochs
from resnet_core import ConfigError, OptimConfig, RunSpec, fit, load_dataset, override, preset
from resnet_core.config import change
from resnet_core.data.batches import Batches
from resnet_core.data.datasets import resolve
from resnet_core.training.loop import init_state
from resnet_core.training.optim import learning_rate
from tests.helpers.training_runs import learned, train, weights_differ

SMOKE = override(preset("smoke"), {"epochs": 5, "lr": 0.05})  # 4 steps an epoch
CPU = torch.device("cpu")


# --- what a policy is ---


def test_after_each_epoch_the_latest_change_of_each_field_is_in_force() -> None:
    optim = OptimConfig(lr=0.1, changes=("2:lr=0.05", "4:lr=0.2", "4:momentum=0.8", "6:lr=0.1"))
    held = [optim.at_epoch(epoch) for epoch in range(7)]
    assert [now.lr for now in held] == [0.1, 0.1, 0.05, 0.05, 0.2, 0.2, 0.1]
    assert [now.momentum for now in held] == [0.9] * 4 + [0.8] * 3
    assert held[0] == dataclasses.replace(optim, changes=())
    assert all(now.changes == () for now in held)


@pytest.mark.parametrize("text", ["4:lr=0.04,4:momentum=0.5,6:lr=0", "4:momentum=.5 4:lr=4e-2 6:lr=-0.0"])
def test_equal_policies_are_equal_specs_however_written(text: str) -> None:
    policy = (change(4, "lr", 0.04), change(4, "momentum", 0.5), change(6, "lr", 0))
    assert override(SMOKE, {"changes": text}) == override(SMOKE, {"changes": policy})
    assert override(SMOKE, {"changes": text}).optim.changes == policy == ("4:lr=0.04", "4:momentum=0.5", "6:lr=0.0")


def test_a_change_keeps_every_digit() -> None:
    value = 0.1 + 0.2
    assert OptimConfig(changes=(change(1, "weight_decay", value),)).at_epoch(1).weight_decay == value


@pytest.mark.parametrize("length", [{"epochs": 5}, {"iterations": 17}])
def test_a_change_at_the_end_of_the_training_or_beyond_is_refused(length: dict[str, int]) -> None:
    dataset = load_dataset(SMOKE.data)
    resolve(override(SMOKE, {**length, "changes": "4:lr=0.1"}), dataset)
    with pytest.raises(ConfigError, match=r"^optim\.changes=5:lr=0\.1: accepted: epochs below 5, those of this training$"):
        resolve(override(SMOKE, {**length, "changes": "1:lr=0.2,5:lr=0.1"}), dataset)


# --- training under it ---


def test_a_policy_trains_as_a_plain_loop_that_changes_its_numbers() -> None:
    changes = "1:weight_decay=0.5,1:label_smoothing=0.3,2:lr=0.2,2:momentum=0.5"
    recipe = {"epochs": 3, "schedule": "cosine", "decay": "weights", "weight_decay": 0.0, "changes": changes}
    dataset = load_dataset(SMOKE.data)
    spec = resolve(override(SMOKE, recipe), dataset)
    *_, last = fit(spec)

    net, batches, step = init_state(spec, CPU).net.train(), Batches(dataset, spec, device=CPU), 0
    velocity = {name: torch.zeros_like(weight) for name, weight in net.named_parameters()}
    numbers = [(0.05, 0.9, 0.0, 0.0), (0.05, 0.9, 0.5, 0.3), (0.2, 0.5, 0.5, 0.3)]
    for epoch, (lr, momentum, weight_decay, label_smoothing) in enumerate(numbers):
        for images, labels in batches.train_epoch(epoch):
            net.zero_grad()
            F.cross_entropy(net(images), labels, label_smoothing=label_smoothing).backward()  # type: ignore[no-untyped-call]
            rate, step = learning_rate(OptimConfig(lr=lr, schedule="cosine"), step, 12), step + 1
            with torch.no_grad():
                for name, weight in net.named_parameters():
                    assert weight.grad is not None
                    decayed = weight.grad + weight_decay * weight * (weight.ndim > 1)
                    velocity[name] = momentum * velocity[name] + decayed
                    weight.sub_(rate * velocity[name])
    torch.testing.assert_close(dict(last.state.net.named_parameters()), dict(net.named_parameters()), rtol=1e-3, atol=1e-5)


def test_a_warm_up_keeps_its_rate_whatever_changes() -> None:
    results, _ = train(override(SMOKE, {"epochs": 3, "schedule": "constant", "warmup_steps": 8, "changes": "1:lr=0.3"}))
    assert [result.metrics["lr"] for result in results] == [0.01, 0.01, 0.3]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "changes"),
    [
        ({}, "3:lr=0.02"),
        pytest.param({"momentum_form": "caffe", "schedule": "constant"}, "3:lr=0.02,3:momentum=0.5", marks=pytest.mark.nightly),
        pytest.param({"decay": "weights", "weight_decay": 0}, "3:weight_decay=0.1", marks=pytest.mark.nightly),
        pytest.param({"schedule": "cosine", "nesterov": True}, "3:momentum=0.5", marks=pytest.mark.nightly),
        ({"precision": "fp16"}, "3:label_smoothing=0.3"),
        ({"changes": "1:lr=0.2,1:weight_decay=0.1"}, "1:lr=0.2,1:weight_decay=0.1,3:lr=0.1,4:lr=0.02"),
    ],
)
def test_going_on_from_the_checkpoint_of_another_policy_gives_the_bits_of_a_training_from_scratch(
    recipe: dict[str, Any], changes: str
) -> None:
    spec = override(SMOKE, recipe)
    (*_, end), changed = train(spec)[1], override(spec, {"changes": changes})
    _, (_, _, third, fourth, whole) = train(changed)
    _, (_, _, parent, *_) = train(spec)
    assert weights_differ(whole["model"], end["model"])
    for start in (third, parent, fourth):  # its own, another's, and its own after the change
        _, (*_, continued) = train(changed, restore=start)
        assert not weights_differ(continued["model"], whole["model"])
        assert not weights_differ(*(velocities(checkpoint) for checkpoint in (continued, whole)))
        assert continued["optimizer"]["param_groups"] == whole["optimizer"]["param_groups"]
        assert (continued["step"], continued["scaler"]) == (whole["step"], whole["scaler"])
        assert learned(continued["history"]) == learned(whole["history"])


def velocities(checkpoint: dict[str, Any]) -> dict[str, torch.Tensor]:
    return {str(key): state["momentum_buffer"] for key, state in checkpoint["optimizer"]["state"].items()}


# --- starting from another run's checkpoint ---


def job_of(folder: Path, name: str, spec: RunSpec, *, branch: str = "", branch_epoch: int = 0) -> Job:
    dataset = load_dataset(spec.data)
    (folder / "checkpoints").mkdir(exist_ok=True)
    return Job(
        fingerprint=name,
        spec=resolve(spec, dataset).flat(),
        data_version=dataset.version,
        folder=name,
        storage=str(folder / "checkpoints"),
        cache=str(folder / "data"),
        cpus_per_worker=torch.get_num_threads(),
        gpus_per_worker=0,
        branch=branch,
        branch_epoch=branch_epoch,
    )


def ended(job: Job) -> tuple[dict[str, Any], list[float]]:
    """A run's last checkpoint after it has been trained, and how long each of its epochs took by its reports."""
    reports = list(train_epochs(job, "cpu"))
    assert [report["epoch"] for report in reports] == [1, 2, 3, 4, 5]
    latest = CheckpointFolder(job.storage, job.folder).latest()
    assert latest
    return latest, [report["metrics"]["epoch_seconds"] for report in reports]


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[float], dict[str, Any]]:
    """Storage with a run in it, how long its epochs took, and what another policy gives from scratch."""
    folder = tmp_path_factory.mktemp("family")
    _, seconds = ended(job_of(folder, "parent", SMOKE))
    whole, _ = ended(job_of(folder, "scratch", changed()))
    return folder, seconds, whole


def changed() -> RunSpec:
    return override(SMOKE, {"changes": "4:lr=0.2"})


@pytest.mark.slow
def test_a_run_starts_from_the_checkpoint_of_its_branch_and_later_from_its_own(family: Any, tmp_path: Path) -> None:
    folder, seconds, whole = family
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    child = job_of(tmp_path, "child", changed(), branch="parent", branch_epoch=4)
    latest, took = ended(child)
    assert took[:4] == seconds[:4]
    assert took[4] != seconds[4]
    assert not weights_differ(latest["model"], whole["model"])
    assert learned(latest["history"]) == learned(whole["history"])
    assert ended(child)[1] == took


def damage(parent: Path, how: str) -> None:
    (fourth,) = parent.glob("epoch-000004-*")
    if how == "gone":
        shutil.rmtree(parent)
    elif how == "another epoch":
        fourth.unlink()
    elif how == "truncated":
        fourth.write_bytes(fourth.read_bytes()[:-10])
    elif how == "runs code":
        content = pickle.dumps(print, protocol=2)
        fourth.unlink()
        (parent / f"epoch-000004-{hashlib.sha256(content).hexdigest()[:16]}.pt").write_bytes(content)
    else:
        shutil.rmtree(parent)
        parent.write_text("no folder")


@pytest.mark.slow
@pytest.mark.parametrize("how", ["gone", "another epoch", "truncated", "runs code", "no folder"])
def test_without_the_checkpoint_of_its_branch_a_run_gives_the_same_from_scratch(family: Any, tmp_path: Path, how: str) -> None:
    folder, seconds, whole = family
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    damage(tmp_path / "checkpoints" / "parent", how)
    latest, took = ended(job_of(tmp_path, "child", changed(), branch="parent", branch_epoch=4))
    assert not set(took) & set(seconds)
    assert not weights_differ(latest["model"], whole["model"])
    assert learned(latest["history"]) == learned(whole["history"])


def work(rank: int, folder: str) -> None:
    """As worker `rank`: a run, another policy from scratch, and that from the run's checkpoint, which one worker first misses."""
    warnings.simplefilter("error")
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    parent, policy = (override(spec, {"world_size": 2}) for spec in (SMOKE, changed()))
    jobs = [job_of(Path(folder), name, spec) for name, spec in (("parent", parent), ("scratch", policy))]
    jobs.append(job_of(Path(folder), "child", policy, branch="parent", branch_epoch=4))
    found, asked = CheckpointFolder.latest, list[int]()

    def missed_once(checkpoints: CheckpointFolder, *epoch: int) -> dict[str, Any] | None:
        asked.extend(epoch)
        return None if rank == 1 and asked == [4] else found(checkpoints, *epoch)

    reports: dict[str, list[dict[str, Any]]] = {job.folder: [] for job in jobs}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CheckpointFolder, "latest", missed_once)
        for job in jobs:
            reports[job.folder] += train_epochs(job, "cpu", rank=rank)
            distributed.barrier()
    torch.save({name: [report["metrics"] for report in given] for name, given in reports.items()}, f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


@pytest.mark.nightly
@pytest.mark.slow
def test_all_workers_start_from_the_checkpoint_of_the_branch(tmp_path: Path) -> None:
    spawn(work, args=(str(tmp_path),), nprocs=2, daemon=True)  # type: ignore[no-untyped-call]
    whole, latest = (CheckpointFolder(str(tmp_path / "checkpoints"), name).latest() for name in ("scratch", "child"))
    assert whole
    assert latest
    assert not weights_differ(latest["model"], whole["model"])
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert len(first["child"]) == len(second["child"]) == 5
    assert first["child"][:4] == second["child"][:4] == first["parent"][:4]  # with their seconds
