"""Asks every node of a cluster something, all at once, and never waits longer than it is told to.

What is asked is a function of this package with its arguments: it runs in a Ray task on its node, which takes no CPU and no GPU
from whatever else runs there.
"""

import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import ray
from ray.exceptions import LocalRayletDiedError, NodeDiedError, RayError, RayTaskError, TaskUnschedulableError, WorkerCrashedError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ablations.engine.environment.network import accepts_connections
from ablations.engine.scheduling.capacity import alive_nodes
from ablations.engine.scheduling.ray_internals.cluster import HEAD_RESOURCE

Answer = TypeVar("Answer")


@dataclass(frozen=True, kw_only=True)
class Node:
    """A node that Ray takes for alive."""

    id: str
    name: str
    """Its address; with the beginning of its id where several nodes have that."""
    address: str
    """Where its raylet listens."""
    head: bool
    cpus: float
    gpus: float


@dataclass(frozen=True)
class Silence:
    """Why a node gave no answer."""

    reason: str
    lost: bool
    """Whether the node, or the process that was asked, is gone: nothing that a remedy would help."""


def alive() -> list[Node]:
    """The nodes of the cluster, the head first."""
    found = alive_nodes()
    addresses = Counter(node["NodeManagerAddress"] for node in found)
    nodes = []
    for node in found:
        address, resources = node["NodeManagerAddress"], node["Resources"]
        nodes.append(
            Node(
                id=node["NodeID"],
                name=address if addresses[address] == 1 else f"{address} ({node['NodeID'][:6]})",
                address=f"{address}:{node['NodeManagerPort']}",
                head=HEAD_RESOURCE in resources,
                cpus=resources.get("CPU", 0),
                gpus=resources.get("GPU", 0),
            )
        )
    return sorted(nodes, key=lambda node: (not node.head, node.name))


class Question(Generic[Answer]):
    """A function for each node, which run from now on."""

    def __init__(self, functions: Mapping[Node, Callable[[], Answer]]) -> None:
        task = ray.remote(num_cpus=0, max_retries=0)(_call)
        self._asked = {
            task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node.id, soft=False)).remote(function): node
            for node, function in functions.items()
        }

    def answers(self, seconds: float) -> tuple[dict[Node, Answer], dict[Node, Silence]]:
        """What the nodes answered within this time from now, and why the others did not."""
        done, late = ray.wait(list(self._asked), num_returns=len(self._asked), timeout=max(seconds, 0)) if self._asked else ([], [])
        answers: dict[Node, Answer] = {}
        silent: dict[Node, Silence] = {}
        for ref in done:
            try:
                answers[self._asked[ref]] = ray.get(ref)
            except RayError as error:
                silent[self._asked[ref]] = _silence(error)
        for ref in late:
            ray.cancel(ref, force=True)
            node = self._asked[ref]
            silent[node] = Silence(f"does not answer within {seconds:.0f} s", lost=not accepts_connections(node.address))
        return answers, silent


def ask(functions: Mapping[Node, Callable[[], Answer]], seconds: float) -> tuple[dict[Node, Answer], dict[Node, Silence]]:
    """Asks, and waits for the answers."""
    return Question(functions).answers(seconds)


def skews(nodes: list[Node], rounds: int, seconds: float) -> dict[Node, float]:
    """By how many seconds each node's clock is off this process's, at least: no more than the way there and back can hide.

    Of a few rounds the one that hides least is taken. A node that does not answer is left out.
    """
    best: dict[Node, float] = {}
    for _ in range(rounds):
        sent = time.time()
        answers, _ = ask(dict.fromkeys(nodes, time.time), seconds)
        received = time.time()
        for node, there in answers.items():
            off = min(there - sent, 0) + max(there - received, 0)
            best[node] = max(best.get(node, 0.0), off, key=abs)
    return best


def temporary_folder() -> str:
    """Where Ray keeps logs, sockets and what it spills, on this node."""
    return str(ray.get_runtime_context().get_temp_dir())


def _call(function: Callable[[], Answer]) -> Answer:
    return function()


def _silence(error: RayError) -> Silence:
    lost = isinstance(error, (LocalRayletDiedError, NodeDiedError, TaskUnschedulableError, WorkerCrashedError))
    cause: Any = error.cause if isinstance(error, RayTaskError) and error.cause else error
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    # Of a function that cannot be imported there, Ray hands on the traceback, whose last line says why.
    said = lines[-1] if isinstance(error, RayTaskError) and lines else "".join(lines[:1])
    return Silence("is gone" if lost else f"cannot run this project's code ({said or type(cause).__name__})", lost)
