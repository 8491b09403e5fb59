"""Run functions on every node of a cluster at the same time, within a time limit.

The functions must be importable from this package. Each runs in a Ray task on its node. The task reserves no CPU and no GPU, so
that it also runs on a busy node.
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
from ablations.engine.scheduling import capacity

Answer = TypeVar("Answer")


@dataclass(frozen=True, kw_only=True)
class Node:
    """A node that Ray considers alive."""

    id: str
    name: str
    """The node's address. If several nodes share an address, the first digits of the node ID follow it."""
    address: str
    """Host and port on which the node's raylet listens."""
    head: bool
    cpus: float
    gpus: float


@dataclass(frozen=True)
class NoAnswer:
    """The reason why a node returned no result."""

    reason: str
    lost: bool
    """True if the node or the process that ran the function is gone, so that there is nothing to repair on it."""


def alive_nodes() -> list[Node]:
    """Return the nodes of the cluster, the head first."""
    found = capacity.alive_nodes()
    addresses = Counter(node["NodeManagerAddress"] for node in found)
    nodes = []
    for node in found:
        address, resources = node["NodeManagerAddress"], node["Resources"]
        nodes.append(
            Node(
                id=node["NodeID"],
                name=address if addresses[address] == 1 else f"{address} ({node['NodeID'][:6]})",
                address=f"{address}:{node['NodeManagerPort']}",
                head=capacity.HEAD_RESOURCE in resources,
                cpus=resources.get("CPU", 0),
                gpus=resources.get("GPU", 0),
            )
        )
    return sorted(nodes, key=lambda node: (not node.head, node.name))


class NodeTasks(Generic[Answer]):
    """One running Ray task for each node.

    Args:
        functions: the function that each node runs. The tasks start at once.
    """

    def __init__(self, functions: Mapping[Node, Callable[[], Answer]]) -> None:
        task = ray.remote(num_cpus=0, max_retries=0)(_call)
        self._node_by_result = {
            task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node.id, soft=False)).remote(function): node
            for node, function in functions.items()
        }

    def results(self, timeout_seconds: float) -> tuple[dict[Node, Answer], dict[Node, NoAnswer]]:
        """Return the results that arrive within the time limit, and why the other nodes returned none. Cancel unfinished tasks."""
        results = list(self._node_by_result)
        done, late = ray.wait(results, num_returns=len(results), timeout=max(timeout_seconds, 0)) if results else ([], [])
        answers: dict[Node, Answer] = {}
        no_answers: dict[Node, NoAnswer] = {}
        for ref in done:
            try:
                answers[self._node_by_result[ref]] = ray.get(ref)
            except RayError as error:
                no_answers[self._node_by_result[ref]] = _explain_no_answer(error)
        for ref in late:
            ray.cancel(ref, force=True)
            node = self._node_by_result[ref]
            # Ray itself needs some 15 s to notice that a machine is gone.
            no_answers[node] = NoAnswer(
                f"does not answer within {timeout_seconds:.0f} s", lost=not accepts_connections(node.address)
            )
        return answers, no_answers


def run_on_nodes(
    functions: Mapping[Node, Callable[[], Answer]], timeout_seconds: float
) -> tuple[dict[Node, Answer], dict[Node, NoAnswer]]:
    """Run a function on each node; return the results, and why the other nodes returned none."""
    return NodeTasks(functions).results(timeout_seconds)


def clock_skews(nodes: list[Node], rounds: int, timeout_seconds: float) -> dict[Node, float]:
    """Return a lower bound on the clock skew of each node relative to this process, in seconds. Positive: the node is ahead.

    A node's clock reading must lie between the moments of request and reply; only what lies outside counts as skew. The largest
    bound of several rounds is the tightest, because a short round trip hides least. Nodes that do not answer are left out.
    """
    best: dict[Node, float] = {}
    for _ in range(rounds):
        sent = time.time()
        answers, _ = run_on_nodes(dict.fromkeys(nodes, time.time), timeout_seconds)
        received = time.time()
        for node, reading in answers.items():
            skew = min(reading - sent, 0) + max(reading - received, 0)
            best[node] = max(best.get(node, 0.0), skew, key=abs)
    return best


def ray_temp_folder() -> str:
    """Return the folder of Ray's logs, sockets and spilled objects on this node."""
    return str(ray.get_runtime_context().get_temp_dir())


def _call(function: Callable[[], Answer]) -> Answer:
    return function()


def _explain_no_answer(error: RayError) -> NoAnswer:
    lost = isinstance(error, (LocalRayletDiedError, NodeDiedError, TaskUnschedulableError, WorkerCrashedError))
    cause: Any = error.cause if isinstance(error, RayTaskError) and error.cause else error
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    # If a node cannot import the function, Ray returns a traceback. Its last line has the reason.
    reason = lines[-1] if isinstance(error, RayTaskError) and lines else "".join(lines[:1])
    return NoAnswer("is gone" if lost else f"cannot run this project's code ({reason or type(cause).__name__})", lost)
