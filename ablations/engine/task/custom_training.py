"""Trainings of one's own: the workload of a `Task`."""

import dataclasses
import hashlib
import json
import math
import random
import time
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from ablations.engine.task import sources
from ablations.engine.task.definition import Context, Epoch, Task
from ablations.engine.task.metric import ACCEPTED_NAMES, Metric, is_metric_name
from ablations.engine.task.workload import Cost, Workload
from resnet_core.fields import ConfigError, reject
from resnet_core.schema import Schema, check_config_class
from resnet_core.training.divergence import Diverged

DEFAULT_PRESET = "default"
"""Preset of a task that has none: the default of every field."""
RESERVED_FIELDS = {"seed": "context.seed", "world_size": "context.world_size"}
"""Names that a configuration cannot use, and what holds their value."""

RESERVED_METRICS = ("epoch", "epoch_seconds", "train_seconds", "gpu_hours")
"""Metrics that a study reports for every run."""


@dataclass(frozen=True, kw_only=True)
class TaskSpec:
    """Configuration of a run of a task."""

    config: Any
    """The user's configuration, whose fields have no prefix."""
    seed: int = 0
    world_size: int = 1

    def flat(self) -> dict[str, Any]:
        """Return every field by its dotted name."""
        return {**_flat(self.config), "seed": self.seed, "world_size": self.world_size}


@dataclass(frozen=True)
class TaskData:
    """Data of a task, of which only the version is known."""

    name: str
    version: str
    summary: str = ""


class CustomTraining(Workload):
    """The trainings of a `Task`.

    Raises:
        ConfigError: a part of the task is not accepted.
    """

    def __init__(self, task: Task) -> None:
        self.task = task
        self.task_name = task.name
        check_config_class(task.config)
        functions = (task.train, task.cost, *((task.data_version,) if callable(task.data_version) else ()), *task.sources)
        self.roots = (task.config, *(each for each in functions if each is not None))
        presets = {name: TaskSpec(config=config) for name, config in self._configurations().items()}
        self.schema = Schema(next(iter(presets.values())), inline="config")
        for name in RESERVED_FIELDS:
            if hasattr(self.schema.default.config, name):
                raise ConfigError(f"{task.config.__name__}.{name}: a run has its own; accepted: {RESERVED_FIELDS[name]} in train")
        self.presets = {name: self.schema.converted(spec) for name, spec in presets.items()}
        if task.metric.name in RESERVED_METRICS:
            raise reject("metric", task.metric.name, "a study reports its own metric of this name; accepted: another name")

    def _configurations(self) -> dict[str, Any]:
        if not self.task.presets:
            try:
                return {DEFAULT_PRESET: self.task.config()}
            except Exception as error:  # a field without a default, or a check of the user's
                name = self.task.config.__name__
                raise ConfigError(
                    f"{name}(): {type(error).__name__}: {error}; accepted: a default for every field, or presets"
                ) from error
        for name, config in self.task.presets.items():
            if not isinstance(config, self.task.config):
                raise reject(f"preset {name}", config, f"accepted: a {self.task.config.__name__}")
        return dict(self.task.presets)

    @cached_property
    def _digest(self) -> str:
        return sources.digest(self.roots)

    @property
    def training_version(self) -> str:
        """Hash of the user's code."""
        return self._digest

    def code_version(self) -> str:
        """Return the hash of the user's code."""
        return self._digest

    def fingerprint(self, spec: TaskSpec, data_version: str) -> str:
        """Return the identity of a run: a hash of its configuration, its data and the code of the task."""
        text = json.dumps([self.task_name, spec.flat(), data_version, self._digest], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:20]

    def metric(self, spec: TaskSpec) -> Metric:
        """Return the metric of the task."""
        return self.task.metric

    def data_key(self, spec: TaskSpec) -> Hashable:
        """Return the version of the data."""
        version = self.task.data_version
        try:
            found = version(spec.config) if callable(version) else version
        except ConfigError:
            raise
        except Exception as error:  # user code
            raise ConfigError(f"data_version of {self.task_name}: {type(error).__name__}: {error}") from error
        if not isinstance(found, str):
            raise reject(f"data_version of {self.task_name}", found, "accepted: text")
        return found

    def load_data(self, spec: TaskSpec, cache: Path, *, download: bool, alive: Callable[[], object] = lambda: None) -> TaskData:
        """Return the version of the data, which the training itself reads."""
        return TaskData(self.task_name, str(self.data_key(spec)))

    def study_data_version(self, spec: TaskSpec, data: TaskData, factors: Collection[str]) -> str:
        """Return the version of the data at the default of each factor, whichever levels are requested; empty if it has none."""
        if not callable(self.task.data_version):
            return data.version
        try:
            defaults = self.schema.default.flat()
            return str(self.data_key(self.override(spec, {name: defaults[name] for name in factors})))
        except ConfigError:  # the defaults are no valid combination, or have no data
            return ""

    def total_epochs(self, spec: TaskSpec, data: Any) -> int | None:
        """Return the configuration's field `epochs`; None without such a field."""
        epochs = getattr(spec.config, "epochs", None)
        return epochs if isinstance(epochs, int) else None

    def relative_cost(self, spec: TaskSpec) -> float:
        """Return the multiply-adds of a forward pass or the number of parameters, where the task says them."""
        cost = self.cost(spec, None)
        return cost.flops or cost.parameters or 1.0

    def cost(self, spec: TaskSpec, data: Any) -> Cost:
        """Return what the task's `cost` says."""
        known = self._costs(spec)
        return Cost(parameters=known.get("parameters"), flops=known.get("flops"))

    def _costs(self, spec: TaskSpec) -> dict[str, float]:
        if self.task.cost is None:
            return {}
        try:
            found = {str(name): float(value) for name, value in self.task.cost(spec.config).items()}
        except Exception as error:  # user code
            raise ConfigError(f"cost of {self.task_name}: {type(error).__name__}: {error}") from error
        for name in found:
            if not is_metric_name(name):
                raise reject(f"cost of {self.task_name}", name, f"accepted: a name of {ACCEPTED_NAMES}")
        return found

    def train(self, spec: TaskSpec, data: Any, context: Context) -> Iterator[Epoch]:
        """Train a run with the user's function and yield its epochs.

        Raises:
            ConfigError: the function yields no epoch, or something else than epochs that report the task's metric.
            Diverged: a metric of the task is not finite.
        """
        _seed(context.seed)
        history = list(self.history(context.restore)) if context.restore else []
        given = replace(context, restore=context.restore["state"] if context.restore else None)
        costs, started = self._costs(spec), time.perf_counter()
        seconds = history[-1]["train_seconds"] if history else 0.0
        for yielded in self.task.train(spec.config, given):
            now = time.perf_counter()
            seconds += now - started
            metrics = {**self._checked(yielded), **costs, "epoch_seconds": now - started, "train_seconds": seconds}
            history.append(metrics)
            state = yielded.checkpoint
            yield Epoch(metrics=metrics, checkpoint=None if state is None else _Checkpoint(self.task_name, tuple(history), state))
            started = time.perf_counter()
        if not history:
            raise ConfigError(f"train of {self.task_name}: yields no epoch; accepted: an ablations.Epoch after every epoch")

    def _checked(self, yielded: Any) -> dict[str, float]:
        """Return the metrics of an epoch as floats."""
        name, where = self.task.metric.name, f"train of {self.task_name}"
        if not isinstance(yielded, Epoch):
            raise ConfigError(f"{where}: yields {type(yielded).__name__}; accepted: ablations.Epoch")
        metrics: dict[str, float] = {}
        for key, value in yielded.metrics.items():
            if not is_metric_name(str(key)):
                raise reject(f"{where}: metric", key, f"accepted: a name of {ACCEPTED_NAMES}")
            try:
                metrics[str(key)] = float(value)
            except (TypeError, ValueError):
                raise reject(f"{where}: {key}", value, "accepted: a number") from None
        if name not in metrics:
            raise ConfigError(f"{where}: yields no metric {name}; it yields {', '.join(metrics) or 'none'}")
        if not math.isfinite(metrics[name]):
            raise Diverged(f"{name} is {metrics[name]}")
        return metrics

    def history(self, checkpoint: Mapping[str, Any]) -> Sequence[Mapping[str, float]]:
        """Return the metrics of the epochs before a checkpoint."""
        history: Sequence[Mapping[str, float]] = checkpoint["history"]
        return history

    def pickled(self) -> bytes:
        """Return the task with its code."""
        _ = self._digest  # it travels too, since the sources may not
        return sources.pickled(self, self.roots)


@dataclass(frozen=True)
class _Checkpoint:
    """Checkpoint of a task: the metrics of all epochs so far, and the user's state."""

    task: str
    history: tuple[Mapping[str, float], ...]
    state: Mapping[str, Any] | Callable[[], Mapping[str, Any]]

    def __call__(self) -> dict[str, Any]:
        state = self.state() if callable(self.state) else self.state
        if problem := _unsavable(state):
            accepted = "accepted: tensors, numbers, text, lists and dicts, which load without running code"
            raise ConfigError(f"checkpoint of {self.task}: {problem}; {accepted}")
        return {"history": [dict(each) for each in self.history], "state": dict(state)}


def _unsavable(value: Any, name: str = "") -> str:
    """Return which part of a state cannot be loaded without running its code; empty if all can."""
    import torch

    if isinstance(value, Mapping):
        found = (_unsavable(key) or _unsavable(each, f"{name}[{key!r}]") for key, each in value.items())
    elif isinstance(value, list | tuple):
        found = (_unsavable(each, f"{name}[{i}]") for i, each in enumerate(value))
    else:
        plain = value is None or isinstance(value, torch.Tensor) or type(value) in (int, float, bool, str, complex)
        return "" if plain else f"{name or 'a key'} is a {type(value).__name__}"
    return next(filter(None, found), "")


def _flat(config: Any, prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for each in dataclasses.fields(config):
        value = getattr(config, each.name)
        out |= _flat(value, f"{prefix}{each.name}.") if dataclasses.is_dataclass(value) else {f"{prefix}{each.name}": value}
    return out


def _seed(seed: int) -> None:
    """Seed the global generators of Python, NumPy and PyTorch."""
    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
