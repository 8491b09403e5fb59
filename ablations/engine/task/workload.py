"""`Workload`: what the engine needs to know about the trainings of a study. It knows nothing else about images or networks."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ablations.engine.task.definition import Context, Epoch
from ablations.engine.task.metric import Metric
from ablations.engine.task.predictions import Predictions
from resnet_core.schema import Schema


class Spec(Protocol):
    """Complete configuration of a run: fields by name, among them its seed and its number of workers. A frozen dataclass."""

    @property
    def seed(self) -> int:
        """Seed of the run."""

    @property
    def world_size(self) -> int:
        """Number of workers."""

    def flat(self) -> dict[str, Any]:
        """Return every field by its dotted name, in order."""


class Data(Protocol):
    """Data that runs are trained and scored on."""

    @property
    def name(self) -> str:
        """Name of the data set."""

    @property
    def version(self) -> str:
        """Hash of the content, or another text that changes with it."""

    @property
    def summary(self) -> str:
        """Description in words; empty if there is none."""


@dataclass(frozen=True, kw_only=True)
class ProbedEpoch(Epoch):
    """A finished epoch with measurements inside the network and predictions."""

    probes: Sequence[Mapping[str, Any]] = ()
    """All measurements of the run so far, in its last epoch; otherwise empty."""
    predictions: Predictions | None = None
    """Predictions on the test set, in the last epoch; otherwise None."""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Cost of a configuration that is known before training. None: not known."""

    parameters: float | None = None
    """Number of trainable parameters."""
    flops: float | None = None
    """Multiply-adds of one forward pass of one example."""
    activation_bytes: float | None = None
    """Memory that training keeps for the backward pass, in bytes per example."""
    training_flops: float | None = None
    """Multiply-adds of the whole training, without its tests."""


class Workload(ABC):
    """The trainings of a study: their configuration, data, identity and execution."""

    schema: Schema
    """Fields of a configuration."""
    presets: Mapping[str, Any]
    """Configurations by name of the preset."""
    task_name: str = ""
    """Name of the task of one's own; empty for image classification."""
    not_factors: Mapping[str, str] = {}
    """Fields that must be equal in all cells, and how to set them for all."""
    length_fields: Collection[str] = ()
    """Fields that set the length of a training, each in its own unit."""
    fields_of_trials: Collection[str] = ()
    """Fields whose values in a search's trials differ from those of the study."""
    roots: tuple[Any, ...] = ()
    """Classes, functions and modules of the user whose code is part of a run's identity."""

    @property
    def default_preset(self) -> str:
        """Preset of a study that names none."""
        return next(iter(self.presets))

    # Identity

    @property
    @abstractmethod
    def training_version(self) -> str:
        """Version of the training's results. Runs of another version are other runs."""

    @abstractmethod
    def code_version(self) -> str:
        """Return a hash of the training's code. It may differ between runs of one training version."""

    @abstractmethod
    def fingerprint(self, spec: Any, data_version: str) -> str:
        """Return the identity of a resolved run."""

    def deviations(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return the fields of `values` that are part of the identity of a study's settings."""
        return dict(values)

    def identity_name(self, name: str) -> str:
        """Return the name under which identities hold a field."""
        return name

    def is_identity(self, name: str) -> bool:
        """Return whether a field affects the results of a run."""
        return True

    # Data

    @abstractmethod
    def data_key(self, spec: Any) -> Hashable:
        """Return a key that is equal for runs on the same data."""

    @abstractmethod
    def load_data(self, spec: Any, cache: Path, *, download: bool, alive: Callable[[], object] = ...) -> Any:
        """Return the data of a run; raise ConfigError if they cannot be used."""

    def load_all(self, specs: Iterable[Any], cache: Path, *, download: bool) -> dict[Hashable, Any]:
        """Return the data of these runs by `data_key`, each loaded once."""
        of_key = {self.data_key(spec): spec for spec in reversed(list(specs))}
        return {key: self.load_data(of_key[key], cache, download=download) for key in reversed(of_key)}

    def data_source(self, spec: Any, data: Any) -> str:
        """Return where the data come from, for MLflow."""
        return str(data.name)

    def selects_data(self, field: str) -> bool:
        """Return whether a field, given by its dotted name, decides which data a run uses."""
        return False

    def study_data_version(self, spec: Any, data: Any, factors: Collection[str]) -> str:
        """Return the version of what all cells of a study with these factors have in common in their data.

        Args:
            spec: configuration of one cell. The version must not depend on which one.
            data: data of this cell.
            factors: fields in which cells differ, by dotted name.
        """
        return str(data.version)

    def check_comparable(self, factors: Mapping[str, str], data: Sequence[Any], base: Any) -> None:
        """Raise ConfigError if the cells of these factors would be scored on different data.

        Args:
            factors: each factor with its levels as text, `depth=20,56`, by dotted name of the field.
            data: data of all cells.
            base: configuration of the first cell.
        """
        return

    def describe_data(self, data: Sequence[Any]) -> str:
        """Return a description of the data of all cells; empty if there is none."""
        return str(data[-1].summary) if data else ""

    def training_examples(self, data: Any) -> int:
        """Return the number of training examples; 0 if it is not known."""
        return 0

    def evaluation_examples(self, data: Any) -> int:
        """Return the number of examples that runs are scored on; 0 if it is not known."""
        return 0

    def chance_value(self, data: Any) -> float | None:
        """Return the value of the metric that guessing gives; None if it is not known."""
        return None

    # Configuration

    @abstractmethod
    def metric(self, spec: Any) -> Metric:
        """Return the metric by which runs are compared."""

    def check_settings(self, values: Mapping[str, Any]) -> None:
        """Raise ConfigError if settings and levels, by dotted name, contradict each other although each is valid."""
        return

    def override(self, spec: Any, values: Mapping[str, Any]) -> Any:
        """Return a copy of a configuration with fields replaced; raise ConfigError if it does not accept them."""
        return self.schema.override(spec, values)

    def from_flat(self, values: Mapping[str, Any]) -> Any:
        """Return the configuration that `Spec.flat` flattened."""
        return self.override(self.schema.default, values)

    def resolve(self, spec: Any, data: Any) -> Any:
        """Return a run with the fields filled in that depend on the data; raise ConfigError if they contradict each other."""
        return spec

    def total_epochs(self, spec: Any, data: Any) -> int | None:
        """Return the number of epochs of a run; None if it is not known."""
        return None

    def relative_cost(self, spec: Any) -> float:
        """Return a number that grows with the duration of an epoch, comparable within a study."""
        return 1.0

    def cost(self, spec: Any, data: Any) -> Cost:
        """Return the cost of a configuration."""
        return Cost()

    def speed_fields(self) -> tuple[str, ...]:
        """Return the fields that change the duration of an epoch's unit of work."""
        return tuple(name for name in self.schema.names if name not in ("seed", "epochs"))

    def units_of_work(self, values: Mapping[str, Any], examples: int) -> float:
        """Return the length of a training in units of equal duration, such as steps; 1 if it is not known.

        Args:
            values: fields of a run by dotted name, as values or text.
            examples: number of training examples.
        """
        try:
            return float(values.get("epochs", 1))
        except (TypeError, ValueError):  # a task's field of this name may be None, or text
            return 1.0

    # Searches

    def search_spec(self, spec: Any, validation_share: float, seed: int) -> Any:
        """Return the configuration of a search's trials, which are not scored on what decides the final comparison."""
        return self.override(spec, {"seed": seed})

    def not_searched(self, base: Any) -> set[str]:
        """Return the fields, by dotted name, that a search cannot choose."""
        return {"seed", "world_size", *self.length_fields}

    # Training

    @abstractmethod
    def train(self, spec: Any, data: Any, context: Context) -> Iterator[Epoch]:
        """Train a run and yield its epochs. Checkpoints hold the metrics of all epochs, which `history` returns."""

    @abstractmethod
    def history(self, checkpoint: Mapping[str, Any]) -> Sequence[Mapping[str, float]]:
        """Return the metrics of the epochs before a checkpoint."""

    def probes(self, checkpoint: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
        """Return the measurements inside the network before a checkpoint."""
        return ()

    def predictions(self, checkpoint: Mapping[str, Any], data: Any) -> Predictions | None:
        """Return the predictions on the test set that the checkpoint of a last epoch holds; None if it holds none."""
        return None

    def describe_step(self, spec: Any) -> str:
        """Return what a worker computes at a time, for messages about memory, such as `a batch of 64 images`."""
        return f"a step of {self.task_name}"

    def pickled(self) -> bytes:
        """Return this workload for another process, with the user's code; empty for the built-in one."""
        return b""
