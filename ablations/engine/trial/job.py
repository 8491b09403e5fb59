"""A run as it is sent to the process that trains it."""

import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Report = dict[str, Any]
"""A report of a run to the driver: an epoch, a restart of its group, or its outcome."""
PROCESS_TAG = "process"
"""Tag of a run: `MACHINE:WORKER ID` of each process that trained it, whose output Ray keeps under this ID."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """The data that a trial's process needs about its run: plain values, which Tune sends to it."""

    fingerprint: str
    spec: Mapping[str, Any]
    """Resolved configuration of the run, as `Spec.flat()` returns it."""
    data_version: str
    """Version of the data set that the study was planned with."""
    folder: str
    """Name of the run's checkpoint folder in `storage`."""
    storage: str
    """Folder or address that holds the checkpoints of all runs."""
    cache: str
    """Folder of decoded data on nodes that do not set `RESNET_ABLATIONS_HOME`."""
    cpus_per_worker: float
    gpus_per_worker: float
    max_failures: int = 3
    """Number of retries after a crash of one of the run's processes. Lost nodes do not count: see
    `process_failures.NodeLossBudget`."""
    hang_timeout: float = 600.0
    """Time without a step after which a process counts as hung, in seconds."""
    download: bool = False
    """True if data that a node lacks may be downloaded."""
    workload: bytes = b""
    """The study's trainings as `Workload.pickled` returns them; empty for the built-in image classification. The trial's process
    fills it in, since all runs of a study share it."""
    predictions: bool = False
    """True if the predictions of the final epoch on the test set are reported."""
    branch: str = ""
    """Checkpoint folder of another run, from whose epoch `branch_epoch` this run starts if it has no checkpoint of its own.

    Up to that epoch both runs train alike, so the result is the same, whether or not the checkpoint still exists."""
    branch_epoch: int = 0


def process_name() -> dict[str, str]:
    """Return `PROCESS_TAG` with the name of this process, by which `ablations logs` finds its output; empty outside Ray."""
    ray = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        return {}
    return {PROCESS_TAG: f"{socket.gethostname()}:{ray.get_runtime_context().get_worker_id()}"}
