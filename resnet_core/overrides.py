"""Override fields of a run by name, with values from code, a command line or a file."""

import functools
from collections.abc import Iterable, Mapping, Set
from dataclasses import replace
from typing import Any

from resnet_core.config import ModelConfig, Network, RunSpec
from resnet_core.fields import reject
from resnet_core.presets import PRESETS
from resnet_core.renamed_fields import current_name
from resnet_core.schema import Schema, check_config_class, check_hashable

SYNONYMS = {
    **dict.fromkeys(("learning_rate", "learningrate", "base_lr", "initial_lr", "max_lr", "eta", "step_size"), "optim.lr"),
    **dict.fromkeys(("batch", "batch_size", "batchsize", "bs", "train_batch_size", "global_batch"), "optim.global_batch_size"),
    **dict.fromkeys(("wd", "l2", "l2_reg", "l2_regularization", "weightdecay"), "optim.weight_decay"),
    **dict.fromkeys(("num_epochs", "n_epochs", "max_epochs", "epoch", "nb_epochs"), "optim.epochs"),
    **dict.fromkeys(("steps", "max_steps", "num_steps", "max_iter", "max_iterations", "iters", "updates"), "optim.iterations"),
    **dict.fromkeys(("scheduler", "lr_schedule", "lr_scheduler", "lr_policy", "decay_schedule"), "optim.schedule"),
    **dict.fromkeys(("optimizer", "optimiser", "optim", "opt", "solver"), "optim.algorithm"),
    **dict.fromkeys(("warmup", "warmup_epochs", "warmup_iterations", "lr_warmup"), "optim.warmup_steps"),
    **dict.fromkeys(("smoothing", "label_smooth", "labelsmoothing"), "optim.label_smoothing"),
    **dict.fromkeys(("lr_steps", "lr_milestones", "drops"), "optim.milestones"),
    **dict.fromkeys(("model_ema", "ema_decay", "averaging"), "optim.ema"),
    **dict.fromkeys(("layers", "num_layers", "n_layers", "nlayers"), "model.depth"),
    **dict.fromkeys(("filters", "channels", "base_width", "width_per_group", "num_filters"), "model.width"),
    **dict.fromkeys(("arch", "architecture", "network", "backbone", "model_name"), "model.name"),
    **dict.fromkeys(("skip", "skips", "residual", "identity", "skip_connection", "shortcuts"), "model.shortcut"),
    **dict.fromkeys(("classes", "n_classes", "nb_classes"), "model.num_classes"),
    **dict.fromkeys(("dataset", "dataset_name", "data", "data_set"), "data.name"),
    **dict.fromkeys(("data_dir", "datadir", "data_path", "dataroot", "data_root", "path", "folder", "dir"), "data.root"),
    **dict.fromkeys(("img_size", "imgsize", "imsize", "resolution", "input_size", "size"), "data.image_size"),
    **dict.fromkeys(("val", "valid", "validation_split", "val_split", "validation_fraction"), "data.validation"),
    **dict.fromkeys(("n_train", "num_train", "train_size", "train_images"), "data.train_examples"),
    **dict.fromkeys(("n_test", "num_test", "test_size", "test_images"), "data.test_examples"),
    **dict.fromkeys(("padding", "crop"), "data.pad"),
    **dict.fromkeys(("hflip", "horizontal_flip", "random_flip", "mirror"), "data.flip"),
    **dict.fromkeys(("random_erasing", "cutout"), "data.erasing"),
    **dict.fromkeys(("num_workers", "loader_workers", "dataloader_workers"), "data.decode_workers"),
    **dict.fromkeys(("dtype", "amp", "fp16", "bf16", "half", "mixed_precision"), "precision"),
    **dict.fromkeys(("torch_compile", "jit"), "compile"),
    **dict.fromkeys(("gradient_checkpointing", "activation_checkpointing"), "checkpoint_activations"),
}
"""Fields by what timm, torchvision, Keras, Lightning and Hugging Face call them. A message suggests them; none is accepted."""


class RunSchema(Schema):
    """The fields of `RunSpec`, under current and former names. Networks of one's own bring their own `model.…` fields."""

    synonyms = SYNONYMS

    def field_name(self, name: str) -> str:
        """Return the current dotted name of a field, given by its current or former name; see `Schema.field_name`."""
        if name == "name":  # the data set's, which was the only one before networks had names
            return "data.name"
        known = not isinstance(name, str) or name in self._fields or name in self._by_leaf
        return super().field_name(name if known else current_name(name))

    def override(self, config: RunSpec, values: Mapping[str, Any]) -> RunSpec:
        """Return a copy of a run with the named fields replaced; see `override`."""
        names = {self.field_name(name) for name in values}
        if "optim.epochs" in names and "optim.iterations" not in names:
            values = {**values, "optim.iterations": None}  # those of a preset would take precedence over the requested epochs
        overridden: RunSpec = super().override(_without_preset_network(config, names, values), values)
        return overridden


def _without_preset_network(config: RunSpec, names: Set[str], values: Mapping[str, Any]) -> RunSpec:
    """Return the run with the default network, if the values name one of another library and the run has that of a preset.

    A preset may choose the depth of a network of He et al., which a network of another library lacks.
    """
    named = "model.name" in names and any(value not in (None, "none") for name, value in values.items() if name == "model.name")
    of_preset = any(config.model == preset.model for preset in PRESETS.values())
    return replace(config, model=ModelConfig()) if named and of_preset else config


def run_schema(model: Network | None = None) -> RunSchema:
    """Return the fields of runs with this network.

    Args:
        model: a configuration of the network, whose values become the defaults; None for the networks of He et al.

    Raises:
        ConfigError: the network's class is not a frozen dataclass, or a field lacks a type that text can be converted to.
    """
    if model is not None:
        check_config_class(model)  # the cache needs a hash, which only frozen dataclasses have
        check_hashable(model)
    return _run_schema(model)


@functools.cache
def _run_schema(model: Network | None) -> RunSchema:
    return RunSchema(RunSpec() if model is None else RunSpec(model=model))


def override(spec: RunSpec, values: Mapping[str, Any]) -> RunSpec:
    """Return a copy of `spec` with the named fields replaced.

    An override of `optim.epochs` alone clears `optim.iterations`, so that the new length applies.

    Args:
        spec: run to derive from.
        values: new values, by dotted name (`optim.lr`) or unambiguous last part (`lr`). Text such as `"0.05"` is converted.

    Raises:
        ConfigError: a name is unknown, ambiguous or given twice, or a field does not accept its value.

    Example:
        >>> override(RunSpec(), {"depth": 56, "optim.lr": "0.05"}).optim.lr
        0.05
    """
    return run_schema(None if isinstance(spec.model, ModelConfig) else spec.model).override(spec, values)


def from_flat(values: Mapping[str, Any], model: Network | None = None) -> RunSpec:
    """Return the run that `RunSpec.flat` flattened. JSON (lists for tuples) and former names of fields are accepted.

    Args:
        values: fields by dotted name.
        model: any configuration of the run's network; None for the networks of He et al.

    Raises:
        ConfigError: a name is unknown, or a field does not accept its value.
    """
    if not isinstance(values, Mapping):
        raise reject("RunSpec", values, "accepted: fields by their names")
    schema = run_schema(model)
    default: RunSpec = schema.default
    return schema.override(default, values)


def assignments(option: str, texts: Iterable[str]) -> dict[str, str]:
    """Return the values of `NAME=VALUE` arguments for fields of `RunSpec`; see `Schema.assignments`."""
    return run_schema().assignments(option, texts)


def convert(name: str, value: Any) -> Any:
    """Return `value` as the type of the field with this dotted name; raise ConfigError if the field does not accept it."""
    return run_schema().convert(name, value)


def takes_list(name: str) -> bool:
    """Return True if the field with this dotted name holds a list."""
    return run_schema().takes_list(name)


def field_name(name: str) -> str:
    """Return the current dotted name of a field, given by its current or former name; see `Schema.field_name`."""
    return run_schema().field_name(name)
