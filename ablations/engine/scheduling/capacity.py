"""What a cluster holds: now, and when its autoscaler has brought all the nodes that it may."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import ray
import yaml

from resnet_core.fields import ConfigError, reject


@dataclass(frozen=True)
class NodeType:
    """Nodes that are alike."""

    resources: Mapping[str, float]
    """Of each, as Ray counts them: `CPU`, `GPU`."""
    max_nodes: int
    """How many there may be."""


@dataclass(frozen=True)
class AutoscalerLimits:
    """What an autoscaler may bring."""

    types: Sequence[NodeType]
    max_nodes: int
    """Nodes of all types together."""


@dataclass(frozen=True, kw_only=True)
class RunResources:
    """What one run takes from the cluster."""

    workers: int = 1
    cpus_per_worker: float = 1
    gpus_per_worker: float = 0

    def current_capacity(self) -> int:
        """How many such runs the cluster holds at a time, as it is now, if it does nothing else."""
        return sum(self._workers_on(node) for node in _alive()) // self.workers

    def max_capacity(self) -> int | None:
        """The same with all the nodes that the autoscaler may bring; None where it does not say which."""
        growth = autoscaler_limits()
        return None if growth is None else max(self.current_capacity(), self._runs_with(_head(), growth))

    def check_machine(self) -> None:
        """Raise ConfigError if a Ray that starts on this machine cannot hold one run. Whoever joins a cluster asks that one."""
        if not starts_local_ray():
            return
        import torch  # takes a second: only where a run is about to start

        here = {"CPU": os.cpu_count() or 1, "GPU": torch.cuda.device_count()}
        held = self._workers_on(here)
        if held >= self.workers:
            return
        counts = " and ".join(_counted(number, resource) for resource, number in here.items())
        has = f"this machine has {counts}, and RAY_ADDRESS names no cluster"
        for option, number, most in (
            ("--gpus-per-worker", self.gpus_per_worker, here["GPU"]),
            ("--cpus-per-worker", self.cpus_per_worker, here["CPU"]),
        ):
            if number > most:
                raise reject(option, f"{number:g}", has)
        raise reject("--workers", self.workers, f"each needs {self._worker()}; {has}")

    def check(self) -> None:
        """Raises ConfigError if the cluster can never hold one run."""
        if self.current_capacity():
            return
        if not has_autoscaler():
            total = ray.cluster_resources()
            has = f"{total.get('CPU', 0):g} CPUs and {total.get('GPU', 0):g} GPUs on {len(_alive())} nodes"
            raise reject(
                "--workers", self.workers, f"needs {self._worker()} for each worker; the cluster has {has} and does not grow"
            )
        growth = autoscaler_limits()
        if growth and (refusal := self.unsatisfiable_error(_head(), growth)):
            raise refusal

    def unsatisfiable_error(self, head: Mapping[str, float], growth: AutoscalerLimits) -> ConfigError | None:
        """Why a cluster of this head and the nodes that may come can never hold one run; None if it can."""
        if self._runs_with(head, growth):
            return None
        possible = [head, *(kind.resources for kind in growth.types if kind.max_nodes)]
        asked = {"gpus": ("GPU", self.gpus_per_worker), "cpus": ("CPU", self.cpus_per_worker)}
        for option, (resource, number) in asked.items():
            most = max(node.get(resource, 0) for node in possible)
            if number > most:
                return reject(f"--{option}-per-worker", f"{number:g}", f"the largest node type has {_counted(most, resource)}")
        if not any(self._workers_on(node) for node in possible):
            return reject("--cpus-per-worker", f"{self.cpus_per_worker:g}", f"no node type has {self._worker()}")
        held = replace(self, workers=1)._runs_with(head, growth)
        return reject("--workers", self.workers, f"each needs {self._worker()}; all nodes that may come hold {held} of them")

    def runs_on(self, resources: Mapping[str, float]) -> int:
        """Return how many such runs a single node with these resources (`CPU`, `GPU`) holds at a time."""
        return self._workers_on(resources) // self.workers

    def _worker(self) -> str:
        return f"{self.cpus_per_worker:g} CPUs" + (f" and {self.gpus_per_worker:g} GPUs" if self.gpus_per_worker else "")

    def _runs_with(self, head: Mapping[str, float], growth: AutoscalerLimits) -> int:
        """Runs on the head and all nodes that may come, if those that hold most do."""
        left, workers = growth.max_nodes, self._workers_on(head)
        for kind in sorted(growth.types, key=lambda kind: self._workers_on(kind.resources), reverse=True):
            workers += self._workers_on(kind.resources) * min(kind.max_nodes, left)
            left -= min(kind.max_nodes, left)
        return workers // self.workers

    def _workers_on(self, resources: Mapping[str, float]) -> int:
        fits = _whole(resources.get("CPU", 0) / self.cpus_per_worker)
        if self.gpus_per_worker:
            fits = min(fits, _workers_on_gpus(resources.get("GPU", 0), self.gpus_per_worker))
        return fits


def _workers_on_gpus(gpus: float, share: float) -> int:
    """A worker that takes a share of a GPU has it on one."""
    return int(gpus) * _whole(1 / share) if share < 1 else _whole(gpus / share)


def _counted(number: float, resource: str) -> str:
    return f"{number:g} {resource}{'' if number == 1 else 's'}"


def _whole(number: float) -> int:
    """The integer below, of a quotient of numbers that may not be exact."""
    return int(number + 1e-9)


def _alive() -> list[dict[str, float]]:
    """The resources of each node that has not left; Ray keeps a memory of those."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _head() -> dict[str, float]:
    return next((node for node in _alive() if "node:__internal_head__" in node), {})


def is_own_node_lost() -> bool:
    """Return whether the node of this process has left the cluster: then nothing more can be started from here."""
    own = ray.get_runtime_context().get_node_id()
    return any(node["NodeID"] == own and not node["Alive"] for node in ray.nodes())


def starts_local_ray() -> bool:
    """Return whether Ray would start on this machine: `local_service.select_ray_cluster` has found no cluster to join."""
    return not ray.is_initialized() and os.environ.get("RAY_ADDRESS", "local") in ("", "local")


def is_one_node() -> bool:
    """Whether this node is all there is and will be."""
    return len(_alive()) == 1 and not has_autoscaler()


def has_autoscaler() -> bool:
    """Whether the cluster has an autoscaler, which may bring what is missing."""
    return _autoscales_by_version_2() or _autoscales_by_version_1()


def _autoscales_by_version_2() -> bool:
    """What `ray up` and KubeRay start. It reports to Ray's control, and every node of its own says of which type it is."""
    from ray.core.generated.autoscaler_pb2 import GetClusterStatusReply
    from ray.experimental.internal_kv import internal_kv_get_gcs_client

    status = GetClusterStatusReply.FromString(internal_kv_get_gcs_client().get_cluster_status(timeout_s=5))
    nodes = status.cluster_resource_state.node_states
    return status.autoscaling_state.autoscaler_state_version > 0 and any(node.ray_node_type_name for node in nodes)


def _autoscales_by_version_1() -> bool:
    from ray._private.ray_constants import DEBUG_AUTOSCALING_STATUS
    from ray.experimental.internal_kv import _internal_kv_get

    # Every head publishes a status. Without an autoscaler, each node is there a type of its own, `node_<its id>`.
    report = json.loads(_internal_kv_get(DEBUG_AUTOSCALING_STATUS) or "{}").get("autoscaler_report") or {}
    types = {**(report.get("active_nodes") or {}), **(report.get("idle_nodes") or {})}
    ids = {f"node_{node['NodeID']}" for node in ray.nodes()}
    return any(name not in ids for name in types)


def autoscaler_limits() -> AutoscalerLimits | None:
    """What the autoscaler may bring; None where there is none, or where it does not say (on Kubernetes)."""
    path = _configuration(ray.get_runtime_context().gcs_address)
    return _parse_cluster_file(yaml.safe_load(path.read_text(encoding="utf-8"))) if path else None


def _parse_cluster_file(configuration: Mapping[str, Any]) -> AutoscalerLimits | None:
    """What a cluster file says, as `ray up` leaves it on the head."""
    head, most = configuration["head_node_type"], configuration["max_workers"]
    workers = [kind for name, kind in configuration["available_node_types"].items() if name != head]
    if not workers or not all(kind.get("resources") for kind in workers):
        return None  # what machines on premises have, say, is known when they are there
    return AutoscalerLimits([NodeType(kind["resources"], kind.get("max_workers", most)) for kind in workers], most)


def _configuration(address: str) -> Path | None:
    """The file of the autoscaler of this cluster. Ray itself keeps no copy of it; jobs' drivers run where the autoscaler does."""
    for process in psutil.process_iter(["cmdline"]):
        options = dict(argument.partition("=")[::2] for argument in process.info["cmdline"] or ())
        if options.get("--gcs-address") == address and "--autoscaling-config" in options:
            return Path(options["--autoscaling-config"]).expanduser()
    return None
