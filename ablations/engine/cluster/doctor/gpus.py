"""Check of the GPUs: each node has as many as Ray counts, and each multiplies matrices correctly.

    python -m ablations.engine.cluster.doctor.gpus

prints the GPUs that are visible to a process without a Ray reservation. It is a process of its own because a Ray task sees only
the GPUs that it has reserved, and this check reserves none. A GPU with less than 2 GB of free memory is not tested, because the
program that uses the rest may need it.
"""

import errno
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from ablations.engine.cluster.doctor.check import Check, describe_values, failed, join_names, not_checked, passed

MATRIX_SIZE = 1024
"""Number of rows of the matrices. Their entries are small integers, so that the product is exact in every precision."""
MIN_FREE_GB = 2.0
"""Minimum free GPU memory for the test. The CUDA context of a process takes up to 0.6 GB."""
MEASUREMENT_TIMEOUT_SECONDS = 20.0
"""Time limit for torch to test all GPUs of a node."""
VISIBLE_DEVICES_VARIABLE = "CUDA_VISIBLE_DEVICES"
GB_PER_MIB = 2**20 / 1e9
DRIVER_FOLDER = Path("/proc/driver/nvidia/gpus")
"""Folder in which the NVIDIA driver lists the GPUs, on Linux."""
NVIDIA_SMI_TIMEOUT_SECONDS = 8.0
MPS_FOLDER_VARIABLE, DEFAULT_MPS_FOLDER = "CUDA_MPS_PIPE_DIRECTORY", "/tmp/nvidia-mps"  # noqa: S108 - the folder that NVIDIA documents
MPS_TIMEOUT_SECONDS = 1.0


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One GPU that torch sees."""

    name: str
    free_gb: float | None
    """Free memory; None if nvidia-smi does not report it, as for a MIG slice."""
    correct: bool | None
    """True if the matrix product was correct; None: not tested."""


@dataclass(frozen=True, kw_only=True)
class NodeGpus:
    """The GPUs of one node."""

    cuda: str = ""
    """CUDA version that torch was built with."""
    driver: str = ""
    visible: Sequence[Gpu] = ()
    error: str = ""
    """Reason why torch could not list the GPUs."""


def has_gpus() -> bool:
    """Return whether the NVIDIA driver of this machine lists a GPU. It does not call nvidia-smi, which hangs if a GPU is lost."""
    return any(DRIVER_FOLDER.glob("*"))


def measure() -> NodeGpus:
    """Return the GPUs of the node of this process, as its raylet sees them."""
    import psutil

    raylet = psutil.Process().parent()
    visible = raylet.environ().get(VISIBLE_DEVICES_VARIABLE) if raylet else None
    environment = {name: value for name, value in os.environ.items() if name != VISIBLE_DEVICES_VARIABLE}
    environment |= {VISIBLE_DEVICES_VARIABLE: visible} if visible is not None else {}
    # Ray unpacks a job's code into a folder that only this process has on its path.
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    command = [sys.executable, "-m", "ablations.engine.cluster.doctor.gpus"]
    limit = MEASUREMENT_TIMEOUT_SECONDS
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=limit, check=False)  # noqa: S603
    except subprocess.TimeoutExpired:
        return NodeGpus(error=f"torch does not answer within {limit:g} s")
    if done.returncode:
        return NodeGpus(error=(done.stderr.strip().splitlines() or ["torch ended without a message"])[-1])
    found = json.loads(done.stdout)
    return NodeGpus(**{**found, "visible": [Gpu(**gpu) for gpu in found["visible"]]})


def measure_visible() -> NodeGpus:
    """Return the GPUs that this process sees, each tested unless it is busy."""
    import torch

    driver, free = query_nvidia_smi()
    visible = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        free_gb = free.get(f"GPU-{getattr(properties, 'uuid', '')}")
        busy = free_gb is not None and free_gb < MIN_FREE_GB
        visible.append(Gpu(name=properties.name, free_gb=free_gb, correct=None if busy else _multiplies_correctly(index)))
    return NodeGpus(cuda=torch.version.cuda or "", driver=driver, visible=visible)


def evaluate(counted: Mapping[str, float], gpus: Mapping[str, NodeGpus]) -> Check:
    """Return the verdict on the GPUs of all nodes.

    Args:
        counted: number of GPUs that Ray counts, by node name.
        gpus: measured GPUs, by node name.
    """
    errors = {node: found.error for node, found in gpus.items() if found.error}
    if errors:
        remedy = "run nvidia-smi there for details; restart the node, or reinstall its driver"
        return failed("GPUs", f"torch fails on {join_names(errors)} ({errors[min(errors)]})", remedy)
    differing = [
        f"{node}: Ray counts {counted[node]:g}, torch sees {len(gpus[node].visible)}"
        for node in gpus
        if counted[node] != len(gpus[node].visible)
    ]
    if differing:
        remedy = (
            "start Ray with the right number (ray start --num-gpus); if torch sees too few, install a driver that supports its "
            "CUDA version, and in containers the NVIDIA runtime"
        )
        return failed("GPUs", join_names(differing), remedy)
    broken = [
        f"{index} of {node}" for node, found in gpus.items() for index, gpu in enumerate(found.visible) if gpu.correct is False
    ]
    if broken:
        remedy = "take the node out of the cluster; nvidia-smi -q shows its errors"
        return failed("GPUs", f"a matrix product is wrong on GPU {join_names(broken)}", remedy)
    visible = [gpu for found in gpus.values() for gpu in found.visible]
    if not visible:
        return not_checked("GPUs", "the cluster has none")
    builds = {node: f"CUDA {found.cuda}, driver {found.driver or 'unknown'}" for node, found in gpus.items() if found.visible}
    if len(set(builds.values())) > 1:
        return failed(
            "GPUs", describe_values(builds), "install the same torch and driver on all nodes, for instance from one image"
        )
    tested = sum(gpu.correct is not None for gpu in visible)
    free = [gpu.free_gb for gpu in visible if gpu.free_gb is not None]
    memory = f"; at least {min(free):.0f} GB free" if free else ""
    busy = f", {len(visible) - tested} too busy to test" if tested < len(visible) else ""
    count = f"{len(visible)} GPU{'' if len(visible) == 1 else 's'}, as Ray counts"
    return passed("GPUs", f"{count}; {tested} multiply correctly{busy}{memory}; {next(iter(builds.values()))}")


def _multiplies_correctly(index: int) -> bool:
    import torch

    numbers = torch.arange(MATRIX_SIZE * MATRIX_SIZE, dtype=torch.float32).reshape(MATRIX_SIZE, MATRIX_SIZE)
    left, right = numbers % 5 - 2, numbers % 7 - 3
    return torch.equal((left.cuda(index) @ right.cuda(index)).cpu(), left @ right)


def has_mps() -> bool:
    """Return whether NVIDIA's MPS runs on this machine, which lets the kernels of several processes run on a GPU at the same time.

    The socket of its control daemon is where CUDA looks for it. It outlives the daemon, but then refuses connections.
    """
    folder = os.environ.get(MPS_FOLDER_VARIABLE) or DEFAULT_MPS_FOLDER
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(MPS_TIMEOUT_SECONDS)
        try:
            probe.connect(os.path.join(folder, "control"))
        except OSError as error:
            return error.errno == errno.EPROTOTYPE  # something listens, with another type of socket
    return True


def smallest_memory_mb() -> float | None:
    """Return the memory of this machine's smallest GPU, in MiB; None if nvidia-smi does not report it."""
    try:
        rows = _query_nvidia_smi("memory.total")
    except subprocess.TimeoutExpired:
        return None
    return min((float(total) for (total,) in rows if total.isdigit()), default=None)


def query_nvidia_smi() -> tuple[str, dict[str, float]]:
    """Return the driver's version and each GPU's free memory in GB by UUID. Both are empty if nvidia-smi is missing."""
    rows = _query_nvidia_smi("driver_version,uuid,memory.free")
    return (rows[0][0] if rows else ""), {uuid: float(free) * GB_PER_MIB for _, uuid, free in rows if free.isdigit()}


def _query_nvidia_smi(properties: str) -> list[list[str]]:
    """Return a row for each GPU, with these properties; nothing if nvidia-smi is missing or fails."""
    tool = shutil.which("nvidia-smi")
    if not tool:
        return []
    command = [tool, f"--query-gpu={properties}", "--format=csv,noheader,nounits"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=NVIDIA_SMI_TIMEOUT_SECONDS)  # noqa: S603
    return [[cell.strip() for cell in line.split(",")] for line in done.stdout.splitlines()] if done.returncode == 0 else []


if __name__ == "__main__":
    print(json.dumps(asdict(measure_visible())))
