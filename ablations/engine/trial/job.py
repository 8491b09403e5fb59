"""A run as it is sent to the process that trains it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    pass


Report = Callable[[dict[str, Any]], None]


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a trial process needs to know of a run: plain values, sent through Tune."""

    fingerprint: str
    spec: Mapping[str, Any]
    """`RunSpec.flat()`, resolved."""
    data_version: str
    folder: str
    """Name of the checkpoint folder in `storage`."""
    storage: str
    cache: str
    """Folder of decoded data, on nodes that do not say themselves where theirs is, by `RESNET_ABLATIONS_HOME`."""
    cpus_per_worker: float
    gpus_per_worker: float
    max_failures: int = 3
    """How often a run is retried after one of its processes crashed. The loss of a node does not count: see
    `process_failures.NodeLossBudget`."""
    placement: str = "pack"
    """How Ray lays a group's workers onto nodes: `pack`, on as few as it can, or `spread`, on as many."""
    hang_timeout: float = 600.0
    """Seconds without a step after which a process counts as hung."""
    download: bool = False
    """Whether data that this node lacks may be downloaded."""
    branch: str = ""
    """Name of the folder of the run whose checkpoint of epoch `branch_epoch` this run starts from, if it has none of its own and
    that one is still there. Up to that epoch both train alike, so that the result is the same."""
    branch_epoch: int = 0
