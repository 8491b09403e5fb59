"""How fast workers on different nodes add up their gradients, and whether the sum is right."""

import socket
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal

import ray
from ray.exceptions import RayError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from ablations.engine.cluster.doctor.check import Check, listed, ok, unchecked, wrong
from ablations.engine.cluster.doctor.nodes import Node
from ablations.engine.scheduling.ray_internals.cluster import free_resources_by_node

Backend = Literal["gloo", "nccl"]

MEGABYTES = 64
"""Of a tensor. Gradients of ResNet-50 are 102 MB, of ResNet-110 on CIFAR 7 MB."""
REPETITIONS = 5
MIN_GB_PER_SECOND = 0.05
"""Below, each step of ResNet-50 waits for more than two seconds. A network of 1 Gb/s gives about 0.1."""
RESERVE_SECONDS = 5.0
STARTING_SECONDS = 60.0
"""For processes to start and to load torch, which a cold disk makes slow."""
SECONDS = 25.0
"""To meet and to measure."""


@dataclass(frozen=True, kw_only=True)
class Reduction:
    """A measurement of a group."""

    workers: int
    seconds: Sequence[float]
    """Of the slowest worker, for each repetition."""
    correct: bool

    @property
    def gb_per_second(self) -> float:
        """Algorithm bandwidth: size of the tensor divided by the median time."""
        return MEGABYTES / 1000 / statistics.median(self.seconds)


class Member:
    """One worker of the group, in a process of its own."""

    def address(self) -> str:
        """Where the group can meet, if this is its first member; once torch is loaded."""
        import torch.distributed  # noqa: F401

        with socket.socket() as probe:
            probe.bind(("", 0))
            return f"tcp://{ray.util.get_node_ip_address()}:{probe.getsockname()[1]}"

    def reduce(self, backend: Backend, address: str, rank: int, workers: int, seconds: float) -> tuple[list[float], bool]:
        """Seconds of each repetition, and whether every sum was right."""
        import torch
        import torch.distributed as group

        device = torch.device("cuda", 0) if backend == "nccl" else torch.device("cpu")
        group.init_process_group(backend, init_method=address, rank=rank, world_size=workers, timeout=timedelta(seconds=seconds))
        times, correct = [], True
        for _ in range(1 + REPETITIONS):  # the first one connects
            tensor = torch.full((MEGABYTES * 1_000_000 // 4,), float(rank + 1), device=device)
            group.barrier()
            began = time.perf_counter()
            group.all_reduce(tensor)
            total = float(tensor[-1])  # waits for a GPU
            times.append(time.perf_counter() - began)
            correct &= total == workers * (workers + 1) / 2 and bool((tensor == total).all())
        group.destroy_process_group()
        return times[1:], correct


def _reserve(nodes: Sequence[Node], bundle: Mapping[str, float]) -> PlacementGroup | None:
    """Takes this of each node; None if somebody else was faster."""
    selectors = [{"ray.io/node-id": node.id} for node in nodes]
    reserved = placement_group([dict(bundle)] * len(nodes), bundle_label_selector=selectors)
    if reserved.wait(RESERVE_SECONDS):
        return reserved
    remove_placement_group(reserved)
    return None


def measure(reserved: PlacementGroup, backend: Backend) -> Reduction | str:
    """A worker in each part of what is reserved; a string says why there is no result. What is reserved is free afterwards."""
    member: Any = ray.remote(Member)
    bundles = reserved.bundle_specs
    members = [
        member.options(
            num_cpus=bundle.get("CPU", 0),
            num_gpus=bundle.get("GPU", 0),
            scheduling_strategy=PlacementGroupSchedulingStrategy(reserved, placement_group_bundle_index=index),
        ).remote()
        for index, bundle in enumerate(bundles)
    ]
    address = ""
    try:
        address = ray.get([actor.address.remote() for actor in members], timeout=STARTING_SECONDS)[0]
        results = [actor.reduce.remote(backend, address, rank, len(members), SECONDS) for rank, actor in enumerate(members)]
        times, correct = zip(*ray.get(results, timeout=SECONDS), strict=True)
    except ray.exceptions.GetTimeoutError:
        return f"no result after {SECONDS:.0f} s" if address else f"its processes did not start in {STARTING_SECONDS:.0f} s"
    except RayError as error:
        return ([line for line in str(error).splitlines() if line.strip()] or [type(error).__name__])[-1].strip()
    finally:
        for actor in members:
            ray.kill(actor)
        remove_placement_group(reserved)
    return Reduction(workers=len(members), seconds=[max(each) for each in zip(*times, strict=True)], correct=all(correct))


def over_nodes(backend: Backend, resource: str, nodes: Sequence[Node]) -> Check:
    """Of one worker on each node that has a free CPU, or a free GPU; nothing is measured where fewer than two have."""
    name = f"all-reduce {backend}"
    fit = [node for node in nodes if (node.cpus if resource == "CPU" else node.gpus) >= 1]
    if len(fit) < 2:
        return unchecked(name, f"it takes two nodes with a {resource}")
    free = free_resources_by_node()
    idle = [node for node in fit if free is None or free.get(node.id, {}).get(resource, 0) >= 1]
    reserved = _reserve(idle, {resource: 1}) if len(idle) > 1 else None
    if reserved is None:
        return unchecked(name, f"busy: of {len(fit)} nodes with a {resource} fewer than two have one free")
    check = judge(backend, measure(reserved, backend))
    if len(idle) < len(fit) and check.state == "ok":
        return ok(name, f"{check.value}; busy, so left out: {listed(node.name for node in fit if node not in idle)}")
    return check


def judge(backend: Backend, reduction: Reduction | str) -> Check:
    """Of one group."""
    name = f"all-reduce {backend}"
    remedy = (
        f"open all ports between nodes; {backend.upper()}_SOCKET_IFNAME names the network's interface, where a node has several"
    )
    if isinstance(reduction, str):
        return wrong(name, reduction, remedy)
    value = f"{reduction.gb_per_second:.2f} GB/s (median of {len(reduction.seconds)}, {MEGABYTES} MB, {reduction.workers} workers)"
    if not reduction.correct:
        return wrong(
            name,
            f"the sum is wrong; {value}",
            "take out one node after the other until it is right: its memory or network is broken",
        )
    if reduction.gb_per_second < MIN_GB_PER_SECOND:
        return wrong(name, f"{value}, below {MIN_GB_PER_SECOND}", f"--workers 1 does without; {remedy}")
    return ok(name, value)
