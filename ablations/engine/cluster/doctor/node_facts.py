"""What a node has installed and how much room it has."""

import platform
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from ablations.engine.cluster.doctor.check import Check, listed, ok, spread, wrong
from resnet_core.identity import code_version

PACKAGES = ("ray", "torch", "torchvision", "numpy")
MIN_FREE_GB = 2.0
"""On the disks of local state and of Ray. Logs of a long session take about 1 GB, decoded CIFAR images 0.2 GB."""
MIN_SHARED_MEMORY_GB = 0.5
"""Containers have 0.064 by default: too little for Ray's objects, for NCCL and for images that are decoded beside the training."""
MAX_SKEW_SECONDS = 2.0
"""A clock that is kept is within 0.1 s."""
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - it is no place for files
GB = 1e9


@dataclass(frozen=True)
class Disk:
    """A file system."""

    purpose: str
    path: str
    total_gb: float
    free_gb: float


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a node says of itself."""

    versions: Mapping[str, str]
    disks: Sequence[Disk]
    shared_memory: Disk | None


def measure(home: str) -> Facts:
    """Of the node that this process runs on.

    Args:
        home: folder of local state, which is the same path on every node.
    """
    from ablations.engine.cluster.doctor.nodes import temporary_folder

    return Facts(
        versions=versions(),
        disks=[disk("RESNET_ABLATIONS_HOME", Path(home)), disk("Ray's files", Path(temporary_folder()))],
        shared_memory=disk("shared memory", SHARED_MEMORY) if SHARED_MEMORY.exists() else None,
    )


def versions() -> dict[str, str]:
    """Of what decides a run's result, without importing it."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name).partition("+")[0]  # `+cpu` and `+cu130` are builds of one version
        except metadata.PackageNotFoundError:
            found[name] = "missing"
    return found | {"resnet_core": code_version()}


def judge_versions(facts: Mapping[str, Facts]) -> Check:
    """Of all nodes, by name."""
    by_package = {
        name: {node: fact.versions[name] for node, fact in facts.items()} for name in ("python", *PACKAGES, "resnet_core")
    }
    differing = {name: values for name, values in by_package.items() if len(set(values.values())) > 1}
    if not differing:
        return ok("versions", ", ".join(f"{name} {next(iter(values.values()))}" for name, values in by_package.items()))
    remedies = []
    if differing.keys() - {"resnet_core"}:
        remedies.append("install the same everywhere: pip install -c constraints.txt -e .")
    if "resnet_core" in differing:
        remedies.append("copy the same resnet_core to every node, or submit with ray job submit --working-dir .")
    return wrong("versions", "; ".join(f"{name} {spread(values)}" for name, values in differing.items()), "; ".join(remedies))


def judge_disks(facts: Mapping[str, Facts]) -> Check:
    """Of all nodes, by name."""
    disks = [(each.free_gb, node, each) for node, fact in facts.items() for each in fact.disks]
    full = [f"{free:.1f} GB free on {node} for {it.purpose} ({it.path})" for free, node, it in disks if free < MIN_FREE_GB]
    if full:
        remedy = f"make room, at least {MIN_FREE_GB:g} GB, or put RESNET_ABLATIONS_HOME or ray start --temp-dir on a larger disk"
        return wrong("disk", listed(full), remedy)
    free, node, least = min(disks, key=lambda entry: entry[:2])
    return ok("disk", f"{free:.1f} GB free or more, least on {node} for {least.purpose}")


def judge_shared_memory(facts: Mapping[str, Facts]) -> Check | None:
    """Of all nodes, by name; None where there is no such thing."""
    free = {node: fact.shared_memory.free_gb for node, fact in facts.items() if fact.shared_memory}
    if not free:
        return None
    small = {node for node in free if free[node] < MIN_SHARED_MEMORY_GB}
    least = min(free, key=lambda node: free[node])
    if not small:
        return ok("shared memory", f"{free[least]:.1f} GB free or more in /dev/shm, least on {least}")
    remedy = f"give containers {MIN_SHARED_MEMORY_GB:g} GB or more: docker run --shm-size, in a pod emptyDir.medium: Memory"
    return wrong("shared memory", f"{free[least]:.2f} GB free in /dev/shm of {listed(small)}", remedy)


def judge_clocks(skews: Mapping[str, float]) -> Check:
    """Seconds by which clocks are off this process's, by node."""
    off = {node: skew for node, skew in skews.items() if abs(skew) > MAX_SKEW_SECONDS}
    if off:
        shown = (f"{abs(skew):.1f} s {'ahead' if skew > 0 else 'behind'} on {node}" for node, skew in off.items())
        return wrong("clocks", listed(shown), "let chrony or systemd-timesyncd keep them: timedatectl set-ntp true")
    return ok("clocks", f"within {max(map(abs, skews.values()), default=0):.2f} s of this process's, as far as can be told")


def disk(purpose: str, path: Path) -> Disk:
    """The file system that a folder is on, or will be."""
    there = next(folder for folder in (path, *path.parents) if folder.exists())
    usage = shutil.disk_usage(there)
    return Disk(purpose, str(path), usage.total / GB, usage.free / GB)
