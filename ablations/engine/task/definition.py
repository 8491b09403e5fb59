"""`Task`: a training that a study runs, and what it exchanges with the study: `Context` and `Epoch`."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ablations.engine.task.metric import Metric


def _nothing() -> None:
    """Do nothing."""


@dataclass(frozen=True, kw_only=True)
class Context:
    """What a training is given besides its configuration."""

    seed: int = 0
    """Seed of the run. Python's, NumPy's and PyTorch's global generators are seeded with it already."""
    device: str = "cpu"
    """Device to train on, such as `cpu` or `cuda`."""
    rank: int = 0
    """Number of this worker among the `world_size` workers of the run, from 0."""
    world_size: int = 1
    """Number of workers. With more than one, `torch.distributed` is initialized."""
    restore: dict[str, Any] | None = None
    """Checkpoint of the last epoch that was saved, as it was yielded; None for a training from its start."""
    cache: Path = field(default_factory=Path)
    """Folder that the runs of this machine share, for prepared data."""
    alive: Callable[[], object] = _nothing
    """Call it in long work without an epoch, once a minute or more often: a training without a sign of life is ended as hung."""


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """A finished epoch, which a training yields."""

    metrics: Mapping[str, float]
    """Value of each metric. All epochs report the metric of the task."""
    checkpoint: Mapping[str, Any] | Callable[[], Mapping[str, Any]] | None = None
    """State from which the training continues: tensors, numbers, text, lists and dicts, or a function that returns them. None: an
    interrupted run starts again."""


Train = Callable[[Any, Context], Iterator[Epoch]]
"""Function of a configuration and a context that trains and yields every epoch."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Task:
    """A training of one's own, which a study runs with its configurations and seeds."""

    name: str
    """Name in tables, such as `chars`."""
    config: type
    """Frozen dataclass of the configuration. Its fields are factors, settings and search fields."""
    train: Train
    """Generator function that trains one configuration and yields an `Epoch` after every epoch."""
    metric: Metric
    """Metric that decides between configurations."""
    presets: Mapping[str, Any] = field(default_factory=dict)
    """Configurations by name, for `--preset`; without any, the preset `default` has the default of every field."""
    data_version: str | Callable[[Any], str] = "1"
    """Version of the data, or a function of the configuration that returns it. Another version makes another run."""
    cost: Callable[[Any], Mapping[str, float]] | None = None
    """Function of the configuration that returns costs known before training, such as `parameters` and `flops`."""
    sources: Sequence[Any] = ()
    """Further modules, classes or functions whose source is part of a run's identity."""
