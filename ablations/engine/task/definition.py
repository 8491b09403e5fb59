"""`Task`: a training that a study runs, and what it exchanges with the study: `Context` and `Epoch`."""

import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from types import ModuleType
from typing import Any, Self, SupportsFloat

from ablations.engine.task.metric import Metric
from resnet_core.fields import ConfigError, reject

TASK_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
"""Pattern of a task's name, which is part of MLflow's tags and filters."""


def _nothing() -> None:
    """Do nothing."""


@dataclass(frozen=True, kw_only=True)
class Context:
    """The arguments of a training besides its configuration."""

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

    metrics: Mapping[str, SupportsFloat]
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

    def __new__(cls, *args: object, **given: object) -> Self:
        """Raise ConfigError for unknown or missing fields, instead of the TypeError of a dataclass."""
        every = {f.name: f for f in fields(cls)}
        for name in (*map(repr, args), *(name for name in given if name not in every)):
            raise ConfigError(f"Task: {name}: no such field; accepted, by name: {', '.join(every)}")
        for name, f in every.items():
            if name not in given and f.default is MISSING and f.default_factory is MISSING:
                raise ConfigError(f"Task: {name} is missing; accepted: {name}=…")
        return super().__new__(cls)

    def __getnewargs_ex__(self) -> tuple[tuple[()], dict[str, Any]]:
        """Return the arguments with which `copy` and `pickle` call `__new__`."""
        return (), vars(self)

    def __post_init__(self) -> None:
        """Check every field; raise ConfigError."""
        if not (isinstance(self.name, str) and TASK_NAME.fullmatch(self.name)):
            raise reject("task name", self.name, "accepted: up to 64 of a-z, A-Z, 0-9, - and _, the first a letter or digit")
        if not isinstance(self.config, type):
            raise reject("config", self.config, "accepted: a frozen dataclass")
        if not callable(self.train):
            raise reject("train", self.train, "accepted: a function of a configuration and a context")
        _check_generator(self.train)
        if not isinstance(self.metric, Metric):
            raise reject("metric", self.metric, "accepted: an ablations.Metric")
        if not (isinstance(self.presets, Mapping) and all(isinstance(name, str) for name in self.presets)):
            raise reject("presets", self.presets, "accepted: configurations by name")
        if not (isinstance(self.data_version, str) or callable(self.data_version)):
            raise reject("data_version", self.data_version, "accepted: text, or a function that returns it")
        if not (self.cost is None or callable(self.cost)):
            raise reject("cost", self.cost, "accepted: a function of a configuration")
        listed = self.sources if isinstance(self.sources, list | tuple) else [None]
        if not all(isinstance(each, ModuleType | type) or callable(each) for each in listed):
            raise reject("sources", self.sources, "accepted: a list of modules, classes or functions")


def _check_generator(train: Train) -> None:
    """Raise ConfigError if a function yields nothing, or cannot be called with a configuration and a context."""
    name = getattr(train, "__name__", type(train).__name__)
    wanted = "accepted: a generator function of a configuration and a context"
    try:
        inspect.signature(train).bind(None, None)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"train: {name}: {error}; {wanted}") from error
    if not inspect.isgeneratorfunction(train):
        raise ConfigError(f"train: {name}: does not yield; {wanted}, which yields an Epoch after every epoch")
