"""A study as data: factors × levels × seeds, expanded into the runs that answer its question."""

import hashlib
import json
from collections.abc import Collection, Hashable, Mapping
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

from ablations.engine.study.definition import Study
from ablations.engine.study.designs import FACTORIAL, LADDER
from ablations.engine.study.factors import Level, format_level
from ablations.engine.study.grid import Grid
from ablations.engine.task.metric import Metric
from ablations.engine.task.workload import Workload
from resnet_core.fields import ConfigError

MAX_TITLE_SETTINGS = 4
"""Maximum number of settings in a title; the parameters of the study's run in MLflow are complete."""
MAX_SETTING_CHARACTERS = 24
"""Maximum length of a value in a title, in characters."""
TITLE_WORDS = {"optim.global_batch_size": "batch", "world_size": "workers", "model.name": "network"}
"""Words for fields in a title, where the last part of the field's name does not suit."""
CONFIGURATION = "configuration"
"""Name of the factor that a search adds to its study. It compares the chosen configurations with the default one."""
DEFAULT, TUNED = "default", "tuned"
"""Levels of the factor `configuration`. With two objectives, `front-1`, `front-2`, … take the place of `tuned`."""


@dataclass(frozen=True)
class Cell:
    """One combination of factor levels, in the order of the study's factors."""

    levels: tuple[tuple[str, Level], ...]

    def __str__(self) -> str:
        return " ".join(f"{name}={format_level(level)}" for name, level in self.levels)


@dataclass(frozen=True, kw_only=True)
class SearchTrial:
    """A trial of a search, as part of its run: number and suggested values."""

    number: int
    """Number of the trial within its cell, from 0."""
    tag: str
    """Name of the MLflow tag that marks the run as a trial of this search."""
    values: Mapping[str, Any]
    """Values of the searched fields, as suggested."""
    branch: tuple[int, int] | None = None
    """Number and epoch of the trial from whose checkpoint this one may start."""


@dataclass(frozen=True)
class Run:
    """One training: a cell with a seed."""

    cell: Cell
    seed: int
    spec: Any
    """Resolved configuration, a `Spec` of the study's workload."""
    fingerprint: str
    trial: SearchTrial | None = field(default=None, compare=False)

    def __str__(self) -> str:
        return f"{self.cell} {f'trial={self.trial.number}' if self.trial else f'seed={self.seed}'}".lstrip()


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A resolved study: all runs with their fingerprints, in the order in which to start them."""

    study: Study
    preset: str
    base: Any
    """Configuration of the first cell before fields are resolved from the data set. Runs differ from it in factors and seed."""
    factors: Mapping[str, tuple[Level, ...]]
    grid: Grid
    """Factors as submitted, with the fields that they set; a search adds the factor `configuration` to `factors` only."""
    cells: tuple[Cell, ...]
    skipped: tuple[tuple[Cell, str], ...]
    """Combinations that cannot be trained, each with the reason."""
    runs: tuple[Run, ...]
    data: Mapping[Hashable, Any]
    """Data of all runs, by `Workload.data_key`. Cells may differ in training data, but not in what they are scored on."""
    searched: Collection[str] = ()
    """Fields that a search chooses, in which runs differ besides factors and seed."""
    seed_looks: tuple[int, ...] = ()
    """Numbers of seeds at which an adaptive study decides which cells get more seeds, ascending. Its runs are those that it may
    need, up to the last look. Empty for a fixed number of seeds."""

    @property
    def title(self) -> str:
        """Name of the parent run in MLflow, with its data and what is not the study's own setting: `… · digits · batch 32`."""
        settings = self.requested_settings()
        folder, others = PurePath(str(settings.pop("data.root", ""))).name, settings.keys() - {"data.name"}
        data = [" ".join(filter(None, (self.dataset.name, folder)))] if folder or "data.name" in settings else []
        words = [_setting(name, settings[name]) for name in settings if name in others]
        more = [f"{len(words) - MAX_TITLE_SETTINGS} more settings"] if len(words) > MAX_TITLE_SETTINGS + 1 else []
        shown = words[: MAX_TITLE_SETTINGS if more else None]
        design = [] if self.grid.kind == FACTORIAL else [self.grid.kind]
        return " · ".join([self.study.name, self.preset, *data, *shown, *more, *design])

    @property
    def former_title(self) -> str:
        """Name that the parent run had before 2026-11-28, when data and settings were not part of it."""
        return " · ".join([self.study.name, self.preset, *([] if self.grid.kind == FACTORIAL else [self.grid.kind])])

    def requested_settings(self) -> dict[str, Level]:
        """Return the fields in which all runs differ from what the study sets itself with this preset, by dotted name.

        These are the settings of the request, `--set` and `--workers`, as far as they affect the results or choose the data.
        """
        workload, cell = self.workload, next(iter(self.cells))
        own = {**self.study.settings, **self.grid.values({n: v for n, v in cell.levels if n in self.grid.factors}, workload.schema)}
        try:
            usual = workload.override(workload.presets[self.preset], own).flat()
        except ConfigError:  # the study's own settings are valid only together with some of the request
            usual = workload.presets[self.preset].flat()
        varied = {*_varied(workload, self.grid), "seed", *self.searched}
        return {
            name: value
            for name, value in self.base.flat().items()
            if name not in varied and value != usual[name] and (workload.is_identity(name) or workload.selects_data(name))
        }

    @property
    def baseline(self) -> Mapping[str, Level]:
        """Reference levels of the factors."""
        return self.grid.baseline

    @property
    def workload(self) -> Workload:
        """Trainings that the study runs."""
        return self.study.workload

    @property
    def metric(self) -> Metric:
        """Metric by which runs are compared."""
        return self.workload.metric(self.base)

    @property
    def dataset(self) -> Any:
        """Data set of the first cell. Data sets of other cells may differ in training images, and thus in mean and version."""
        return self.dataset_for_spec(self.base)

    def dataset_for_spec(self, spec: Any) -> Any:
        """Return the data set on which runs with this spec are trained and scored."""
        return self.data[self.workload.data_key(spec)]

    def dataset_for_run(self, run: Run) -> Any:
        """Return the data set on which a run is trained and scored."""
        return self.dataset_for_spec(run.spec)

    def training_examples(self, run: Run) -> int:
        """Return the number of examples that a run is trained on; 0 if it is not known."""
        return self.workload.training_examples(self.dataset_for_run(run))

    def total_epochs(self, run: Run) -> int | None:
        """Return the number of epochs of a run; None if it is not known."""
        return self.workload.total_epochs(run.spec, self.dataset_for_run(run))

    @property
    def data_summary(self) -> str:
        """Description of the data of all cells, such as `300 or 1,437 images to train, …`; empty if there is none."""
        data = [self.dataset_for_run(run) for run in self.runs if run.seed == 0]
        return self.workload.describe_data(data or [self.dataset])

    def shared_fields(self) -> dict[str, Any]:
        """Return the fields that all runs have in common, by dotted name."""
        return _shared(self.workload, self.base, self.grid, self.searched)

    @property
    def base_id(self) -> str:
        """Hash of the base configuration and the design. MLflow has one parent run for each of them and the study's name."""
        workload, shared = self.workload, self.shared_fields()
        data = workload.study_data_version(self.base, self.dataset, _varied(workload, self.grid))
        varied = sorted(map(workload.identity_name, filter(workload.is_identity, self.base.flat().keys() - shared.keys())))
        kind = [] if self.grid.kind == FACTORIAL else [self.grid.kind]
        kind += [*self.factors] if self.grid.kind == LADDER else sorted(self.grid.compound)  # the order of a ladder is its question
        text = json.dumps([workload.deviations(shared), varied, data, *kind], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


@dataclass(frozen=True, kw_only=True)
class Draft:
    """A study whose cells are expanded, before its data are read."""

    study: Study
    preset: str
    grid: Grid
    seeds: int
    """Number of seeds of each cell, at most."""
    seed_looks: tuple[int, ...] = ()
    """Looks of an adaptive study, as in `Plan.seed_looks`."""
    specs: Mapping[Cell, Any]
    """Configuration of each cell, before fields are resolved from the data set."""
    skipped: tuple[tuple[Cell, str], ...]
    searched: Collection[str] = ()

    @property
    def factors(self) -> Mapping[str, tuple[Level, ...]]:
        """Levels of each factor."""
        return self.grid.factors

    @property
    def base(self) -> Any:
        return next(iter(self.specs.values()))

    def shared_fields(self) -> dict[str, Any]:
        """Return the fields that all runs have in common, by dotted name."""
        return _shared(self.study.workload, self.base, self.grid, self.searched)


def _setting(field: str, value: object) -> str:
    """Return a setting as words: `batch 64`, `weight decay 0.01`, `nesterov`, `no flip`."""
    words = TITLE_WORDS.get(field, field.rpartition(".")[2].replace("_", " "))
    if value is None or isinstance(value, bool):
        return words if value else f"no {words}"
    text = format_level(value).replace("'", "")  # the name is quoted in filters
    return f"{words} {text if len(text) <= MAX_SETTING_CHARACTERS else f'{text[: MAX_SETTING_CHARACTERS - 1]}…'}"


def _varied(workload: Workload, grid: Grid) -> list[str]:
    """Return the dotted fields that the factors of a grid set."""
    return [field for name in grid.factors for field in grid.fields_of(name, workload.schema)]


def _shared(workload: Workload, base: Any, grid: Grid, searched: Collection[str]) -> dict[str, Any]:
    varied = {*_varied(workload, grid), "seed", *searched}
    return {name: value for name, value in base.flat().items() if name not in varied and workload.is_identity(name)}
