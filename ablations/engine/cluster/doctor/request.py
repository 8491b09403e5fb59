"""What a doctor is asked to look at."""

from dataclasses import dataclass

from resnet_core import DataConfig


@dataclass(frozen=True, kw_only=True)
class Request:
    """What shall be checked."""

    data: DataConfig
    storage: str
    tracking_uri: str
    workers: int | None
    """Workers to ask for, as a run would; None: the nodes that are there."""
    cpus_per_worker: float
    gpus_per_worker: float
    wait: float
    """Seconds, for those workers."""
