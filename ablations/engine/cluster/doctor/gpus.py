"""Whether a node's GPUs are those that Ray counts, and multiply matrices right.

    python -m ablations.engine.cluster.doctor.gpus

prints what a process sees that no one has hidden GPUs from. That is why it is a process of its own: a Ray task sees what it has
reserved, and nothing is reserved here. Where less than 2 GB are free nothing is multiplied: whoever has the rest may want it.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from ablations.engine.cluster.doctor.check import Check, listed, ok, spread, unchecked, wrong

SIZE = 1024
"""Rows of the matrices. Their entries are small whole numbers, so that the product is exact in every precision."""
MIN_FREE_GB = 2.0
"""Of its memory. A process's CUDA context takes up to 0.6 GB."""
SECONDS = 20.0
VISIBLE = "CUDA_VISIBLE_DEVICES"
MIB = 2**20 / 1e9
DRIVER = Path("/proc/driver/nvidia/gpus")
"""Where it lists them, on Linux."""
TOOL_SECONDS = 8.0


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One GPU."""

    name: str
    free_gb: float | None
    """None where nvidia-smi does not tell, as of a part of a GPU."""
    correct: bool | None
    """Of the product; None: not tried."""


@dataclass(frozen=True, kw_only=True)
class Gpus:
    """Those of a node."""

    cuda: str = ""
    """What torch was built with."""
    driver: str = ""
    seen: Sequence[Gpu] = ()
    error: str = ""


def present() -> bool:
    """Whether this machine's driver has any. nvidia-smi, asked for that, hangs where one of them is lost."""
    return any(DRIVER.glob("*"))


def measure() -> Gpus:
    """Of the node of this process, as its raylet sees them."""
    import psutil

    raylet = psutil.Process().parent()
    visible = raylet.environ().get(VISIBLE) if raylet else None
    environment = {name: value for name, value in os.environ.items() if name != VISIBLE}
    environment |= {VISIBLE: visible} if visible is not None else {}
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)  # a job's code is where Ray unpacked it
    command = [sys.executable, "-m", "ablations.engine.cluster.doctor.gpus"]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=SECONDS, check=False)  # noqa: S603
    except subprocess.TimeoutExpired:
        return Gpus(error=f"torch does not answer within {SECONDS:g} s")
    if done.returncode:
        return Gpus(error=(done.stderr.strip().splitlines() or ["torch ended without a word"])[-1])
    found = json.loads(done.stdout)
    return Gpus(**{**found, "seen": [Gpu(**gpu) for gpu in found["seen"]]})


def look() -> Gpus:
    """What this process sees."""
    import torch

    driver, free = nvidia_smi()
    seen = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        room = free.get(f"GPU-{getattr(properties, 'uuid', '')}")
        busy = room is not None and room < MIN_FREE_GB
        seen.append(Gpu(name=properties.name, free_gb=room, correct=None if busy else _multiplies(index)))
    return Gpus(cuda=torch.version.cuda or "", driver=driver, seen=seen)


def judge(counted: Mapping[str, float], gpus: Mapping[str, Gpus]) -> Check:
    """Of all nodes that have any, by name.

    Args:
        counted: how many Ray counts.
        gpus: what was measured.
    """
    failed = {node: found.error for node, found in gpus.items() if found.error}
    if failed:
        remedy = "nvidia-smi there says more; restart the node, or reinstall its driver"
        return wrong("GPUs", f"on {listed(failed)} torch fails ({failed[min(failed)]})", remedy)
    other = [f"{node}: Ray counts {counted[node]:g}, torch sees {len(gpus[node].seen)}" for node in gpus]
    other = [text for text, node in zip(other, gpus, strict=True) if counted[node] != len(gpus[node].seen)]
    if other:
        remedy = "a driver that suits torch's CUDA; in containers the NVIDIA runtime; ray start --num-gpus with the right number"
        return wrong("GPUs", listed(other), remedy)
    bad = [f"{index} of {node}" for node, found in gpus.items() for index, gpu in enumerate(found.seen) if gpu.correct is False]
    if bad:
        return wrong(
            "GPUs", f"a product of two matrices is wrong on GPU {listed(bad)}", "take the node out: nvidia-smi -q shows errors"
        )
    seen = [gpu for found in gpus.values() for gpu in found.seen]
    if not seen:
        return unchecked("GPUs", "the cluster has none")
    builds = {node: f"CUDA {found.cuda}, driver {found.driver or 'unknown'}" for node, found in gpus.items() if found.seen}
    if len(set(builds.values())) > 1:
        return wrong("GPUs", spread(builds), "the same torch and driver on all nodes: one image")
    tried = sum(gpu.correct is not None for gpu in seen)
    free = [gpu.free_gb for gpu in seen if gpu.free_gb is not None]
    memory = f", {min(free):.0f} GB free or more" if free else ""
    return ok(
        "GPUs",
        f"{len(seen)}, as Ray counts; {tried} multiply right, {len(seen) - tried} are busy{memory}; {next(iter(builds.values()))}",
    )


def _multiplies(index: int) -> bool:
    import torch

    numbers = torch.arange(SIZE * SIZE, dtype=torch.float32).reshape(SIZE, SIZE)
    left, right = numbers % 5 - 2, numbers % 7 - 3
    return torch.equal((left.cuda(index) @ right.cuda(index)).cpu(), left @ right)


def nvidia_smi() -> tuple[str, dict[str, float]]:
    """The driver's version, and free memory in GB of each GPU; nothing where the tool is missing."""
    tool = shutil.which("nvidia-smi")
    if not tool:
        return "", {}
    command = [tool, "--query-gpu=driver_version,uuid,memory.free", "--format=csv,noheader,nounits"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=TOOL_SECONDS)  # noqa: S603
    rows = [[cell.strip() for cell in line.split(",")] for line in done.stdout.splitlines()] if done.returncode == 0 else []
    return (rows[0][0] if rows else ""), {uuid: float(free) * MIB for _, uuid, free in rows if free.isdigit()}


if __name__ == "__main__":
    print(json.dumps(asdict(look())))
