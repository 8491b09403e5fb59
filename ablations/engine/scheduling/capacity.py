"""Capacity of a cluster, in runs: with its current nodes, and with all nodes that its autoscaler may add."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ablations.engine.scheduling.ray_internals import cluster
from resnet_core.fields import ConfigError, reject


@dataclass(frozen=True)
class NodeType:
    """A type of node that an autoscaler can add."""

    resources: Mapping[str, float]
    """Resources of one node, by Ray's name: `CPU`, `GPU`."""
    max_nodes: int
    """Maximum number of nodes of this type."""


@dataclass(frozen=True)
class AutoscalerLimits:
    """The nodes that an autoscaler may add."""

    types: Sequence[NodeType]
    max_nodes: int
    """Maximum number of nodes of all types together."""


@dataclass(frozen=True, kw_only=True)
class RunResources:
    """The resources that one run takes from the cluster."""

    workers: int = 1
    cpus_per_worker: float = 1
    gpus_per_worker: float = 0

    def runs_on(self, *nodes: Mapping[str, float]) -> int:
        """Return the number of runs that nodes with these resources hold at a time, if they do nothing else."""
        return sum(self._workers_on(node) for node in nodes) // self.workers

    def current_capacity(self) -> int:
        """Return the number of runs that the current nodes of the cluster hold at a time, if they do nothing else."""
        return self.runs_on(*(node["Resources"] for node in alive_nodes()))

    def max_capacity(self) -> int | None:
        """Return `current_capacity` with all nodes that the autoscaler may add; None if its limits are not known."""
        limits = autoscaler_limits()
        return None if limits is None else max(self.current_capacity(), self._runs_with(_head_resources(), limits))

    def check_machine(self) -> None:
        """Raise ConfigError if this machine cannot hold one run and Ray would start here. On a cluster, call `check` instead."""
        if not starts_local_ray():
            return
        import torch  # takes a second, so only before a run starts

        here = {"CPU": os.cpu_count() or 1, "GPU": torch.cuda.device_count()}
        if self.runs_on(here):
            return
        counts = " and ".join(_counted(number, resource) for resource, number in here.items())
        has = f"this machine has {counts}, and RAY_ADDRESS names no cluster"
        for option, number, available in (
            ("--gpus-per-worker", self.gpus_per_worker, here["GPU"]),
            ("--cpus-per-worker", self.cpus_per_worker, here["CPU"]),
        ):
            if number > available:
                raise reject(option, f"{number:g}", has)
        raise reject("--workers", self.workers, f"each needs {self._worker()}; {has}")

    def check(self) -> None:
        """Raise ConfigError if the cluster can never hold one run."""
        if self.current_capacity():
            return
        if not cluster.has_autoscaler():
            import ray

            total, count = ray.cluster_resources(), len(alive_nodes())
            nodes = f"{count} {'node' if count == 1 else 'nodes'}"
            has = f"{_counted(total.get('CPU', 0), 'CPU')} and {_counted(total.get('GPU', 0), 'GPU')} on {nodes}"
            raise reject(
                "--workers",
                self.workers,
                f"each worker needs {self._worker()}; the cluster has {has}, and no autoscaler that could add nodes",
            )
        limits = autoscaler_limits()
        if limits and (error := self.unsatisfiable_error(_head_resources(), limits)):
            raise error

    def unsatisfiable_error(self, head: Mapping[str, float], limits: AutoscalerLimits) -> ConfigError | None:
        """Return the error for a run that fits neither on the head nor on nodes that may be added; None if it fits."""
        if self._runs_with(head, limits):
            return None
        possible = [head, *(kind.resources for kind in limits.types if kind.max_nodes)]
        requested = {"gpus": ("GPU", self.gpus_per_worker), "cpus": ("CPU", self.cpus_per_worker)}
        for option, (resource, number) in requested.items():
            largest = max(node.get(resource, 0) for node in possible)
            if number > largest:
                return reject(f"--{option}-per-worker", f"{number:g}", f"the largest node type has {_counted(largest, resource)}")
        if not any(self._workers_on(node) for node in possible):
            return reject("--cpus-per-worker", f"{self.cpus_per_worker:g}", f"no node type has {self._worker()}")
        held = replace(self, workers=1)._runs_with(head, limits)
        return reject(
            "--workers", self.workers, f"each needs {self._worker()}; all nodes of the autoscaler together hold {held} workers"
        )

    def _worker(self) -> str:
        gpus = f" and {_counted(self.gpus_per_worker, 'GPU')}" if self.gpus_per_worker else ""
        return _counted(self.cpus_per_worker, "CPU") + gpus

    def _runs_with(self, head: Mapping[str, float], limits: AutoscalerLimits) -> int:
        """Return the number of runs on the head and on all nodes that may be added; node types that hold most are added first."""
        left, workers = limits.max_nodes, self._workers_on(head)
        for kind in sorted(limits.types, key=lambda kind: self._workers_on(kind.resources), reverse=True):
            workers += self._workers_on(kind.resources) * min(kind.max_nodes, left)
            left -= min(kind.max_nodes, left)
        return workers // self.workers

    def _workers_on(self, resources: Mapping[str, float]) -> int:
        fits = _floor(resources.get("CPU", 0) / self.cpus_per_worker)
        if self.gpus_per_worker:
            fits = min(fits, _workers_on_gpus(resources.get("GPU", 0), self.gpus_per_worker))
        return fits


def _workers_on_gpus(gpus: float, share: float) -> int:
    """Return the number of workers on a node's GPUs. Ray never splits a fraction of a GPU over two GPUs."""
    return int(gpus) * _floor(1 / share) if share < 1 else _floor(gpus / share)


def _counted(number: float, resource: str) -> str:
    return f"{number:g} {resource}{'' if number == 1 else 's'}"


def _floor(quotient: float) -> int:
    """Round down a quotient of numbers that floating point may not represent exactly."""
    return int(quotient + 1e-9)


def alive_nodes() -> list[dict[str, Any]]:
    """Return Ray's records of the current nodes of the cluster. `ray.nodes` also lists nodes that have left."""
    import ray

    return [node for node in ray.nodes() if node["Alive"]]


def _head_resources() -> dict[str, float]:
    resources = (node["Resources"] for node in alive_nodes())
    return next((each for each in resources if cluster.HEAD_RESOURCE in each), {})


def is_own_node_lost() -> bool:
    """Return whether this process's node has left the cluster. If so, this process can start nothing more there."""
    import ray

    own = ray.get_runtime_context().get_node_id()
    return any(node["NodeID"] == own and not node["Alive"] for node in ray.nodes())


def starts_local_ray() -> bool:
    """Return whether Ray would start on this machine, because `local_service.select_ray_cluster` has found no cluster to join."""
    import ray

    return not ray.is_initialized() and os.environ.get("RAY_ADDRESS", "local") in ("", "local")


def is_one_node() -> bool:
    """Return whether the cluster has one node, and no autoscaler that could add more."""
    return len(alive_nodes()) == 1 and not cluster.has_autoscaler()


def autoscaler_limits() -> AutoscalerLimits | None:
    """Return the limits of the cluster's autoscaler; None if there is none, or if it does not publish them, as on Kubernetes."""
    import ray
    import yaml

    path = cluster.autoscaler_config_file(ray.get_runtime_context().gcs_address)
    return parse_cluster_file(yaml.safe_load(path.read_text(encoding="utf-8"))) if path else None


def parse_cluster_file(content: Mapping[str, Any]) -> AutoscalerLimits | None:
    """Return the limits in a cluster file, as `ray up` leaves it on the head.

    None if a node type lists no resources. Those of on-premises machines, for example, are known only once they have joined.
    """
    head, max_nodes = content["head_node_type"], content["max_workers"]
    types = [kind for name, kind in content["available_node_types"].items() if name != head]
    if not types or not all(kind.get("resources") for kind in types):
        return None
    return AutoscalerLimits([NodeType(kind["resources"], kind.get("max_workers", max_nodes)) for kind in types], max_nodes)
