"""A study as data: factors × levels × seeds, expanded into the runs that answer its question."""

import hashlib
import json
from collections.abc import Collection, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ablations.engine.study.definition import Study
from ablations.engine.study.designs import FACTORIAL, LADDER
from ablations.engine.study.factors import Level, format_level
from ablations.engine.study.grid import Grid
from ablations.engine.task.metric import Metric
from ablations.engine.task.workload import Workload

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
        """Name of the parent run in MLflow."""
        design = "" if self.grid.kind == FACTORIAL else f" · {self.grid.kind}"
        return f"{self.study.name} · {self.preset}{design}"

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


def _varied(workload: Workload, grid: Grid) -> list[str]:
    """Return the dotted fields that the factors of a grid set."""
    return [field for name in grid.factors for field in grid.fields_of(name, workload.schema)]


def _shared(workload: Workload, base: Any, grid: Grid, searched: Collection[str]) -> dict[str, Any]:
    varied = {*_varied(workload, grid), "seed", *searched}
    return {name: value for name, value in base.flat().items() if name not in varied and workload.is_identity(name)}
