"""Check of the all-reduce between nodes: bandwidth, and correctness of the sum."""

import socket
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal

import ray
from ray.exceptions import RayError
from ray.util.placement_group import PlacementGroup, placement_group, placement_group_table, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from ablations.engine.cluster.doctor.check import Check, failed, join_names, not_checked, passed
from ablations.engine.cluster.doctor.nodes import Node

Backend = Literal["gloo", "nccl"]

TENSOR_MB = 64
"""Size of the reduced tensor, in MB. The gradients of ResNet-50 take 102 MB, those of ResNet-110 on CIFAR 7 MB."""
REPETITIONS = 5
"""Number of timed all-reduces."""
MIN_GB_PER_SECOND = 0.05
"""Minimum bandwidth. Below it, each step of ResNet-50 waits more than 2 seconds. A 1 Gb/s network reaches about 0.1 GB/s."""
RESERVATION_TIMEOUT_SECONDS = 5.0
"""Time limit for reserving a worker on each node. Nodes that have none free by then are left out."""
RESERVATION_POLL_SECONDS = 0.05
"""Interval between looks at what is reserved."""
START_TIMEOUT_SECONDS = 60.0
"""Time limit for starting the processes and importing torch, which is slow from a cold disk."""
MEASUREMENT_TIMEOUT_SECONDS = 25.0
"""Time limit for the rendezvous and the measurement."""


@dataclass(frozen=True, kw_only=True)
class AllReduceMeasurement:
    """Times and correctness of the all-reduces of one group."""

    workers: int
    seconds: Sequence[float]
    """Time of the slowest worker in each repetition."""
    correct: bool

    @property
    def gb_per_second(self) -> float:
        """Algorithm bandwidth: tensor size divided by the median time."""
        return TENSOR_MB / 1000 / statistics.median(self.seconds)


class GroupMember:
    """One worker of the group, in a process of its own."""

    def address(self) -> str:
        """Import torch and return an address at which this worker, as rank 0, can host the rendezvous."""
        import torch.distributed  # noqa: F401

        with socket.socket() as probe:
            probe.bind(("", 0))
            return f"tcp://{ray.util.get_node_ip_address()}:{probe.getsockname()[1]}"

    def reduce(self, backend: Backend, address: str, rank: int, workers: int, timeout_seconds: float) -> tuple[list[float], bool]:
        """Run the all-reduces; return the seconds of each repetition, and whether every sum was correct."""
        import torch
        import torch.distributed as group

        device = torch.device("cuda", 0) if backend == "nccl" else torch.device("cpu")
        limit = timedelta(seconds=timeout_seconds)
        group.init_process_group(backend, init_method=address, rank=rank, world_size=workers, timeout=limit)
        times, correct = [], True
        for _ in range(1 + REPETITIONS):  # the first one opens the connections and is not counted
            tensor = torch.full((TENSOR_MB * 1_000_000 // 4,), float(rank + 1), device=device)
            group.barrier()
            began = time.perf_counter()
            group.all_reduce(tensor)
            total = float(tensor[-1])  # waits until a GPU has finished
            times.append(time.perf_counter() - began)
            correct &= total == workers * (workers + 1) / 2 and bool((tensor == total).all())
        group.destroy_process_group()
        return times[1:], correct


def reserve(nodes: Sequence[Node], bundle: Mapping[str, float]) -> dict[str, PlacementGroup]:
    """Reserve a bundle on each node that has one free; return the placement groups, by node ID."""
    waiting = {node.id: placement_group([dict(bundle)], bundle_label_selector=[{"ray.io/node-id": node.id}]) for node in nodes}
    reserved: dict[str, PlacementGroup] = {}
    deadline = time.monotonic() + RESERVATION_TIMEOUT_SECONDS
    while waiting and time.monotonic() < deadline:
        created = {node for node, group in waiting.items() if placement_group_table(group)["state"] == "CREATED"}
        reserved |= {node: waiting.pop(node) for node in created}
        time.sleep(RESERVATION_POLL_SECONDS if waiting else 0)
    for group in waiting.values():
        remove_placement_group(group)
    return reserved


def measure(reserved: Sequence[PlacementGroup], backend: Backend) -> AllReduceMeasurement | str:
    """Measure a group with one worker in each bundle of the placement groups, then remove the placement groups.

    Returns:
        The measurement, or a string that says why there is none.
    """
    member: Any = ray.remote(GroupMember)
    members = [
        member.options(
            num_cpus=bundle.get("CPU", 0),
            num_gpus=bundle.get("GPU", 0),
            scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=index),
        ).remote()
        for group in reserved
        for index, bundle in enumerate(group.bundle_specs)
    ]
    address = ""
    limit = MEASUREMENT_TIMEOUT_SECONDS
    try:
        address = ray.get([actor.address.remote() for actor in members], timeout=START_TIMEOUT_SECONDS)[0]
        results = [actor.reduce.remote(backend, address, rank, len(members), limit) for rank, actor in enumerate(members)]
        times, correct = zip(*ray.get(results, timeout=limit), strict=True)
    except ray.exceptions.GetTimeoutError:
        return f"no result after {limit:.0f} s" if address else f"the processes did not start within {START_TIMEOUT_SECONDS:.0f} s"
    except RayError as error:
        return ([line for line in str(error).splitlines() if line.strip()] or [type(error).__name__])[-1].strip()
    finally:
        for actor in members:
            ray.kill(actor)
        for group in reserved:
            remove_placement_group(group)
    slowest = [max(each) for each in zip(*times, strict=True)]
    return AllReduceMeasurement(workers=len(members), seconds=slowest, correct=all(correct))


def check_across_nodes(backend: Backend, resource: str, nodes: Sequence[Node]) -> Check:
    """Check a group with one worker on each node that has a free CPU or GPU. With fewer than two, measure nothing."""
    name = f"all-reduce {backend}"
    fit = [node for node in nodes if (node.cpus if resource == "CPU" else node.gpus) >= 1]
    if len(fit) < 2:
        return not_checked(name, f"needs two nodes with a {resource}")
    reserved = reserve(fit, {resource: 1})
    if len(reserved) < 2:
        for group in reserved.values():
            remove_placement_group(group)
        return not_checked(name, f"the cluster is busy: fewer than two of {len(fit)} nodes have a free {resource}")
    check = evaluate(backend, measure(list(reserved.values()), backend))
    if len(reserved) < len(fit) and check.status == "ok":
        busy = join_names(node.name for node in fit if node.id not in reserved)
        return passed(name, f"{check.detail}; not measured because busy: {busy}")
    return check


def evaluate(backend: Backend, measurement: AllReduceMeasurement | str) -> Check:
    """Return the verdict on one group."""
    name = f"all-reduce {backend}"
    remedy = (
        f"open all ports between the nodes; if a node has several network interfaces, name the right one in "
        f"{backend.upper()}_SOCKET_IFNAME"
    )
    if isinstance(measurement, str):
        return failed(name, measurement, remedy)
    detail = (
        f"{measurement.gb_per_second:.2f} GB/s (median of {len(measurement.seconds)}, {TENSOR_MB} MB, "
        f"{measurement.workers} workers)"
    )
    if not measurement.correct:
        return failed(
            name,
            f"the sum is wrong; {detail}",
            "a node's memory or network is broken: take out one node at a time until the sum is right",
        )
    if measurement.gb_per_second < MIN_GB_PER_SECOND:
        return failed(name, f"{detail}; at least {MIN_GB_PER_SECOND} are needed", f"{remedy}; --workers 1 needs no all-reduce")
    return passed(name, detail)
