"""The number of GPUs that a study's workers get if its user names none: one where the cluster has or can get any, none elsewhere.

A study that trains on CPUs beside idle GPUs wastes hours before anyone notices. So the choice is never to train on CPUs where there
are GPUs: a study whose runs do not fit on them is rejected, and so is one whose autoscaler may or may not add GPUs.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from ablations.engine.environment.validation import AUTO
from ablations.engine.scheduling import capacity
from ablations.engine.scheduling.capacity import AutoscalerLimits, RunResources, describe_amount
from resnet_core.fields import reject

NO_GPUS = "--gpus-per-worker 0 trains on CPUs"
HIDDEN_GPUS = ("", "-1", "NoDevFiles")
"""Values of `CUDA_VISIBLE_DEVICES` that hide all GPUs. Ray may have set it for the driver of a job, but not for its workers."""


@dataclass(frozen=True, kw_only=True)
class ClusterResources:
    """The nodes of a cluster, and those that its autoscaler may add."""

    nodes: Sequence[Mapping[str, float]]
    """Resources of each node, by Ray's name: `CPU`, `GPU`."""
    has_autoscaler: bool = False
    limits: AutoscalerLimits | None = None
    """Nodes that the autoscaler may add; None without one, or if it does not publish them, as on Kubernetes."""
    head: Mapping[str, float] | None = None
    """Resources of the head."""
    unusable_gpus: float = 0
    """Number of GPUs that Ray counts on its only node and torch cannot use. They are not among the resources of the node."""

    @property
    def name(self) -> str:
        return "this machine" if len(self.nodes) == 1 and not self.has_autoscaler else "the cluster"


@dataclass(frozen=True, kw_only=True)
class ResourceChoice:
    """The resources of one run, and why they were chosen."""

    resources: RunResources
    reason: str = ""
    """Reason for a worker's number of GPUs, as a clause; empty if the user named the number."""

    def describe(self) -> str:
        """Return a sentence about the resources."""
        needs = self.resources
        who = "run" if needs.workers == 1 else f"of the {needs.workers} workers of a run"
        takes = needs.describe_worker() + ("" if needs.gpus_per_worker else ", no GPU")
        why = f": {self.reason}" if self.reason else ""
        hint = f"; {NO_GPUS}" if self.reason and needs.gpus_per_worker else ""
        return f"Each {who} takes {takes}{why}{hint}."


def this_machine() -> ClusterResources:
    """Return what a Ray that starts on this machine has."""
    return ClusterResources(nodes=[capacity.local_resources()])


def joined_cluster() -> ClusterResources:
    """Return the resources of the cluster that this process has joined, or of the Ray that it has started."""
    nodes = [node["Resources"] for node in capacity.alive_nodes()]
    if capacity.has_autoscaler():
        return ClusterResources(
            nodes=nodes, has_autoscaler=True, limits=capacity.autoscaler_limits(), head=capacity.head_resources()
        )
    gpus = nodes[0].get("GPU", 0) if len(nodes) == 1 else 0
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in HIDDEN_GPUS
    if gpus and not hidden and not capacity.local_gpus():
        return ClusterResources(nodes=[{**nodes[0], "GPU": 0}], unusable_gpus=gpus)
    return ClusterResources(nodes=nodes)


def choose_resources(needs: RunResources, gpus: float | None, there: ClusterResources) -> ResourceChoice:
    """Return the resources of one run, with all that a worker needs.

    Args:
        needs: workers of a run and CPUs of a worker.
        gpus: GPUs of a worker as requested; None: one if the cluster has or can get GPUs, otherwise none.
        there: the cluster.

    Raises:
        ConfigError: several workers would share a GPU; or the number is not requested, and a run does not fit on the cluster's
            GPUs, or it is unknown whether the autoscaler can add GPUs.
    """
    if gpus and gpus < 1 and needs.workers > 1:
        raise reject(
            "--gpus-per-worker", f"{gpus:g}", f"accepted with --workers {needs.workers}: 0 or 1, since NCCL takes a GPU each"
        )
    if gpus is not None:
        return ResourceChoice(resources=replace(needs, gpus_per_worker=gpus))
    whole = replace(needs, gpus_per_worker=1)
    counted = sum(int(node.get("GPU", 0)) for node in there.nodes)
    added = any(kind.max_nodes and kind.resources.get("GPU", 0) >= 1 for kind in there.limits.types) if there.limits else False
    unknown = there.has_autoscaler and there.limits is None
    if not counted and not added:
        if unknown:
            why = "no node has a GPU now, and the autoscaler does not say whether it can add one, as on Kubernetes"
            raise reject("--gpus-per-worker", AUTO, f"{why}; accepted: 1 to wait for GPUs, 0 to train on CPUs")
        return ResourceChoice(resources=replace(needs, gpus_per_worker=0), reason=_why_none(there))
    if not (unknown or whole.runs_on(*there.nodes)):
        error = whole.unsatisfiable_error(there.head or {}, there.limits) if there.limits else whole.too_small_error(there.nodes)
        if error:
            raise reject("--gpus-per-worker", AUTO, f"{there.name} has GPUs, and a run does not fit ({error}); {NO_GPUS}")
    return ResourceChoice(resources=whole, reason=_why_one(needs, there, counted))


def _why_none(there: ClusterResources) -> str:
    if there.unusable_gpus:
        return f"Ray counts {describe_amount(there.unusable_gpus, 'GPU')} on this machine, but torch finds none that it can use"
    adds = ", and its autoscaler adds none" if there.has_autoscaler else ""
    return f"{there.name} has none{adds}"


def _why_one(needs: RunResources, there: ClusterResources, counted: int) -> str:
    if not counted:
        return "the cluster's autoscaler adds nodes with GPUs"
    having = sum(node.get("GPU", 0) >= 1 for node in there.nodes)
    where = "" if len(there.nodes) == 1 else f" on {having} of {len(there.nodes)} nodes"
    alone = replace(needs, workers=1, gpus_per_worker=0)
    idle = any(alone.runs_on(node) for node in there.nodes if node.get("GPU", 0) < 1)
    return f"{there.name} has {describe_amount(counted, 'GPU')}{where}{', and nodes without GPU stay idle' if idle else ''}"
