"""The request of a submission, as parsed from the command line and before it is resolved into a plan."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

ALL_DESIGNS = "all"
"""Value of `--design` with which `--plan` compares all designs."""
SAMPLERS = ("tpe", "random", "gp")
SCHEDULERS = ("asha", "hyperband", "pbt", "none")
OBJECTIVES = {"flops": "flops", "seconds": "train_seconds"}
"""Second objectives that a search may minimize besides the metric, and the MLflow metric of each."""
DEFAULT_TRIALS = 24
"""Number of trials of a search without a requested budget."""
DEFAULT_VALIDATION_SHARE = 0.2
"""Share of the training images that is held out for validation by default."""


@dataclass(frozen=True, kw_only=True)
class SearchRequest:
    """The part of a request that concerns a search."""

    per_cell: Sequence[str] | None = None
    """Factors whose combinations of levels each have a search. Empty: all factors. None: one search, without factors."""
    space: Sequence[str] = ()
    """Fields to search: of the study's space, or others with a range. Empty: the whole space of the study."""
    trials: int | None = None
    """Number of trials of each cell's search; with `pbt`, the size of its population."""
    seconds: float | None = None
    """Training time of each cell's search, in seconds."""
    sampler: str | None = None
    scheduler: str | None = None
    objective: str | None = None
    """Second objective, one of `OBJECTIVES`."""
    seed: int = 0
    validation_share: float = DEFAULT_VALIDATION_SHARE
    """Fraction of each class's training images that trials are scored on."""


@dataclass(frozen=True, kw_only=True)
class Rates:
    """Rates that turn what a study used into money and emissions; None: not given."""

    usd_per_gpu_hour: float | None = None
    co2_grams_per_kwh: float | None = None


@dataclass(frozen=True, kw_only=True)
class StudyRequest:
    """The part of a request that concerns the study: its size and its overrides."""

    preset: str | None = None
    design: str | None = None
    """Design of the cells, or `ALL_DESIGNS`; None: that of the study."""
    datasets: Sequence[str] | Mapping[str, Mapping[str, Any]] = ()
    """Data sets to run on, as in `Study.datasets`; empty: those of the study."""
    seeds: int | tuple[int, ...] | None = None
    """Number of seeds of every cell, or the looks of an adaptive study, as `seeds.read_seeds` returns them; None: those of the
    study."""
    levels: Mapping[str, Sequence[str]] = field(default_factory=dict)
    overrides: Mapping[str, Any] = field(default_factory=dict)
    probes: Sequence[str] = ()
    """Probes to record besides those of the study."""
    workers: int = 1
    """Number of training processes of each run."""
    download: bool = False
    """True if missing data may be downloaded."""
    margin: float | None = None
    """Largest difference that counts as no effect, in `Metric.difference_unit`; None: that of the study."""
    rates: Rates = field(default_factory=Rates)
    """Rates for the cost of the study."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """A parsed command line."""

    request: StudyRequest
    search: SearchRequest | None
    """None for a study without a search."""
    cpus_per_worker: float
    gpus_per_worker: float | None
    """None: chosen by what the cluster has; see `gpu_choice`."""
    max_concurrent: int | None
    """Maximum number of concurrent runs; None: as many as the cluster holds."""
    placement: str
    hang_timeout: float
    """Time without a training step after which a process is ended, in seconds."""
    storage: str
    tracking_uri: str
    plan: bool
    calibrate: bool | None
    """True if a plan may measure the training speed, False if not. None: only where that does not disturb a cluster."""
    report: bool
    rerun: bool
    log_models: bool
    predictions: bool = True
    """True if the predictions of each run on the test set are stored in MLflow."""
    json: bool = False
    """True if standard output is a JSON document and everything else goes to standard error."""
    expect: Sequence[str] = ()
    """Expectations about the outcome, as stated; see `expectations`."""
    keep_checkpoints: str = "last"
    """Checkpoints to keep of a run with a result: `last` or `none`."""
    stop_after_failures: int = 3
    """Number of first runs after which the study stops if all of them fail with the same error; 0: never."""
    ends_ray: bool = False
    """True if nothing needs Ray once the study has trained, so that a Ray of the command's own ends then."""
    notify: str = field(default="", repr=False)
    """Address of a webhook that is told of the end of the study, a secret; empty for none."""
    notify_after: int = 3
    """Number of diverged and failed runs above which the webhook is told before the end."""
