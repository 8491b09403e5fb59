"""Image classification with `resnet_core`: the workload of every study without a task of its own."""

from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from ablations.engine.task import sources
from ablations.engine.task.definition import Context, Epoch
from ablations.engine.task.image_data import check_comparable, image_selection, selects_images, test_images_digest
from ablations.engine.task.metric import Metric, error_metric
from ablations.engine.task.predictions import Predictions
from ablations.engine.task.workload import Cost, ProbedEpoch, Workload
from resnet_core import PRESETS, RunSpec, fingerprint
from resnet_core.config import DataConfig
from resnet_core.data.datasets import Dataset, load_dataset, resolve
from resnet_core.fields import ConfigError, reject
from resnet_core.identity import NOT_IDENTITY, TRAINING_VERSION, code_version, deviations
from resnet_core.model.cost import measure_cost
from resnet_core.overrides import run_schema
from resnet_core.renamed_fields import identity_name
from resnet_core.schema import Schema

LENGTH_FIELDS = frozenset({"optim.epochs", "optim.iterations"})
"""Fields that set the length of a training, each in its own unit."""
NOT_FACTORS = {
    "data.validation": "cells would be scored on different images; accepted: --set data.validation=SHARE",
    "data.test_examples": "cells would be scored on different images; accepted: --set data.test_examples=N",
    "data.extra_tests": "cells would be scored differently; accepted: --set data.extra_tests=NAME",
}
"""Fields that must be equal in all cells. Other fields that change the test images are detected after the data are read."""
SPEED_FIELDS = ("global_batch_size", "image_size", "stream", "scale", "extra_tests")
"""Fields of the sections `optim` and `data` that change the duration of a step on the same images."""
NO_SPEED_FIELDS = ("zero_init_residual", "bn_momentum", "probes", "probe_epochs", "seed")
"""Fields of other sections that do not change the duration of a step. All others do."""
DEFAULT_PRESET = "digits"


class ImageClassification(Workload):
    """Trainings of networks on images.

    Args:
        model: a configuration of a network of one's own; None for the networks of He et al.
        reader: function that reads images of one's own.
    """

    length_fields = LENGTH_FIELDS
    not_factors = NOT_FACTORS
    fields_of_trials = ("optim.changes", "data.validation")

    def __init__(self, model: Any = None, reader: Callable[[DataConfig], Any] | None = None) -> None:
        self.model = None if model is None else Schema(model).converted(model)
        self.reader = reader
        self.schema = run_schema(self.model)
        self.presets = {name: self._with_own(spec) for name, spec in PRESETS.items()}
        self.roots = (*((type(model),) if model is not None else ()), *((reader,) if reader is not None else ()))

    def _with_own(self, spec: RunSpec) -> RunSpec:
        """Return a preset with the network and the images of the user. Of its data, numbers of images and augmentation stay."""
        if self.model is not None:
            spec = replace(spec, model=self.model)
        if self.reader is None:
            return spec
        kept = {name: getattr(spec.data, name) for name in ("pad", "flip", "train_examples", "test_examples")}
        return replace(spec, data=DataConfig(name="own", **kept))

    @property
    def default_preset(self) -> str:
        """The digits of scikit-learn, which need no download."""
        return DEFAULT_PRESET

    @property
    def built_in(self) -> bool:
        """True if neither the network nor the reader is the user's."""
        return not self.roots

    # Identity

    @property
    def training_version(self) -> str:
        """Version of `resnet_core`'s results, followed by the hash of the user's code."""
        return "-".join(filter(None, (str(TRAINING_VERSION), self._digest)))

    def code_version(self) -> str:
        """Return a hash of the sources of `resnet_core`, followed by that of the user's code."""
        return "-".join(filter(None, (code_version(), self._digest, self._reader_code)))

    @cached_property
    def _digest(self) -> str:
        """Hash of the network's code. The reader's is no part of a run's identity: images are identified by their content."""
        return "" if self.model is None else sources.digest([type(self.model)])

    @cached_property
    def _reader_code(self) -> str:
        """Hash of the reader's code."""
        return "" if self.reader is None else sources.digest([self.reader])

    def fingerprint(self, spec: RunSpec, data_version: str) -> str:
        """Return the identity of a resolved run."""
        return fingerprint(spec, data_version=data_version, sources=self._digest)

    def deviations(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return the fields of `values` that differ from the defaults and are part of a run's identity."""
        if self.model is None:
            return deviations(values)
        own = {name: value for name, value in values.items() if name.startswith("model.")}
        return {**own, **deviations({name: value for name, value in values.items() if name not in own})}

    def identity_name(self, name: str) -> str:
        """Return the former name of a renamed field, which identities keep."""
        return identity_name(name)

    def is_identity(self, name: str) -> bool:
        """Return whether a field affects the results of a run."""
        return name not in NOT_IDENTITY

    # Data

    def data_key(self, spec: RunSpec) -> Hashable:
        """Return the configuration of the data with only the fields that select images."""
        return image_selection(spec.data)

    def load_data(self, spec: RunSpec, cache: Path, *, download: bool, alive: Callable[[], object] = lambda: None) -> Dataset:
        """Return the data set of a run."""
        selection, code = image_selection(spec.data), self._reader_code
        return load_dataset(selection, cache, reader=self.reader, reader_code=code, download=download, heartbeat=alive)

    def data_source(self, spec: RunSpec, data: Dataset) -> str:
        """Return the folder of the images, or the name of the data set."""
        return spec.data.root or data.name

    def selects_data(self, field: str) -> bool:
        """Return whether a field affects which images are selected."""
        return selects_images(field)

    def study_data_version(self, spec: RunSpec, data: Dataset, factors: Collection[str]) -> str:
        """Return the version of the data; of the test images alone if cells differ in training images."""
        # The hash must not depend on which of the cells are requested.
        return test_images_digest(data) if any(map(selects_images, factors)) else data.version

    def check_comparable(self, factors: Mapping[str, str], data: Sequence[Dataset], base: RunSpec) -> None:
        """Raise ConfigError if the cells of these factors would be scored on different images."""
        check_comparable(factors, data, base.data.evaluation_split)

    def describe_data(self, data: Sequence[Dataset]) -> str:
        """Return a description such as `300 or 1,437 images to train, …`."""
        by_size = sorted(data, key=lambda each: len(each.train.labels))
        return by_size[-1].described([len(each.train.labels) for each in by_size]) if by_size else ""

    def training_examples(self, data: Dataset) -> int:
        """Return the number of training images."""
        return len(data.train.labels)

    def evaluation_examples(self, data: Dataset) -> int:
        """Return the number of images that runs are scored on."""
        return len(data.test.labels)

    def chance_value(self, data: Dataset) -> float:
        """Return the error in percent of guessing among balanced classes."""
        return 100 * (1 - 1 / len(data.classes))

    # Configuration

    def metric(self, spec: RunSpec) -> Metric:
        """Return the error on the images that runs are scored on, in percent."""
        return error_metric(spec.data.evaluation_split)

    def check_settings(self, values: Mapping[str, Any]) -> None:
        """Raise ConfigError if both the epochs and the iterations are given: one would be ignored silently."""
        iterations = self.schema.convert("optim.iterations", values.get("optim.iterations"))
        if iterations is not None and "optim.epochs" in values:
            accepted = "conflicts with optim.epochs, which sets the length of the training too; accepted: one of them"
            raise reject("optim.iterations", iterations, accepted)

    def override(self, spec: RunSpec, values: Mapping[str, Any]) -> RunSpec:
        """Return a copy of a run with fields replaced. An override of `optim.epochs` alone clears `optim.iterations`."""
        changed: RunSpec = self.schema.override(spec, values)
        return changed

    def resolve(self, spec: RunSpec, data: Dataset) -> RunSpec:
        """Return a run with the fields filled in that depend on the images."""
        return resolve(spec, data)

    def total_epochs(self, spec: RunSpec, data: Dataset) -> int:
        """Return the number of epochs of a run."""
        return spec.optim.total_epochs(len(data.train.labels))

    def relative_cost(self, spec: RunSpec) -> float:
        """Return the depth of a network of He et al.; others count alike."""
        return float(spec.depth)

    def cost(self, spec: RunSpec, data: Dataset) -> Cost:
        """Return parameters, multiply-adds and activation memory of the network."""
        found = measure_cost(spec.model, **data.sizes)
        trained = spec.optim.total_steps(len(data.train.labels)) * spec.optim.global_batch_size
        return Cost(
            parameters=found.parameters,
            flops=found.flops,
            activation_bytes=found.activation_bytes,
            training_flops=3 * found.flops * trained,  # a backward pass counts as two forward passes
        )

    def speed_fields(self) -> tuple[str, ...]:
        """Return the fields that change the duration of a step."""
        return tuple(name for name in self.schema.names if _decides_speed(name))

    def units_of_work(self, values: Mapping[str, Any], examples: int) -> float:
        """Return the number of steps of a training."""
        lengths = ("optim.epochs", "optim.iterations", "optim.global_batch_size")
        spec = self.override(self.schema.default, {name: values.get(name) for name in lengths})
        return float(spec.optim.total_steps(examples))

    # Searches

    def search_spec(self, spec: RunSpec, validation_share: float, seed: int) -> RunSpec:
        """Return the configuration of trials: scored on held-out training images, without further tests and probes."""
        of_trials = {"data.validation": validation_share, "data.extra_tests": (), "probes": (), "probe_epochs": (), "seed": seed}
        return self.override(spec, of_trials)

    def not_searched(self, base: RunSpec) -> set[str]:
        """Return the fields that a search cannot choose: those of the data, the length, and measurements."""
        data = {name for name in base.flat() if name.startswith("data.")}
        # Trials are compared at the same epochs.
        return {*super().not_searched(base), *data, "optim.changes", "probes", "probe_epochs"}

    # Training

    def train(self, spec: RunSpec, data: Dataset, context: Context) -> Iterator[Epoch]:
        """Train a network and yield its epochs."""
        from resnet_core import fit

        for result in fit(spec, dataset=data, device=context.device, restore=context.restore, heartbeat=context.alive):
            yield ProbedEpoch(
                metrics=result.metrics,
                checkpoint=result.checkpoint,
                probes=result.state.probes if result.last else (),
                predictions=_predictions(result.state.predictions, data),
            )

    def history(self, checkpoint: Mapping[str, Any]) -> Sequence[Mapping[str, float]]:
        """Return the metrics of the epochs before a checkpoint."""
        history: Sequence[Mapping[str, float]] = checkpoint["history"]
        return history

    def probes(self, checkpoint: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
        """Return the measurements inside the network before a checkpoint."""
        probes: Sequence[Mapping[str, Any]] = checkpoint["probes"]
        return probes

    def predictions(self, checkpoint: Mapping[str, Any], data: Dataset) -> Predictions | None:
        """Return the predicted class of each test image; None before the last epoch."""
        return _predictions(checkpoint.get("predictions"), data)

    def describe_step(self, spec: RunSpec) -> str:
        """Return the number of images that a worker computes at a time, in words."""
        return f"a batch of {spec.optim.global_batch_size // spec.world_size} images"

    def pickled(self) -> bytes:
        """Return the network and the reader with their code; empty without any."""
        _ = self._digest, self._reader_code  # they travel too, since the sources may not
        return b"" if self.built_in else sources.pickled(self, self.roots)


def _predictions(classes: Any, data: Dataset) -> Predictions | None:
    """Return the predictions of these classes, a tensor (N,) on the CPU; None if there are none."""
    if classes is None:
        return None
    predicted = classes.numpy()
    return Predictions(predicted, predicted == data.test.labels)


def _decides_speed(name: str) -> bool:
    section, _, leaf = name.rpartition(".")
    return leaf in SPEED_FIELDS if section in ("optim", "data") else leaf not in NO_SPEED_FIELDS


IMAGE_CLASSIFICATION = ImageClassification()
"""The built-in workload."""


def own_images(model: Any, reader: Callable[[DataConfig], Any] | None) -> ImageClassification:
    """Return the workload of a network or a reader of one's own.

    Raises:
        ConfigError: the network is no frozen dataclass with a method `build`, or one of its fields has no default.
    """
    if isinstance(model, type):
        if not callable(getattr(model, "build", None)):
            raise ConfigError(f"model={model.__name__}: has no method build(image_size, in_channels, num_classes)")
        try:
            model = model()
        except ConfigError:
            raise
        except Exception as error:  # a field without a default, or a check of the user's
            raise ConfigError(
                f"model: {model.__name__}(): {type(error).__name__}: {error}; accepted: a default for every field"
            ) from error
    elif model is not None and not callable(getattr(model, "build", None)):
        raise ConfigError(f"model={type(model).__name__}: has no method build(image_size, in_channels, num_classes)")
    return ImageClassification(model, reader)
