"""Data sets on which a study is repeated: their names and settings, checked."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, get_args

from ablations.engine.study.factors import NOT_SETTINGS, values_by_field
from ablations.engine.task.workload import Workload
from resnet_core.fields import ConfigError, reject

DATA_NAME = "data.name"
"""Field that names a data set."""
EXAMPLE = "('digits', 'mnist5k'), or settings by name: {'small': {'data.train_examples': 300}, …}"
MAX_NAME_CHARACTERS = 64
"""Maximum length of a name, in characters."""


@dataclass(frozen=True, kw_only=True)
class DatasetEntry:
    """A data set of a study."""

    name: str
    preset: str | None = None
    """Preset to run on; None: that of the study."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Fields that select the data set, converted to their types, by dotted name."""


def dataset_entries(source: str, given: object, workload: Workload) -> tuple[DatasetEntry, ...]:
    """Return the data sets that names, or settings by name, stand for; none if nothing is given.

    A name of a preset stands for that preset, whose recipe suits its data set. Another name of a data set stands for the preset of
    the study with this data set. With settings, a name that is neither is only a name.

    Args:
        source: origin of the data sets, for error messages: `datasets` of a study file, or `--datasets`.
        given: sequence of names, or mapping of names to settings.
        workload: trainings that have these presets and fields.

    Raises:
        ConfigError: an unknown data set, a name twice, or only one data set.
    """
    if not isinstance(given, (Mapping, Sequence)) or isinstance(given, (str, bytes)):
        raise reject(source, given, f"accepted: {EXAMPLE}")
    names = list(given)
    for name in names:
        if not (isinstance(name, str) and name.strip() == name and name.isprintable() and 0 < len(name) <= MAX_NAME_CHARACTERS):
            raise reject(source, name, f"accepted: names of up to {MAX_NAME_CHARACTERS} characters")
        if names.count(name) > 1:
            raise reject(source, name, "is named twice; accepted: each data set once")
    entries = tuple(_entry(source, name, given[name] if isinstance(given, Mapping) else None, workload) for name in names)
    if len(entries) == 1:
        name, preset = entries[0].name, entries[0].preset
        alone = f"--preset {preset}" if preset else "settings"
        raise reject(source, name, f"is one data set only; accepted: two or more, or {alone} for a study on one")
    return entries


def _entry(source: str, name: str, settings: object, workload: Workload) -> DatasetEntry:
    preset = name if name in workload.presets else None
    converted: dict[str, Any] = {}
    if preset is None and name in _data_names(workload):
        converted[DATA_NAME] = name
    elif preset is None and not settings:
        accepted = ", ".join(dict.fromkeys((*workload.presets, *_data_names(workload))))
        raise reject(source, name, f"no such data set; accepted: {accepted}, or a name with settings")
    if settings is not None:
        where = f"{source} {name}"
        for dotted, (given, value) in values_by_field(where, settings, workload.schema).items():
            if dotted in NOT_SETTINGS:
                raise reject(where, given, f"accepted: {NOT_SETTINGS[dotted]}")
            converted[dotted] = workload.schema.convert(dotted, value)
    return DatasetEntry(name=name, preset=preset, settings=converted)


def check_not_factors(source: str, entries: Sequence[DatasetEntry], fields: Mapping[str, str]) -> None:
    """Raise ConfigError if a data set sets a field that varies between cells.

    Args:
        source: origin of the data sets.
        entries: the data sets.
        fields: names of the factors as the study gives them, by dotted name.
    """
    for entry in entries:
        if taken := sorted(entry.settings.keys() & fields.keys()):
            factor = fields[taken[0]]
            raise ConfigError(f"{source} {entry.name}: sets {taken[0]}, but {factor} is a factor; accepted: one of the two")


def _data_names(workload: Workload) -> tuple[str, ...]:
    """Return the names of data sets that the workload's field for them accepts; none if it has no such field."""
    return tuple(map(str, get_args(workload.schema.hint(DATA_NAME)))) if DATA_NAME in workload.schema.names else ()
