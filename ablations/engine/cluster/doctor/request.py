"""The options of `ablations doctor` after parsing."""

from dataclasses import dataclass

from resnet_core import DataConfig


@dataclass(frozen=True, kw_only=True)
class DoctorRequest:
    """The data set, servers and resources that the doctor checks."""

    data: DataConfig
    storage: str
    tracking_uri: str
    workers: int | None
    """Number of workers to reserve, as a run would; None: check the nodes that are in the cluster now."""
    cpus_per_worker: float
    gpus_per_worker: float | None
    """None: as many as a study would choose."""
    worker_timeout_seconds: float
    """Maximum time to wait for the workers, in seconds."""
