"""Checks of each node's installed versions, disks, shared memory and clock."""

import platform
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from ablations.engine.cluster.doctor.check import Check, describe_values, failed, join_names, passed
from resnet_core.identity import code_version

PACKAGES = ("ray", "torch", "torchvision", "numpy")
MIN_FREE_GB = 2.0
"""Minimum free disk space. Logs of a long Ray session take about 1 GB, decoded CIFAR images 0.2 GB."""
MIN_SHARED_MEMORY_GB = 0.5
"""Minimum free shared memory. Containers have 0.064 GB by default: too little for Ray's objects, NCCL and image decoding."""
MAX_SKEW_SECONDS = 2.0
"""Maximum clock skew. A synchronized clock is within 0.1 s."""
SHARED_MEMORY_FOLDER = Path("/dev/shm")  # noqa: S108 - measured only; no file is written there
BYTES_PER_GB = 1e9


@dataclass(frozen=True)
class Disk:
    """The file system that holds a folder."""

    purpose: str
    path: str
    total_gb: float
    free_gb: float


@dataclass(frozen=True, kw_only=True)
class NodeFacts:
    """Installed versions and free space of one node."""

    versions: Mapping[str, str]
    disks: Sequence[Disk]
    shared_memory: Disk | None


def measure(home: str) -> NodeFacts:
    """Return the facts of the node that this process runs on.

    Args:
        home: folder of local state, the same path on every node.
    """
    from ablations.engine.cluster.doctor.nodes import ray_temp_folder

    folder = SHARED_MEMORY_FOLDER
    return NodeFacts(
        versions=installed_versions(),
        disks=[measure_disk("RESNET_ABLATIONS_HOME", Path(home)), measure_disk("Ray's files", Path(ray_temp_folder()))],
        shared_memory=measure_disk("shared memory", folder) if folder.exists() else None,
    )


def installed_versions() -> dict[str, str]:
    """Return the versions that influence a run's result, without importing the packages."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name).partition("+")[0]  # `+cpu` and `+cu130` are builds of one version
        except metadata.PackageNotFoundError:
            found[name] = "missing"
    return found | {"resnet_core": code_version()}


def evaluate_versions(facts: Mapping[str, NodeFacts]) -> Check:
    """Return the verdict on the versions of all nodes, by node name."""
    by_package = {
        name: {node: fact.versions[name] for node, fact in facts.items()} for name in ("python", *PACKAGES, "resnet_core")
    }
    differing = {name: values for name, values in by_package.items() if len(set(values.values())) > 1}
    if not differing:
        return passed("versions", ", ".join(f"{name} {next(iter(values.values()))}" for name, values in by_package.items()))
    remedies = []
    if differing.keys() - {"resnet_core"}:
        remedies.append("install the same versions on every node: pip install -c constraints.txt -e .")
    if "resnet_core" in differing:
        remedies.append("copy the same resnet_core to every node, or send it along: ray job submit --working-dir .")
    differences = "; ".join(f"{name} {describe_values(values)}" for name, values in differing.items())
    return failed("versions", differences, "; ".join(remedies))


def evaluate_disks(facts: Mapping[str, NodeFacts]) -> Check:
    """Return the verdict on the disks of all nodes, by node name."""
    disks = [(disk.free_gb, node, disk) for node, fact in facts.items() for disk in fact.disks]
    full = [f"{free:.1f} GB free on {node} for {disk.purpose} ({disk.path})" for free, node, disk in disks if free < MIN_FREE_GB]
    if full:
        remedy = (
            f"free at least {MIN_FREE_GB:g} GB there, or move the folder to a larger disk: RESNET_ABLATIONS_HOME, "
            "or ray start --temp-dir"
        )
        return failed("disk", join_names(full), remedy)
    free, node, least = min(disks, key=lambda entry: entry[:2])
    return passed("disk", f"at least {free:.1f} GB free; least on {node} for {least.purpose}")


def evaluate_shared_memory(facts: Mapping[str, NodeFacts]) -> Check | None:
    """Return the verdict on the shared memory of all nodes, by node name; None if no node has /dev/shm."""
    free = {node: fact.shared_memory.free_gb for node, fact in facts.items() if fact.shared_memory}
    if not free:
        return None
    small = {node for node in free if free[node] < MIN_SHARED_MEMORY_GB}
    least = min(free, key=lambda node: free[node])
    if not small:
        return passed("shared memory", f"at least {free[least]:.1f} GB free in /dev/shm; least on {least}")
    remedy = (
        f"give each container at least {MIN_SHARED_MEMORY_GB:g} GB: docker run --shm-size, or a pod's emptyDir with "
        "medium: Memory at /dev/shm"
    )
    return failed("shared memory", f"only {free[least]:.2f} GB free in /dev/shm on {join_names(small)}", remedy)


def evaluate_clocks(skews: Mapping[str, float]) -> Check:
    """Return the verdict on clock skews.

    Args:
        skews: seconds by which each node's clock is ahead of this process's, by node name.
    """
    off = {node: skew for node, skew in skews.items() if abs(skew) > MAX_SKEW_SECONDS}
    if off:
        shown = (f"{abs(skew):.1f} s {'ahead' if skew > 0 else 'behind'} on {node}" for node, skew in off.items())
        return failed(
            "clocks", join_names(shown), "synchronize the clock with chrony or systemd-timesyncd: timedatectl set-ntp true"
        )
    largest = max(map(abs, skews.values()), default=0)
    return passed("clocks", f"skew of {largest:.2f} s or less, up to the round-trip time")


def measure_disk(purpose: str, path: Path) -> Disk:
    """Return the file system of a folder, which need not exist yet."""
    existing = next(folder for folder in (path, *path.parents) if folder.exists())
    usage = shutil.disk_usage(existing)
    return Disk(purpose, str(path), usage.total / BYTES_PER_GB, usage.free / BYTES_PER_GB)
