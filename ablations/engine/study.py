"""A study as data: factors × levels × seeds, expanded into the runs that answer its question."""

import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from resnet_core import PRESETS, ConfigError, RunSpec, fingerprint, override
from resnet_core.config import convert, field_name
from resnet_core.datasets import Dataset, load_dataset, resolve
from resnet_core.fields import reject
from resnet_core.identity import NOT_IDENTITY

Level = str | int | float | bool | None


@dataclass(frozen=True, kw_only=True)
class Study:
    """A question about networks, and the design of the experiment that answers it."""

    name: str
    """Name of the MLflow experiment."""
    question: str
    """One sentence, shown wherever results are."""
    factors: Mapping[str, Sequence[Level]]
    """What is varied: a `RunSpec` field (`depth`, `optim.lr`) and its levels."""
    baseline: Mapping[str, Level]
    """Levels that others are compared with. Factors not named are compared at equal level."""
    seeds: int = 3
    """Replicates of every cell: seeds 0, 1, …"""
    preset: str = "digits"
    """What it runs on unless `--preset` says otherwise."""
    levels: Mapping[str, Mapping[str, Sequence[Level]]] = field(default_factory=dict)
    """Other levels for some presets: `{"smoke": {"depth": (8, 14)}}`."""

    def __post_init__(self) -> None:
        if not self.name.replace("-", "").replace("_", "").isalnum():
            raise reject("study name", self.name, "accepted: letters, digits, - and _")
        for preset in (self.preset, *self.levels):
            if preset not in PRESETS:
                raise reject("preset", preset, f"accepted: {', '.join(PRESETS)}")
        for name in self.baseline:
            if name not in self.factors:
                raise reject("baseline", name, f"accepted: {', '.join(self.factors)}")


@dataclass(frozen=True)
class Cell:
    """One combination of levels, in the order of the study's factors."""

    levels: tuple[tuple[str, Level], ...]

    def __str__(self) -> str:
        return " ".join(f"{name}={_shown(level)}" for name, level in self.levels)


@dataclass(frozen=True)
class Run:
    """One training of one network: a cell with a seed."""

    cell: Cell
    seed: int
    spec: RunSpec
    fingerprint: str

    def __str__(self) -> str:
        return f"{self.cell} seed={self.seed}"


@dataclass(frozen=True, kw_only=True)
class Request:
    """What the command line asks of a study."""

    preset: str | None = None
    seeds: int | None = None
    levels: Mapping[str, Sequence[str]] = field(default_factory=dict)
    overrides: Mapping[str, Any] = field(default_factory=dict)
    workers: int = 1


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A study, resolved: every run with its identity, in the order in which to start them."""

    study: Study
    preset: str
    base: RunSpec
    """The preset with the request's overrides: what all runs share but for factors and seed."""
    factors: Mapping[str, tuple[Level, ...]]
    cells: tuple[Cell, ...]
    skipped: tuple[tuple[Cell, str], ...]
    """Combinations that do not exist, and why."""
    runs: tuple[Run, ...]
    dataset: Dataset

    def shared(self) -> dict[str, Any]:
        """The fields that all runs have in common."""
        varied = {field_name(name) for name in self.factors} | {"seed", *NOT_IDENTITY}
        return {name: value for name, value in self.base.flat().items() if name not in varied}

    @property
    def base_id(self) -> str:
        """Identity of the base configuration: what, with the study's name, one parent run in MLflow stands for."""
        text = json.dumps([self.shared(), self.dataset.version], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


def make_plan(study: Study, request: Request, *, cache: Path) -> Plan:
    """Expands a study into runs; raises ConfigError with one line if any part of the request is wrong."""
    preset = request.preset or study.preset
    if preset not in PRESETS:
        raise reject("--preset", preset, f"accepted: {', '.join(PRESETS)}")
    seeds = study.seeds if request.seeds is None else request.seeds
    if seeds < 1:
        raise reject("--seeds", seeds, "accepted: 1 or more")
    factors = _factors(study, preset, request)
    taken = sorted({field_name(n) for n in request.overrides} & {field_name(n) for n in factors})
    if taken:
        raise ConfigError(f"--set {taken[0]}: is a factor of this study; choose its levels with --levels")
    base = override(PRESETS[preset], {**request.overrides, "world_size": request.workers})
    cells, skipped = _cells(base, factors)
    # Bad runs surface before the data are read; only the data's own fields wait for them.
    dataset = load_dataset(base.data, cache)
    runs = []
    for seed in range(seeds):
        for cell in cells:
            spec = resolve(override(base, {**dict(cell.levels), "seed": seed}), dataset)
            runs.append(Run(cell, seed, spec, fingerprint(spec, data_version=dataset.version)))
        # Longest first within a seed: complete replicates early, and no long run alone at the end.
        runs[-len(cells) :] = sorted(runs[-len(cells) :], key=lambda run: -run.spec.model.depth)
    return Plan(
        study=study,
        preset=preset,
        base=base,
        factors=factors,
        cells=cells,
        skipped=skipped,
        runs=tuple(runs),
        dataset=dataset,
    )


def _factors(study: Study, preset: str, request: Request) -> dict[str, tuple[Level, ...]]:
    factors = {name: tuple(levels) for name, levels in {**study.factors, **study.levels.get(preset, {})}.items()}
    for name, texts in request.levels.items():
        dotted = field_name(name)
        if dotted in ("seed", "world_size") or dotted.startswith("data."):
            raise reject("--levels", name, "cannot be a factor: cells must share seeds, workers and data")
        known = {field_name(factor): factor for factor in factors}
        # Through RunSpec's own conversion, so that "20" is 20 and an unknown level says what is accepted.
        factors[known.get(dotted, name)] = tuple(convert(dotted, text) for text in texts)
    for name, levels in factors.items():
        if not levels:
            raise ConfigError(f"--levels {name}: accepted: one or more levels, such as {name}=a,b")
        if len(set(levels)) != len(levels):
            raise reject("--levels", f"{name}={','.join(map(_shown, levels))}", "a level is named twice")
    for name, level in study.baseline.items():
        if level not in factors[name]:
            raise reject("--levels", f"{name}={','.join(map(_shown, factors[name]))}", f"must hold the baseline {_shown(level)}")
    return factors


def _cells(base: RunSpec, factors: Mapping[str, tuple[Level, ...]]) -> tuple[tuple[Cell, ...], tuple[tuple[Cell, str], ...]]:
    """All combinations that exist, and the others with the reason. A level that exists nowhere is an error."""
    cells, skipped = [], []
    for levels in itertools.product(*factors.values()):
        cell = Cell(tuple(zip(factors, levels, strict=True)))
        try:
            override(base, dict(cell.levels))
            cells.append(cell)
        except ConfigError as error:
            skipped.append((cell, str(error)))
    for name, levels in factors.items():
        for level in levels:
            if not any((name, level) in cell.levels for cell in cells):
                raise ConfigError(next(reason for cell, reason in skipped if (name, level) in cell.levels))
    return tuple(cells), tuple(skipped)


def _shown(level: Level) -> str:
    return f"{level:g}" if isinstance(level, float) else str(level)
