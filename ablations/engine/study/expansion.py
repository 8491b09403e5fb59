"""Expansion of a study and a request into cells and runs."""

import itertools
import math
from collections.abc import Collection, Mapping, Sequence, Set
from dataclasses import replace
from pathlib import Path
from typing import Any

from ablations.engine.study.comparability import check_comparable, image_selection, load_datasets, training_key
from ablations.engine.study.definition import Study, check_preset
from ablations.engine.study.factors import NOT_SETTINGS, Level, format_level, validated_factors
from ablations.engine.study.plan import Cell, Draft, Plan, Run
from ablations.engine.study.request import StudyRequest
from resnet_core import PRESETS, ConfigError, RunSpec, fingerprint, override
from resnet_core.config import DataConfig
from resnet_core.data.datasets import Dataset, resolve
from resnet_core.fields import reject
from resnet_core.overrides import convert, field_name

MAX_RUNS = 10_000
"""Maximum number of runs of a study. A larger number is more likely a typing error than intended."""
LENGTH_FIELDS = frozenset({"optim.epochs", "optim.iterations"})
"""Fields that set the length of a training, each in its own unit."""
MAX_SETTING_CHARACTERS = 6000
"""Maximum length of a field's value as text. MLflow truncates longer parameters silently."""


def make_draft(study: Study, request: StudyRequest) -> Draft:
    """Expand a study into cells, without reading data; raise ConfigError if any part of the request is invalid."""
    preset = request.preset or study.preset
    check_preset("--preset", preset)
    study = study.for_preset(preset)
    seeds = study.seeds if request.seeds is None else request.seeds
    if seeds < 1:
        raise reject("--seeds", seeds, "accepted: 1 or more")
    factors = _factors(study, request)
    asked = {field_name(name): value for name, value in request.overrides.items()}
    if math.prod(map(len, factors.values())) * seeds > MAX_RUNS:
        levels = " × ".join(str(len(levels)) for levels in factors.values())
        raise reject("--seeds", seeds, f"with {levels} levels, accepted: at most {MAX_RUNS:,} runs")
    for name, option in NOT_SETTINGS.items():
        if name in asked:
            raise reject("--set", name, f"accepted: {option}")
    taken = sorted(asked.keys() & {field_name(n) for n in factors})
    if taken:
        raise ConfigError(f"--set {taken[0]}: is a factor of this study; set its levels with --levels")
    settings = _settings(study, request, asked, {field_name(name) for name in factors})
    specs, skipped = _cells(PRESETS[preset], settings, factors)
    return Draft(study=study, preset=preset, factors=factors, seeds=seeds, specs=specs, skipped=tuple(skipped))


def make_plan(study: Study, request: StudyRequest, *, cache: Path) -> Plan:
    """Expand a study into runs; raise ConfigError if any part of the request is invalid."""
    # Most invalid requests are found before the data are read, which may take long.
    return resolve_draft(make_draft(study, request), request, cache=cache)


def resolve_draft(drafted: Draft, request: StudyRequest, *, cache: Path) -> Plan:
    """Read the data of a draft and return its plan; raise ConfigError if no cell can be trained on them."""
    data = load_datasets(drafted.specs.values(), cache, download=request.download)
    check_comparable(drafted.factors, list(data.values()), drafted.base.data.evaluation_split)
    specs, impossible = _on_data(drafted.specs, data, drafted.study.baseline)
    return Plan(
        study=drafted.study,
        preset=drafted.preset,
        base=drafted.base,
        factors=drafted.factors,
        cells=tuple(specs),
        skipped=(*drafted.skipped, *impossible),
        runs=expand_runs(specs, drafted.seeds, data),
        data=data,
        searched=drafted.searched,
    )


def expand_runs(specs: Mapping[Cell, RunSpec], seeds: int, data: Mapping[DataConfig, Dataset]) -> tuple[Run, ...]:
    """Return the runs of these cells in the order in which to start them."""
    runs: list[Run] = []
    versions = {cell: data[image_selection(spec.data)].version for cell, spec in specs.items()}
    for seed in range(seeds):
        seeded = [(cell, replace(spec, seed=seed)) for cell, spec in specs.items()]
        replicate = [Run(cell, seed, spec, fingerprint(spec, data_version=versions[cell])) for cell, spec in seeded]
        # Seed by seed, so that replicates are complete early; deepest first, so that no long run is left alone at the end.
        runs += sorted(replicate, key=lambda run: -run.spec.depth)
    return tuple(runs)


def _settings(study: Study, request: StudyRequest, asked: Mapping[str, Any], varied: Set[str]) -> dict[str, Any]:
    """Return the fields in which all runs differ from the preset: the study's settings, overridden by the request."""
    settings = {field_name(name): value for name, value in study.settings.items()}
    if LENGTH_FIELDS & (asked.keys() | varied):  # the requested length replaces that of the settings, which may have another unit
        settings = {name: value for name, value in settings.items() if name not in LENGTH_FIELDS}
    settings |= {**asked, "world_size": request.workers}
    if request.probes:
        named = (part for text in request.probes for part in convert("probes", text))
        settings["probes"] = tuple(dict.fromkeys((*convert("probes", settings.get("probes", ())), *named)))
    return settings


def _factors(study: Study, request: StudyRequest) -> dict[str, tuple[Level, ...]]:
    """Return the study's factors with the requested levels, in the study's order and under its names."""
    own = {field_name(name): name for name in study.factors}
    # Levels are converted to the types of their RunSpec fields: "20" becomes 20, and an unknown level is rejected.
    asked = {own.get(field_name(name), name): levels for name, levels in validated_factors("--levels", request.levels).items()}
    factors = {name: tuple(levels) for name, levels in study.factors.items()} | asked
    for name, level in study.baseline.items():
        if level not in factors[name]:
            raise reject(
                "--levels",
                f"{name}={','.join(map(format_level, factors[name]))}",
                f"must include the baseline {format_level(level)}",
            )
    return factors


def _cells(
    preset: RunSpec, settings: Mapping[str, Any], factors: Mapping[str, tuple[Level, ...]]
) -> tuple[dict[Cell, RunSpec], list[tuple[Cell, str]]]:
    """Return the valid combinations, and the invalid ones with the reason. Raise ConfigError if a level is never valid."""
    specs, skipped = {}, []
    for levels in itertools.product(*factors.values()):
        cell = Cell(tuple(zip(factors, levels, strict=True)))
        try:
            # All overrides are applied together: a setting may be valid only in combination with a level.
            values = {**settings, **{field_name(name): level for name, level in cell.levels}}
            _check_length(values)
            specs[cell] = override(preset, values)
            check_storable(specs[cell])
        except ConfigError as error:
            specs.pop(cell, None)
            skipped.append((cell, str(error)))
    _check_levels_exist(specs, skipped)
    return specs, skipped


def _check_levels_exist(specs: Collection[Cell], refused: Sequence[tuple[Cell, str]]) -> None:
    """Raise ConfigError with the reason if a level, or every combination, is invalid."""
    exist = {choice for cell in specs for choice in cell.levels}
    for cell, reason in refused:
        if not specs or not exist.issuperset(cell.levels):
            raise ConfigError(reason)


def check_storable(spec: RunSpec) -> None:
    """Raise ConfigError for a value that MLflow would truncate: the run could be neither found nor replayed."""
    for name, value in spec.flat().items():
        if isinstance(value, (str, tuple)) and len(text := str(value)) > MAX_SETTING_CHARACTERS:
            accepted = f"{len(text):,} characters; accepted: at most {MAX_SETTING_CHARACTERS:,}, the limit of MLflow"
            raise reject(name, f"{text[:40]}…", accepted)


def _check_length(values: Mapping[str, Any]) -> None:
    """Raise ConfigError if both the epochs and the iterations are given: one would be ignored silently."""
    iterations = convert("optim.iterations", values.get("optim.iterations"))
    if iterations is not None and "optim.epochs" in values:
        raise reject(
            "optim.iterations",
            iterations,
            "conflicts with optim.epochs, which sets the length of the training too; accepted: one of them",
        )


def _on_data(
    specs: Mapping[Cell, RunSpec], data: Mapping[DataConfig, Dataset], baseline: Mapping[str, Level]
) -> tuple[dict[Cell, RunSpec], list[tuple[Cell, str]]]:
    """Resolve each cell on its data. Return the cells to train, and the skipped ones with the reason.

    A cell is skipped if it cannot be trained on its data, or if its training equals that of another cell. Of equal cells the one
    with the baseline's levels is kept, since others are compared with it; otherwise the first.
    """
    found: dict[Cell, RunSpec] = {}
    alike: dict[str, list[Cell]] = {}
    refused = []
    for cell, unresolved in specs.items():
        dataset = data[image_selection(unresolved.data)]
        try:
            found[cell] = resolve(unresolved, dataset)
        except ConfigError as error:
            refused.append((cell, str(error)))
            continue
        alike.setdefault(training_key(found[cell], dataset), []).append(cell)
    _check_levels_exist(found, refused)
    stays = {
        cell: max(cells, key=lambda each: baseline.items() <= dict(each.levels).items())
        for cells in alike.values()
        for cell in cells
    }
    skipped = [(cell, f"the same training as {stays[cell]}") for cell in found if stays[cell] != cell]
    return {cell: spec for cell, spec in found.items() if stays[cell] == cell}, [*refused, *skipped]
