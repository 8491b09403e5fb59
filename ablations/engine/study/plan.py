"""A study as data: factors × levels × seeds, expanded into the runs that answer its question."""

import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from ablations.engine.study.comparability import image_selection, selects_images, test_images_digest
from ablations.engine.study.definition import Study
from ablations.engine.study.factors import Level, format_level
from resnet_core import RunSpec
from resnet_core.config import DataConfig
from resnet_core.data.datasets import Dataset
from resnet_core.identity import NOT_IDENTITY, deviations
from resnet_core.overrides import field_name

CONFIGURATION = "configuration"
"""The factor that a search adds to its study: what it chose, beside the default."""
DEFAULT, TUNED = "default", "tuned"
"""Its levels; of a front, `front-1`, `front-2`, …"""


@dataclass(frozen=True)
class Cell:
    """One combination of levels, in the order of the study's factors."""

    levels: tuple[tuple[str, Level], ...]

    def __str__(self) -> str:
        return " ".join(f"{name}={format_level(level)}" for name, level in self.levels)


@dataclass(frozen=True, kw_only=True)
class SearchTrial:
    """What makes a run a trial of a search."""

    number: int
    """From 0, within the cell."""
    tag: str
    """Name of the tag in MLflow that says so."""
    values: Mapping[str, Any]
    """Of the searched fields, as they were suggested."""
    branch: tuple[int, int] | None = None
    """Number of the trial, and its epoch, the state of which this one may start from."""


@dataclass(frozen=True)
class Run:
    """One training of one network: a cell with a seed."""

    cell: Cell
    seed: int
    spec: RunSpec
    fingerprint: str
    trial: SearchTrial | None = field(default=None, compare=False)

    def __str__(self) -> str:
        return f"{self.cell} {f'trial={self.trial.number}' if self.trial else f'seed={self.seed}'}".lstrip()


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A study, resolved: every run with its identity, in the order in which to start them."""

    study: Study
    preset: str
    base: RunSpec
    """The first cell, with fields left to the data set: what all runs share but for factors and seed."""
    factors: Mapping[str, tuple[Level, ...]]
    cells: tuple[Cell, ...]
    skipped: tuple[tuple[Cell, str], ...]
    """Combinations that do not exist, and why."""
    runs: tuple[Run, ...]
    data: Mapping[DataConfig, Dataset]
    """The data sets of all runs, by `comparability.images_of`. Cells may differ in training images, never in those scored on."""
    searched: Collection[str] = ()
    """Fields in which runs differ besides factors and seed: those that a search chooses."""

    @property
    def title(self) -> str:
        """Name of the parent run in MLflow."""
        return f"{self.study.name} · {self.preset}"

    @property
    def baseline(self) -> Mapping[str, Level]:
        """Levels that others are compared with."""
        return self.study.baseline

    @property
    def dataset(self) -> Dataset:
        """Data of the first cell. Others may differ from it in training images, and in what follows from them, only."""
        return self.dataset_for_spec(self.base)

    def dataset_for_spec(self, spec: RunSpec) -> Dataset:
        """What runs with this spec are trained and scored on."""
        return self.data[image_selection(spec.data)]

    def dataset_for_run(self, run: Run) -> Dataset:
        """What a run is trained and scored on."""
        return self.dataset_for_spec(run.spec)

    def training_images(self, run: Run) -> int:
        """How many images a run is trained on."""
        return len(self.dataset_for_run(run).train.labels)

    @property
    def data_summary(self) -> str:
        """The images of all cells in words, with each number of training images: `300 or 1,437 images to train, …`."""
        data = sorted((self.dataset_for_run(run) for run in self.runs if run.seed == 0), key=lambda each: len(each.train.labels))
        return data[-1].described([len(each.train.labels) for each in data]) if data else self.dataset.summary

    def shared_fields(self) -> dict[str, Any]:
        """The fields that all runs have in common."""
        return _shared(self.base, self.factors, self.searched)

    @property
    def base_id(self) -> str:
        """Identity of the base configuration: what, with the study's name, one parent run in MLflow stands for."""
        selected = any(selects_images(field_name(name)) for name in self.factors if name != CONFIGURATION)
        # Where cells have data of their own, the base is the same whichever of them are asked for.
        data = test_images_digest(self.dataset) if selected else self.dataset.version
        shared = self.shared_fields()
        varied = sorted(self.base.flat().keys() - shared.keys() - {*NOT_IDENTITY})
        text = json.dumps([deviations(shared), varied, data], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


@dataclass(frozen=True, kw_only=True)
class Draft:
    """A study as far as it is known without its data."""

    study: Study
    preset: str
    factors: Mapping[str, tuple[Level, ...]]
    seeds: int
    specs: Mapping[Cell, RunSpec]
    """With fields left to the data set."""
    skipped: tuple[tuple[Cell, str], ...]
    searched: Collection[str] = ()

    @property
    def base(self) -> RunSpec:
        return next(iter(self.specs.values()))

    def shared_fields(self) -> dict[str, Any]:
        """The fields that all runs have in common."""
        return _shared(self.base, self.factors, self.searched)


def _shared(base: RunSpec, factors: Mapping[str, tuple[Level, ...]], searched: Collection[str]) -> dict[str, Any]:
    varied = {field_name(name) for name in factors if name != CONFIGURATION} | {"seed", *NOT_IDENTITY, *searched}
    return {name: value for name, value in base.flat().items() if name not in varied}
