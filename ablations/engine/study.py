"""A study as data: factors × levels × seeds, expanded into the runs that answer its question."""

import hashlib
import itertools
import json
import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from resnet_core import PRESETS, ConfigError, RunSpec, fingerprint, override
from resnet_core.data.datasets import Dataset, load_dataset, resolve
from resnet_core.fields import reject
from resnet_core.identity import NOT_IDENTITY, deviations
from resnet_core.overrides import convert, field_name

MOST_RUNS = 10_000
"""Runs of a study, at most: beyond, a typing error is more likely than the time to train them."""
STUDY_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
"""Safe as an MLflow experiment, in an address and as a file's name on every system."""

CONFIGURATION = "configuration"
"""The factor that a search adds to its study: what it chose, beside the default."""
DEFAULT, TUNED = "default", "tuned"
"""Its levels; of a front, `front-1`, `front-2`, …"""
LENGTHS = frozenset({"optim.epochs", "optim.iterations"})
"""Units of a training's length."""

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
    settings: Mapping[str, Any] = field(default_factory=dict)
    """`RunSpec` fields in which all runs differ from the preset: `{"probes": ("responses",)}`."""
    space: Callable[[Any], object] | None = None
    """Makes the study a search: called with an `optuna.Trial`, suggests `RunSpec` fields by their names, as in
    `trial.suggest_float("optim.lr", 1e-3, 1, log=True)`. Factors are then what `--per-cell` searches inside of."""
    on: Mapping[str, Mapping[str, Mapping[str, Any]]] = field(default_factory=dict)
    """Other or more factors, baseline levels and settings on some presets: `{"smoke": {"factors": {"depth": (8, 14)}}}`."""

    def __post_init__(self) -> None:
        if not STUDY_NAME.fullmatch(self.name):
            raise reject("study name", self.name, "accepted: up to 64 of a-z, A-Z, 0-9, - and _, the first a letter or digit")
        for preset in (self.preset, *self.on):
            if preset not in PRESETS:
                raise reject("preset", preset, f"accepted: {', '.join(PRESETS)}")
        for name in self.baseline:
            if name not in self.factors:
                raise reject("baseline", name, f"accepted: {', '.join(self.factors)}")
        for preset, changes in self.on.items():
            if unknown := set(changes) - {"factors", "baseline", "settings"}:
                raise reject(f"on {preset}", min(unknown), "accepted: factors, baseline, settings")

    def adapted(self, preset: str) -> "Study":
        """The study as it is on a preset."""
        changes = self.on.get(preset, {})
        merged: dict[str, Any] = {name: {**getattr(self, name), **values} for name, values in changes.items()}
        return replace(self, on={}, **merged)


@dataclass(frozen=True)
class Cell:
    """One combination of levels, in the order of the study's factors."""

    levels: tuple[tuple[str, Level], ...]

    def __str__(self) -> str:
        return " ".join(f"{name}={shown(level)}" for name, level in self.levels)


@dataclass(frozen=True, kw_only=True)
class Trial:
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
    trial: Trial | None = field(default=None, compare=False)

    def __str__(self) -> str:
        return f"{self.cell} {f'trial={self.trial.number}' if self.trial else f'seed={self.seed}'}".lstrip()


@dataclass(frozen=True, kw_only=True)
class Request:
    """What the command line asks of a study."""

    preset: str | None = None
    seeds: int | None = None
    levels: Mapping[str, Sequence[str]] = field(default_factory=dict)
    overrides: Mapping[str, Any] = field(default_factory=dict)
    probes: Sequence[str] = ()
    """What to look at besides the study's own probes."""
    workers: int = 1
    download: bool = False
    """Whether data that are missing may be downloaded."""


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
    dataset: Dataset
    searched: Collection[str] = ()
    """Fields in which runs differ besides factors and seed: those that a search chooses."""

    @property
    def title(self) -> str:
        """Name of the parent run in MLflow."""
        return f"{self.study.name} · {self.preset}"

    def data_of(self, run: Run) -> Dataset:
        """What a run is trained and scored on."""
        return self.dataset

    def shared(self) -> dict[str, Any]:
        """The fields that all runs have in common."""
        return _shared(self.base, self.factors, self.searched)

    @property
    def base_id(self) -> str:
        """Identity of the base configuration: what, with the study's name, one parent run in MLflow stands for."""
        shared = self.shared()
        varied = sorted(self.base.flat().keys() - shared.keys() - {*NOT_IDENTITY})
        text = json.dumps([deviations(shared), varied, self.dataset.version], sort_keys=True)
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

    def shared(self) -> dict[str, Any]:
        """The fields that all runs have in common."""
        return _shared(self.base, self.factors, self.searched)


def draft(study: Study, request: Request) -> Draft:
    """Expands a study into cells; raises ConfigError with one line if any part of the request is wrong."""
    preset = request.preset or study.preset
    if preset not in PRESETS:
        raise reject("--preset", preset, f"accepted: {', '.join(PRESETS)}")
    study = study.adapted(preset)
    seeds = study.seeds if request.seeds is None else request.seeds
    if seeds < 1:
        raise reject("--seeds", seeds, "accepted: 1 or more")
    factors = _factors(study, request)
    asked = {field_name(name): value for name, value in request.overrides.items()}
    if math.prod(map(len, factors.values())) * seeds > MOST_RUNS:
        levels = " × ".join(str(len(levels)) for levels in factors.values())
        raise reject("--seeds", seeds, f"with {levels} levels, accepted: at most {MOST_RUNS:,} runs")
    for name, option in (("seed", "--seeds"), ("world_size", "--workers")):
        if name in asked:
            raise reject("--set", name, f"accepted: {option} N")
    taken = sorted(asked.keys() & {field_name(n) for n in factors})
    if taken:
        raise ConfigError(f"--set {taken[0]}: is a factor of this study; choose its levels with --levels")
    settings = _settings(study, request, asked, {field_name(name) for name in factors})
    specs, skipped = _cells(PRESETS[preset], settings, factors)
    return Draft(study=study, preset=preset, factors=factors, seeds=seeds, specs=specs, skipped=tuple(skipped))


def make_plan(study: Study, request: Request, *, cache: Path) -> Plan:
    """Expands a study into runs; raises ConfigError with one line if any part of the request is wrong."""
    # Bad runs surface before the data are read; only the data's own fields wait for them.
    return with_data(draft(study, request), request, cache=cache)


def with_data(drafted: Draft, request: Request, *, cache: Path) -> Plan:
    """The runs of a draft, on its data; raises ConfigError if no cell exists there."""
    dataset = load_dataset(drafted.base.data, cache, download=request.download)
    specs, impossible = _on_data(drafted.specs, dataset)
    return Plan(
        study=drafted.study,
        preset=drafted.preset,
        base=drafted.base,
        factors=drafted.factors,
        cells=tuple(specs),
        skipped=(*drafted.skipped, *impossible),
        runs=expanded(specs, drafted.seeds, dataset),
        dataset=dataset,
        searched=drafted.searched,
    )


def expanded(specs: Mapping[Cell, RunSpec], seeds: int, dataset: Dataset) -> tuple[Run, ...]:
    """The runs of these cells, in the order in which to start them."""
    runs: list[Run] = []
    for seed in range(seeds):
        seeded = [(cell, replace(spec, seed=seed)) for cell, spec in specs.items()]
        replicate = [Run(cell, seed, spec, fingerprint(spec, data_version=dataset.version)) for cell, spec in seeded]
        # Longest first within a seed: complete replicates early, and no long run alone at the end.
        runs += sorted(replicate, key=lambda run: -run.spec.model.depth)
    return tuple(runs)


def _shared(base: RunSpec, factors: Mapping[str, tuple[Level, ...]], searched: Collection[str]) -> dict[str, Any]:
    varied = {field_name(name) for name in factors if name != CONFIGURATION} | {"seed", *NOT_IDENTITY, *searched}
    return {name: value for name, value in base.flat().items() if name not in varied}


def _settings(study: Study, request: Request, asked: Mapping[str, Any], varied: Set[str]) -> dict[str, Any]:
    """The fields in which all runs differ from the preset, as the study and the request want them."""
    settings = {field_name(name): value for name, value in study.settings.items()}
    if LENGTHS & (asked.keys() | varied):  # in the unit that is asked for
        settings = {name: value for name, value in settings.items() if name not in LENGTHS}
    settings |= {**asked, "world_size": request.workers}
    if request.probes:
        named = (part for text in request.probes for part in convert("probes", text))
        settings["probes"] = tuple(dict.fromkeys((*convert("probes", settings.get("probes", ())), *named)))
    return settings


def _factors(study: Study, request: Request) -> dict[str, tuple[Level, ...]]:
    factors = {name: tuple(levels) for name, levels in study.factors.items()}
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
            raise reject("--levels", f"{name}={','.join(map(shown, levels))}", "a level is named twice")
    for name, level in study.baseline.items():
        if level not in factors[name]:
            raise reject("--levels", f"{name}={','.join(map(shown, factors[name]))}", f"must hold the baseline {shown(level)}")
    return factors


def _cells(
    preset: RunSpec, settings: Mapping[str, Any], factors: Mapping[str, tuple[Level, ...]]
) -> tuple[dict[Cell, RunSpec], list[tuple[Cell, str]]]:
    """All combinations that exist, and the others with the reason. A level that exists nowhere is an error."""
    specs, skipped = {}, []
    for levels in itertools.product(*factors.values()):
        cell = Cell(tuple(zip(factors, levels, strict=True)))
        try:
            # At once: a preset's or a setting's value may fit only together with a level, or be replaced by it.
            values = {**settings, **{field_name(name): level for name, level in cell.levels}}
            _check_length(values)
            specs[cell] = override(preset, values)
        except ConfigError as error:
            skipped.append((cell, str(error)))
    exist = {choice for cell in specs for choice in cell.levels}
    for name, levels in factors.items():
        for level in levels:
            if (name, level) not in exist:
                raise ConfigError(next(reason for cell, reason in skipped if (name, level) in cell.levels))
    return specs, skipped


def _check_length(values: Mapping[str, Any]) -> None:
    """Raises ConfigError where both units of a training's length are named: one would be ignored without a word."""
    iterations = convert("optim.iterations", values.get("optim.iterations"))
    if iterations is not None and "optim.epochs" in values:
        raise reject("optim.iterations", iterations, "is the length of the training, and so is optim.epochs; accepted: one of them")


def _on_data(specs: Mapping[Cell, RunSpec], dataset: Dataset) -> tuple[dict[Cell, RunSpec], list[tuple[Cell, str]]]:
    """What each cell is on a data set, and the cells that do not exist there or are the same as another one, with the reason."""
    found: dict[Cell, RunSpec] = {}
    first: dict[RunSpec, Cell] = {}
    skipped = []
    for cell, unresolved in specs.items():
        try:
            spec = resolve(unresolved, dataset)
        except ConfigError as error:
            skipped.append((cell, str(error)))
            continue
        if spec in first:
            skipped.append((cell, f"the same network as {first[spec]}"))
        else:
            found[cell], first[spec] = spec, cell
    if not found:
        raise ConfigError(skipped[0][1])
    return found, skipped


def shown(level: Level) -> str:
    short = f"{level:g}" if isinstance(level, float) else str(level)
    return short if not isinstance(level, float) or float(short) == level else repr(level)  # two levels never look alike
