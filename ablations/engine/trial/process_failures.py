"""Causes of crashes of a run's processes.

Ray reports most crashes alike. Each process therefore stores a record in Ray's key-value store when it starts: its node, and that
node's count of out-of-memory kills. After a crash, `explain_failure` compares the record with the current count.
"""

import base64
import json
import re
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import ray
from ray import cloudpickle
from ray.exceptions import GetTimeoutError, OutOfMemoryError, RayActorError, RayError, RpcError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ablations.engine.environment.network import accepts_connections
from ablations.engine.scheduling.ray_internals.key_value_store import kv_delete, kv_get, kv_keys, kv_put

OOM_QUERY_TIMEOUT_SECONDS = 10.0
"""Timeout for a node to return its count of out-of-memory kills, in seconds."""

RECORD_PREFIX = "ablations/process/"
"""Beginning of the keys of process records."""

UNEXPLAINED = "its process was killed"
"""Reason for a crash of unknown cause."""

MAX_NODE_LOSSES = 10
"""Maximum number of nodes that a run may lose without a new epoch. Further losses count as failures of the run: a run that takes
its node down each time would otherwise be retried forever."""

Cause = Literal["process", "memory", "node"]


class ProcessFailure(RayActorError):  # noqa: N818 - "failure" in the name says the same as "error"
    """The crash of a process, with its cause."""

    def __init__(self, reason: str, cause: Cause) -> None:
        super().__init__(error_msg=reason)
        self.reason, self.cause = reason, cause

    @property
    def outcome(self) -> str:
        """Outcome of a run that this failure ends."""
        return "oom" if self.cause == "memory" else "failed"


class NodeLossBudget:
    """The number of nodes that a run has lost since its last new epoch."""

    def __init__(self) -> None:
        self.epoch = self.count = 0

    def charge(self, failure: ProcessFailure, epoch: int) -> ProcessFailure:
        """Count a failure of a run that had reached `epoch`; return it, or a crash in its place if the budget is exceeded."""
        if epoch > self.epoch:
            self.epoch, self.count = epoch, 0
        if failure.cause != "node":
            return failure
        self.count += 1
        if self.count <= MAX_NODE_LOSSES:
            return failure
        return ProcessFailure(f"{failure.reason}, and {self.count - 1} before it without a new epoch", "process")


class ProcessRecord:
    """This process's record in Ray's key-value store, which `explain_failure` reads after a crash."""

    def __init__(self, name: str, **entries: Any) -> None:
        """Store the node ID, the node's count of out-of-memory kills and `entries` under `name`, replacing an earlier record."""
        self.name = name
        self._content: dict[str, Any] = {"node": ray.get_runtime_context().get_node_id(), **entries}
        self._deleted = False
        self._lock = threading.Lock()
        self.begin_run()

    def begin_run(self) -> None:
        """Store the node's count of out-of-memory kills: an earlier one does not explain a failure of the run that begins."""
        self.write(oom_kills=count_oom_kills())

    def update(self, **entries: Any) -> None:
        """Add or replace entries. The next `write` stores them."""
        with self._lock:
            self._content |= entries

    def write(self, **entries: Any) -> None:
        """Add or replace entries, and store the record."""
        with self._lock:  # so that the latest write contains all entries
            self._content |= entries
            if not self._deleted:
                kv_put(_key(self.name), json.dumps(self._content))

    def delete(self) -> None:
        """Delete the record. Later writes do nothing."""
        with self._lock:
            self._deleted = True
            delete_record(self.name)


def read_record(name: str) -> dict[str, Any]:
    """Return the record of a process; empty if there is none."""
    content = kv_get(_key(name))
    return json.loads(content) if content else {}


def actor_entries() -> dict[str, str]:
    """Return entries for the record of this process, an actor, with which its driver can kill it."""
    context = ray.get_runtime_context()
    return {"job": context.get_job_id(), "actor": base64.b64encode(cloudpickle.dumps(context.current_actor)).decode()}


def run_records() -> dict[str, dict[str, Any]]:
    """Return the records that have `actor_entries` of this program's actors, by name."""
    names = [key.removeprefix(RECORD_PREFIX) for key in kv_keys(RECORD_PREFIX)]
    job = ray.get_runtime_context().get_job_id()
    return {name: record for name in names if (record := read_record(name)).get("job") == job}


def kill_hung_process(name: str, seconds: float) -> None:
    """Kill the process of a record with `actor_entries`, and add to the record that it has hung for `seconds`."""
    record = read_record(name)
    if "stopped_seconds" in record or "actor" not in record:  # it was killed before, or has ended
        return
    kv_put(_key(name), json.dumps({**record, "stopped_seconds": seconds}))
    ray.kill(cloudpickle.loads(base64.b64decode(record["actor"])))


def delete_record(name: str) -> None:
    """Delete the record of a process. It stays if the cluster's head does not answer."""
    with suppress(RpcError):
        kv_delete(_key(name))


def explain_failure(names: Sequence[str], errors: Sequence[BaseException] = ()) -> ProcessFailure:
    """Return why one of the named processes crashed, and delete the records of all of them.

    Args:
        names: names of the records; several if any of the processes may be the one that crashed.
        errors: exceptions that Ray raised.
    """
    records = [record for name in names if (record := read_record(name))]
    for name in names:
        delete_record(name)
    for error in errors:
        if isinstance(error, OutOfMemoryError):
            used = re.search(r"was (.+? used / .+? limit)", str(error))
            memory = used[1] if used else "too little memory left"
            return ProcessFailure(f"killed by Ray's memory monitor: its node had {memory}", "memory")
    texts = "\n".join(str(error) for error in errors)
    nodes = {node["NodeID"]: node for node in ray.nodes()}
    involved = [record["node"] for record in records if "node" in record]
    involved += re.findall(r"node has died\. Node Id: (\w+)", texts)
    lost = [nodes[node]["NodeManagerAddress"] for node in involved if node in nodes and not _is_reachable(nodes[node])]
    if lost or any(isinstance(error, RayActorError) and error.preempted for error in errors):
        return ProcessFailure(f"its node {lost[0]} was lost" if lost else "its node was preempted", "node")
    for record in records:
        if "stopped_seconds" in record:
            return ProcessFailure(f"its process stood still for {record['stopped_seconds']:.0f} s", "process")
        if "gpu_error" in record:
            return ProcessFailure(f"its GPU failed: {record['gpu_error']}", "process")
        if "hung_seconds" in record:
            return ProcessFailure(f"made no step for {record['hung_seconds']:g} s", "process")
    if any(_count_oom_kills_on(record["node"]) > record["oom_kills"] for record in records if "node" in record):
        return ProcessFailure("killed by the kernel: its node ran out of memory", "memory")
    return ProcessFailure(UNEXPLAINED, "process")


def count_oom_kills(counters: Path = Path("/proc/vmstat")) -> int:
    """Return how many processes of this machine the kernel has killed for lack of memory, including those in containers.

    Return 0 if the kernel does not publish the number.
    """
    try:
        lines = counters.read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)


def _count_oom_kills_on(node: str) -> int:
    """Return `count_oom_kills` of a node; 0 if the node does not answer."""
    if node == ray.get_runtime_context().get_node_id():
        return count_oom_kills()
    count = ray.remote(num_cpus=0)(count_oom_kills).options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False))
    try:
        return int(ray.get(count.remote(), timeout=OOM_QUERY_TIMEOUT_SECONDS))
    except (RayError, GetTimeoutError):
        return 0


def _is_reachable(node: dict[str, Any]) -> bool:
    """Return whether a node accepts connections. Ray itself takes some 15 s to notice that a node is gone."""
    if not node["Alive"]:
        return False
    return accepts_connections(f"{node['NodeManagerAddress']}:{node['NodeManagerPort']}")


def _key(name: str) -> str:
    return RECORD_PREFIX + name
