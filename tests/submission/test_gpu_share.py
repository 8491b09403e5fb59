"""Shares of a GPU: only for small runs whose memory was measured, on one machine under MPS."""

import socket
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ablations.engine.cli import options
from ablations.engine.cluster.doctor import gpus
from ablations.engine.scheduling.capacity import RunResources
from ablations.engine.scheduling.gpu_choice import ClusterResources, choose_resources
from ablations.engine.submission import jobs
from ablations.engine.submission.planning.gpu_share import peak_memory_mb, with_share
from ablations.engine.tracking.run_queries import CompletedRun, RunRecord
from resnet_core import override
from tests.helpers.submission import STUDY, planned

SMALL_MB = 1000.0
MACHINE = {"CPU": 64.0, "GPU": 2.0}


def nvidia_smi(folder: Path, monkeypatch: pytest.MonkeyPatch, *total_mb: int) -> None:
    """Put a stand-in for nvidia-smi on the path that reports GPUs with this memory."""
    tool = folder / "nvidia-smi"
    tool.write_text("#!/bin/sh\n" + "".join(f"echo {each}\n" for each in total_mb))
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


@pytest.fixture
def mps(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[[], None]]:
    """A stand-in for MPS and two GPUs with 16,000 MiB; call it to end MPS as a crash does, which leaves its socket."""
    nvidia_smi(tmp_path, monkeypatch, 80_000, 16_000)
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as daemon:  # paths of sockets are short
        monkeypatch.setenv("CUDA_MPS_PIPE_DIRECTORY", folder)
        daemon.bind(f"{folder}/control")
        daemon.listen()
        yield daemon.close


def share(
    runs: int, peak_mb: float | None = SMALL_MB, nodes: tuple[Mapping[str, float], ...] = (MACHINE,), **needs: Any
) -> tuple[float, str]:
    there = ClusterResources(nodes=nodes)
    choice = with_share(choose_resources(RunResources(**needs), None, there), there, runs, lambda: peak_mb)
    return choice.resources.gpus_per_worker, choice.reason


@pytest.mark.usefixtures("mps")
def test_small_runs_share_a_gpu_under_mps_but_never_more_than_was_measured_to_pay() -> None:
    reason = "this machine has 2 GPUs, shared by 7 runs under MPS, since a finished run took 1,000 of 16,000 MiB"
    assert share(100) == (0.1428, reason)  # 16,000 ÷ (1.5 × 1,000 + 600) is 7.6
    assert share(100, 10)[0] == 0.125  # would fit 26 times
    assert share(100, 5000) == (1, "this machine has 2 GPUs, whole since a finished run took 5,000 of 16,000 MiB")


@pytest.mark.usefixtures("mps")
def test_no_gpu_stays_idle_beside_a_shared_one() -> None:
    assert share(2)[0] == 1
    assert share(3)[0] == 0.5  # Ray would place four quarters on one GPU
    assert share(100, nodes=({"CPU": 8.0, "GPU": 2.0},))[0] == 0.25
    assert share(100, nodes=({"CPU": 8.0, "GPU": 2.0},), cpus_per_worker=4)[0] == 1


@pytest.mark.usefixtures("mps")
def test_a_gpu_is_whole_without_a_measurement_for_groups_and_on_several_nodes() -> None:
    assert share(100, None) == (1, "this machine has 2 GPUs, whole since no such run has finished on a GPU")
    assert share(100, workers=2)[0] == 1  # NCCL refuses two workers on one GPU
    assert share(100, nodes=(MACHINE, MACHINE))[0] == 1


def test_without_mps_a_gpu_is_whole(mps: Callable[[], None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert gpus.has_mps()
    mps()
    assert not gpus.has_mps()
    assert share(100) == (1, "this machine has 2 GPUs")
    monkeypatch.setenv("CUDA_MPS_PIPE_DIRECTORY", str(tmp_path / "none"))
    assert not gpus.has_mps()


@pytest.mark.usefixtures("mps")
def test_a_gpu_is_whole_where_its_memory_is_unknown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    nvidia_smi(tmp_path, monkeypatch)
    assert share(100) == (1, "this machine has 2 GPUs, whole since nvidia-smi does not report the GPU's memory")


def past(spec: Any, **values: Any) -> CompletedRun:
    fields = {name: str(value) for name, value in spec.flat().items()}
    known = CompletedRun(spec=fields, train_examples=100, seconds=1, device="H200", on_gpu=True, peak_memory_mb=SMALL_MB)
    return replace(known, **values)


def test_memory_is_that_of_the_largest_run_and_unknown_if_one_was_never_measured() -> None:
    plan = planned("--seeds", "2")
    first, *_, last = plan.runs
    workload = plan.workload
    both = [past(first.spec), past(last.spec, peak_memory_mb=1500.0), past(first.spec, on_gpu=False, peak_memory_mb=9000.0)]
    assert peak_memory_mb(workload, plan.runs, both) == 1500
    assert peak_memory_mb(workload, plan.runs, both[:1]) is None
    assert peak_memory_mb(workload, plan.runs, [both[0], replace(both[1], peak_memory_mb=None)]) is None
    larger = past(override(last.spec, {"global_batch_size": 128}))
    assert peak_memory_mb(workload, plan.runs, [both[0], larger]) is None
    assert peak_memory_mb(workload, [], both) is None


@pytest.mark.usefixtures("mps")
@pytest.mark.parametrize(
    ("arguments", "runs", "gpus"),
    [([], 32, 0.1428), (["--gpus-per-worker", "1"], 32, 1), (["--max-concurrent", "4"], 32, 0.5), ([], 0, 1)],
)
def test_a_study_gets_a_share_unless_its_user_or_its_size_says_otherwise(arguments: list[str], runs: int, gpus: float) -> None:
    plan = planned("--seeds", "16", *arguments)
    chosen, there = options.parse_options(STUDY, arguments), ClusterResources(nodes=[MACHINE])
    choice = jobs.choose_resources(plan, chosen, plan.runs[:runs], there, lambda: map(past, (run.spec for run in plan.runs)))
    assert choice.resources.gpus_per_worker == gpus


def test_finished_runs_on_another_kind_of_device_are_named() -> None:
    def record(gpu_hours: float, outcome: str = "completed") -> RunRecord:
        return RunRecord("id", "1", "FINISHED", {"outcome": outcome}, {}, {"gpu_hours": gpu_hours})

    done = {"a": record(0), "b": record(0.1), "c": record(0.2), "d": record(0, "diverged")}
    assert jobs.describe_other_devices(done, RunResources(gpus_per_worker=1)) == (
        "1 of 4 runs done trained on CPUs, and the others will train on GPUs: the report flags comparisons between them. "
        "--gpus-per-worker 0 continues on CPUs; --rerun trains all runs again."
    )
    assert jobs.describe_other_devices(done, RunResources()).startswith("2 of 4 runs done trained on GPUs, and the others")
    assert jobs.describe_other_devices({"a": record(0)}, RunResources()) == ""
