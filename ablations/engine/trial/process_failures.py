"""Why a process died, in one line. Ray tells of most deaths alike, so each process leaves with Ray, when it begins, what there is
to compare with later: its node, and how often that node's kernel has killed for want of memory."""

import json
import re
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import ray
from ray.exceptions import GetTimeoutError, OutOfMemoryError, RayActorError, RayError, RpcError

# Ray's own store of small values, kept by the head: every process of every node reaches it. There is no public door to it.
from ray.experimental.internal_kv import _internal_kv_del, _internal_kv_get, _internal_kv_put
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ablations.engine.environment.network import accepts_connections

OOM_QUERY_TIMEOUT_SECONDS = 10.0

RECORD_PREFIX = "ablations/process/"
"""What the names begin with under which processes leave word."""

UNEXPLAINED = "its process was killed"
"""The reason for a death of which no more is known."""

MAX_NODE_LOSSES = 10
"""How many nodes a run may lose without a new epoch before further losses count as its failures: a run that takes its node down
each time would go on for ever."""

Cause = Literal["process", "memory", "node"]


class ProcessFailure(RayActorError):  # noqa: N818 - it is one, and says so
    """The death of a process, and why.

    Tune and Train take one that is `preempted` for the machine's fault, and do not count it as a failure: so is the loss of a node.
    """

    def __init__(self, reason: str, cause: Cause) -> None:
        super().__init__(error_msg=reason, preempted=cause == "node")
        self.reason, self.cause = reason, cause

    @property
    def outcome(self) -> str:
        """How a run ends that ends by this."""
        return "oom" if self.cause == "memory" else "failed"


class NodeLossBudget:
    """The nodes that a run has lost since its last new epoch."""

    def __init__(self) -> None:
        self.epoch = self.count = 0

    def charge(self, death: ProcessFailure, epoch: int) -> ProcessFailure:
        """A death of a run that had reached this epoch; a failure where it is the loss of one node too many."""
        if epoch > self.epoch:
            self.epoch, self.count = epoch, 0
        if death.cause != "node":
            return death
        self.count += 1
        if self.count <= MAX_NODE_LOSSES:
            return death
        return ProcessFailure(f"{death.reason}, and {self.count - 1} before it without a new epoch", "process")


class ProcessRecord:
    """This process's record in Ray's key-value store, which `explain` reads when the process has died."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._content: dict[str, Any] = {"node": ray.get_runtime_context().get_node_id(), "oom_kills": count_oom_kills()}
        self._erased = False
        self._lock = threading.Lock()
        self.write()

    def update(self, **more: Any) -> None:
        """Add entries, or replace them. They are stored with the next `write`."""
        with self._lock:
            self._content |= more

    def write(self, **more: Any) -> None:
        """Add entries, or replace them, and store all."""
        with self._lock:  # what is written last is complete
            self._content |= more
            if not self._erased:
                _internal_kv_put(_key(self.name), json.dumps(self._content), overwrite=True)

    def erase(self) -> None:
        """Take the record away, for good."""
        with self._lock:
            self._erased = True
            delete_record(self.name)


def read_record(name: str) -> dict[str, Any]:
    """Return the record of the process of this name; empty if there is none."""
    content = _internal_kv_get(_key(name))
    return json.loads(content) if content else {}


def record_stall(name: str, seconds: float) -> None:
    """Add to the record of another process that it stood still for so many seconds, before it is killed for that."""
    _internal_kv_put(_key(name), json.dumps({**read_record(name), "stopped_seconds": seconds}), overwrite=True)


def delete_record(name: str) -> None:
    """Take away the record of this name. It is left where the cluster's head does not answer just now."""
    with suppress(RpcError):
        _internal_kv_del(_key(name))


def explain_failure(names: Sequence[str], errors: Sequence[BaseException] = ()) -> ProcessFailure:
    """Why one of these processes died; what they left is taken away.

    Args:
        names: under which they left word; several if any of them may be the one.
        errors: what Ray said.
    """
    words = [word for name in names if (word := read_record(name))]
    for name in names:
        delete_record(name)
    for error in errors:
        if isinstance(error, OutOfMemoryError):
            used = re.search(r"was (.+? used / .+? limit)", str(error))
            return ProcessFailure(
                f"killed by Ray's memory monitor: its node had {used[1] if used else 'too little left'}", "memory"
            )
    texts = "\n".join(str(error) for error in errors)
    nodes = {node["NodeID"]: node for node in ray.nodes()}
    on = [word["node"] for word in words if "node" in word] + re.findall(r"node has died\. Node Id: (\w+)", texts)
    lost = [nodes[node]["NodeManagerAddress"] for node in on if node in nodes and not _answers(nodes[node])]
    if lost or any(isinstance(error, RayActorError) and error.preempted for error in errors):
        return ProcessFailure(f"its node {lost[0]} was lost" if lost else "its node was taken away", "node")
    for word in words:
        if "stopped_seconds" in word:
            return ProcessFailure(f"its process stood still for {word['stopped_seconds']:.0f} s", "process")
        if "gpu_error" in word:
            return ProcessFailure(f"its GPU failed: {word['gpu_error']}", "process")
        if "hung_seconds" in word:
            return ProcessFailure(f"made no step for {word['hung_seconds']:g} s", "process")
    if any(_count_oom_kills_on(word["node"]) > word["oom_kills"] for word in words if "node" in word):
        return ProcessFailure("killed by the kernel: its node ran out of memory", "memory")
    return ProcessFailure(UNEXPLAINED, "process")


def count_oom_kills(counters: Path = Path("/proc/vmstat")) -> int:
    """How many processes the kernel of this machine has killed for want of memory, its own or a container's; 0 if it does not
    say."""
    try:
        lines = counters.read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)


def _count_oom_kills_on(node: str) -> int:
    if node == ray.get_runtime_context().get_node_id():
        return count_oom_kills()
    read = ray.remote(num_cpus=0)(count_oom_kills).options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False))
    try:
        return int(ray.get(read.remote(), timeout=OOM_QUERY_TIMEOUT_SECONDS))
    except (RayError, GetTimeoutError):
        return 0


def _answers(node: dict[str, Any]) -> bool:
    """Whether a node is there. That one is not, Ray itself finds out only after some 15 s."""
    if not node["Alive"]:
        return False
    return accepts_connections(f"{node['NodeManagerAddress']}:{node['NodeManagerPort']}")


def _key(name: str) -> str:
    return RECORD_PREFIX + name
