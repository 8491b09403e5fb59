"""System metrics of a run: processor time, memory, and the energy and utilization of its GPU.

NVIDIA's library, NVML, counts a GPU's energy. It is read through the package `nvidia-ml-py` (module `pynvml`) if that is installed.
Without it, or on a GPU without the counter, the metrics of the GPU are left out.
"""

import os
import platform
import re
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from ablations.engine.trial.job import Job

CPU_SECONDS, PEAK_MEMORY_MB = "system/cpu_seconds", "system/peak_memory_mb"
GPU_ENERGY_KWH, GPU_UTILIZATION = "system/gpu_energy_kwh", "system/gpu_utilization"
"""Names of the metrics. MLflow shows metrics that start with `system/` on a page of their own."""
SAMPLE_INTERVAL_SECONDS = 1.0
"""Minimum time between two readings of the utilization, which NVML averages over up to a second."""
MILLIJOULES_PER_KWH = 3.6e9


class Gpu:
    """A GPU as NVML knows it.

    Args:
        nvml: the module `pynvml`.
        uuid: identity of the GPU, `GPU-…`.

    Raises:
        Exception: NVML cannot be used, or has no such GPU. Its errors have no common public base in older versions.
    """

    def __init__(self, nvml: Any, uuid: str) -> None:
        self._nvml = nvml
        nvml.nvmlInit()
        self._handle = nvml.nvmlDeviceGetHandleByUUID(uuid)

    def energy_kwh(self) -> float | None:
        """Return the energy that the GPU has used since its driver was loaded; None if it has no counter (before Volta)."""
        with suppress(Exception):
            return float(self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle)) / MILLIJOULES_PER_KWH
        return None

    def utilization(self) -> float | None:
        """Return the share of the last moment, in percent, in which a kernel ran; None if it is not known."""
        with suppress(Exception):
            return float(self._nvml.nvmlDeviceGetUtilizationRates(self._handle).gpu)
        return None


def find_gpu(device: str) -> Gpu | None:
    """Return the GPU of a torch device; None on a CPU, without `nvidia-ml-py`, and if NVML does not know it."""
    if not device.startswith("cuda"):
        return None
    with suppress(Exception):  # no driver, another vendor's GPU, an old torch without the GPU's identity
        import pynvml
        import torch

        return Gpu(pynvml, f"GPU-{torch.cuda.get_device_properties(device).uuid}")
    return None


class SystemMeter:
    """Meter of one run in this process, from its construction on.

    A run that another process began is measured from here. Its energy and processor time are scaled to the whole training, by the
    time that this process has trained. An epoch that a killed process had saved but not reported has no such metrics. The numbers
    of a group are those of its first worker times the number of workers.

    Args:
        job: the run, with its share of a GPU.
        device: torch device of the run.
        clock: returns a time in seconds.
    """

    def __init__(self, job: Job, device: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._workers = clock, int(job.spec.get("world_size", 1))
        # Runs that share a GPU share its energy. A worker trains on one GPU, so that further ones only count as reserved.
        self._share = min(job.gpus_per_worker, 1.0)
        self._gpu = find_gpu(device)
        self._process = psutil.Process()
        self._cpu = self._cpu_seconds()
        self._energy = self._gpu.energy_kwh() if self._gpu else None
        self._peak = 0.0
        self._samples: list[float] = []
        self._sampled = clock()
        self._trained = 0.0
        _reset_peak()

    def sample(self) -> None:
        """Read the utilization of the GPU if the last reading is old enough. Called after every step."""
        if self._gpu and (now := self._clock()) - self._sampled >= SAMPLE_INTERVAL_SECONDS:
            self._sampled = now
            if (value := self._gpu.utilization()) is not None:
                self._samples.append(value)

    def metrics(self, epoch: Mapping[str, float], before: float) -> dict[str, float]:
        """Return the metrics of the run so far.

        Args:
            epoch: metrics of the epoch that has just ended; without `epoch_seconds`, nothing is scaled.
            before: duration of the epochs that another process trained, in seconds.
        """
        self._trained += epoch.get("epoch_seconds", 0.0)
        scale = self._workers * ((before + self._trained) / self._trained if self._trained else 1.0)
        self._peak = max(self._peak, _peak_mb(self._process))
        found = {CPU_SECONDS: round((self._cpu_seconds() - self._cpu) * scale, 3), PEAK_MEMORY_MB: self._peak}
        energy = self._gpu.energy_kwh() if self._gpu else None
        if energy is not None and self._energy is not None and energy >= self._energy:  # the counter restarts with the driver
            found[GPU_ENERGY_KWH] = (energy - self._energy) * self._share * scale
        if self._samples:
            found[GPU_UTILIZATION] = sum(self._samples) / len(self._samples)
        return found

    def _cpu_seconds(self) -> float:
        times = self._process.cpu_times()
        return float(times.user + times.system + times.children_user + times.children_system)


def _reset_peak() -> None:
    """Forget the peak of earlier runs in this process, where Linux allows it."""
    if platform.system() == "Linux":
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")


def _peak_mb(process: psutil.Process) -> float:
    """Return the peak of this process's resident memory in MiB; its present size where the system does not tell."""
    with suppress(OSError):
        if found := re.search(r"VmHWM:\s*(\d+)", Path(f"/proc/{os.getpid()}/status").read_text()):
            return int(found[1]) / 2**10
    return float(process.memory_info().rss) / 2**20
