"""The resources that a run uses are measured where it can be read, and left out elsewhere.

No GPU is here: a stand-in has the functions of NVIDIA's library that are called. A GPU's own counter is not tested.
"""

import sys
import types
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ablations.engine.trial import system_metrics, worker
from ablations.engine.trial.system_metrics import CPU_SECONDS, GPU_ENERGY_KWH, GPU_UTILIZATION, PEAK_MEMORY_MB, SystemMeter
from tests.helpers.ray_jobs import make_job

KWH = 3.6e9
"""Millijoules, in which NVML counts."""


class Nvml(types.ModuleType):
    """A GPU whose counter a test sets."""

    def __init__(self, *, counts: bool = True) -> None:
        super().__init__("pynvml")
        self.millijoules, self.percent, self.counts = 5 * KWH, 0.0, counts
        self.opened: list[str] = []

    def nvmlInit(self) -> None:  # noqa: N802 - NVIDIA's names
        pass

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:  # noqa: N802
        self.opened.append(uuid)
        return uuid

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: str) -> int:  # noqa: N802
        if not self.counts:
            raise RuntimeError("Not Supported")
        return int(self.millijoules)

    def nvmlDeviceGetUtilizationRates(self, handle: str) -> Any:  # noqa: N802
        return SimpleNamespace(gpu=self.percent)


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> Nvml:
    module = Nvml()
    monkeypatch.setitem(sys.modules, "pynvml", module)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(uuid="1234-5678"))
    return module


def test_the_energy_of_a_run_is_what_its_gpu_counted_meanwhile(nvml: Nvml, tmp_path: Path) -> None:
    meter = SystemMeter(replace(make_job(tmp_path, "run"), gpus_per_worker=1.0), "cuda:0")
    assert nvml.opened == ["GPU-1234-5678"]
    nvml.millijoules += 0.25 * KWH
    assert meter.metrics({"epoch_seconds": 10.0}, 0.0)[GPU_ENERGY_KWH] == pytest.approx(0.25)
    nvml.millijoules += 0.25 * KWH
    assert meter.metrics({"epoch_seconds": 10.0}, 0.0)[GPU_ENERGY_KWH] == pytest.approx(0.5), "of all epochs"


def test_runs_that_share_a_gpu_share_its_energy_and_a_group_uses_that_of_all_its_workers(nvml: Nvml, tmp_path: Path) -> None:
    job = make_job(tmp_path, "run")
    shared = SystemMeter(replace(job, gpus_per_worker=0.25), "cuda:0")
    group = SystemMeter(replace(job, gpus_per_worker=1.0, spec={**job.spec, "world_size": 4}), "cuda:0")
    nvml.millijoules += 1.0 * KWH
    assert shared.metrics({"epoch_seconds": 1.0}, 0.0)[GPU_ENERGY_KWH] == pytest.approx(0.25)
    assert group.metrics({"epoch_seconds": 1.0}, 0.0)[GPU_ENERGY_KWH] == pytest.approx(4.0)


def test_a_run_that_another_process_began_is_scaled_to_its_whole_training(nvml: Nvml, tmp_path: Path) -> None:
    meter = SystemMeter(replace(make_job(tmp_path, "run"), gpus_per_worker=1.0), "cuda:0")
    nvml.millijoules += 0.1 * KWH
    assert meter.metrics({"epoch_seconds": 10.0}, 30.0)[GPU_ENERGY_KWH] == pytest.approx(0.4)


def test_utilization_is_a_mean_over_the_run_and_is_read_once_a_second(nvml: Nvml, tmp_path: Path) -> None:
    now = [0.0]
    meter = SystemMeter(replace(make_job(tmp_path, "run"), gpus_per_worker=1.0), "cuda:0", clock=lambda: now[0])
    for second, percent in ((0.5, 7.0), (1.1, 90.0), (1.2, 8.0), (2.2, 70.0)):
        now[0], nvml.percent = second, percent
        meter.sample()
    assert meter.metrics({"epoch_seconds": 1.0}, 0.0)[GPU_UTILIZATION] == 80.0


@pytest.mark.parametrize("lack", ["counter", "package", "driver"])
def test_what_cannot_be_read_is_left_out(nvml: Nvml, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lack: str) -> None:
    def fail() -> None:
        raise RuntimeError("Driver Not Loaded")

    if lack == "counter":
        nvml.counts = False
    elif lack == "package":
        monkeypatch.setitem(sys.modules, "pynvml", None)
    else:
        monkeypatch.setattr(nvml, "nvmlInit", fail)
    meter = SystemMeter(replace(make_job(tmp_path, "run"), gpus_per_worker=1.0), "cuda:0")
    meter.sample()
    assert meter.metrics({"epoch_seconds": 1.0}, 0.0).keys() == {CPU_SECONDS, PEAK_MEMORY_MB}


def test_a_training_on_cpus_reports_processor_time_and_memory_and_never_opens_nvml(nvml: Nvml, tmp_path: Path) -> None:
    reports = list(worker.train_epochs(make_job(tmp_path, "run"), "cpu"))
    found = [{name: value for name, value in each["metrics"].items() if name.startswith("system/")} for each in reports]
    assert [each.keys() for each in found] == [{CPU_SECONDS, PEAK_MEMORY_MB}] * 2
    assert 0 < found[0][CPU_SECONDS] < found[1][CPU_SECONDS] < 60
    assert 50 < found[1][PEAK_MEMORY_MB] < 20_000
    assert not nvml.opened


def test_a_task_may_report_a_metric_of_the_same_name_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(system_metrics, "CPU_SECONDS", "test/error")
    reports = list(worker.train_epochs(make_job(tmp_path, "run"), "cpu"))
    assert reports[-1]["metrics"]["test/error"] <= 100
    assert all("train/loss" in each["metrics"] for each in reports)
