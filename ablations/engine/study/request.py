"""What a submission asks for, before it is resolved into a plan."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

SAMPLERS = ("tpe", "random", "gp")
SCHEDULERS = ("asha", "hyperband", "pbt", "none")
OBJECTIVES = {"flops": "flops", "seconds": "train_seconds"}
"""What error can be weighed against, and the metric that it is."""
DEFAULT_TRIALS = 24
"""Of a search for which no budget is asked."""
DEFAULT_VALIDATION_SHARE = 0.2
"""Share of the training images that trials are scored on, where none is asked."""


@dataclass(frozen=True, kw_only=True)
class SearchRequest:
    """What a submission asks of a search."""

    per_cell: Sequence[str] | None = None
    """Factors inside whose levels to search; empty: all of the study; None: one search, without factors."""
    space: Sequence[str] = ()
    """What is searched: fields of the study's space, or others with a range; empty: the whole space."""
    trials: int | None = None
    """Budget of each cell's search; of a population, its size."""
    seconds: float | None = None
    """Another budget: training time of each cell's search."""
    sampler: str | None = None
    scheduler: str | None = None
    objective: str | None = None
    """A second objective."""
    seed: int = 0
    validation_share: float = DEFAULT_VALIDATION_SHARE


@dataclass(frozen=True, kw_only=True)
class StudyRequest:
    """What the command line asks of a study."""

    preset: str | None = None
    seeds: int | None = None
    levels: Mapping[str, Sequence[str]] = field(default_factory=dict)
    overrides: Mapping[str, Any] = field(default_factory=dict)
    probes: Sequence[str] = ()
    """What to look at besides the study's own probes."""
    workers: int = 1
    download: bool = False
    """Whether data that are missing may be downloaded."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """A parsed command line."""

    request: StudyRequest
    search: SearchRequest | None
    """Of a study that searches."""
    cpus_per_worker: float
    gpus_per_worker: float
    max_concurrent: int | None
    placement: str
    hang_timeout: float
    storage: str
    tracking_uri: str
    plan: bool
    calibrate: bool | None
    """Whether a plan may measure; None: where it does not disturb a cluster."""
    report: bool
    rerun: bool
    log_models: bool
