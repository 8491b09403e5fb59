"""Expansion of a study and a request into cells and runs."""

from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ablations.engine.study import designs
from ablations.engine.study.definition import Study, check_preset
from ablations.engine.study.factors import NOT_SETTINGS, Level, format_level, validated_factors
from ablations.engine.study.grid import Grid, make_grid
from ablations.engine.study.plan import Cell, Draft, Plan, Run
from ablations.engine.study.request import StudyRequest
from ablations.engine.study.seeds import max_seeds, read_seeds
from ablations.engine.task.workload import Workload
from resnet_core.fields import ConfigError, reject

MAX_RUNS = 10_000
"""Maximum number of runs of a study. A larger number is more likely a typing error than intended."""
MAX_SETTING_CHARACTERS = 6000
"""Maximum length of a field's value as text. MLflow truncates longer parameters silently."""


def make_draft(study: Study, request: StudyRequest) -> Draft:
    """Expand a study into cells, without reading data; raise ConfigError if any part of the request is invalid."""
    preset = request.preset or study.preset
    check_preset("--preset", preset, study.workload)
    study = study.for_preset(preset)
    if request.margin is not None:
        study = replace(study, margin=request.margin)
    workload, field_name = study.workload, study.workload.schema.field_name
    asked_seeds = read_seeds("seeds", study.seeds) if request.seeds is None else request.seeds
    looks = asked_seeds if isinstance(asked_seeds, tuple) else ()
    seeds = max_seeds(asked_seeds)
    if seeds < 1:
        raise reject("--seeds", seeds, "accepted: 1 or more")
    grid = _grid(study, request)
    asked = {field_name(name): value for name, value in request.overrides.items()}
    cells = designs.size(grid.kind, grid.factors)
    if cells * seeds > MAX_RUNS:
        levels = " × ".join(str(len(levels)) for levels in grid.factors.values())
        of = f"{levels} levels" if grid.kind == designs.FACTORIAL else f"{cells} cells"
        raise reject("--seeds", seeds, f"with {of}, accepted: at most {MAX_RUNS:,} runs")
    for name, option in NOT_SETTINGS.items():
        if name in asked:
            raise reject("--set", name, f"accepted: {option}")
    of_fields = {field: name for name in grid.factors for field in grid.fields_of(name, workload.schema)}
    if taken := sorted(asked.keys() & of_fields.keys()):
        name = of_fields[taken[0]]
        what = f"is set by {name}, a factor of this study" if name in grid.compound else "is a factor of this study"
        raise ConfigError(f"--set {taken[0]}: {what}; set its levels with --levels")
    settings = _settings(study, request, asked)
    replaced = workload.length_fields if asked.keys().isdisjoint(workload.length_fields) else ()
    specs, skipped = _cells(workload, preset, settings, grid, replaced)
    return Draft(study=study, preset=preset, grid=grid, seeds=seeds, seed_looks=looks, specs=specs, skipped=tuple(skipped))


def make_plan(study: Study, request: StudyRequest, *, cache: Path) -> Plan:
    """Expand a study into runs; raise ConfigError if any part of the request is invalid."""
    # Most invalid requests are found before the data are read, which may take long.
    return resolve_draft(make_draft(study, request), request, cache=cache)


def resolve_draft(drafted: Draft, request: StudyRequest, *, cache: Path) -> Plan:
    """Read the data of a draft and return its plan; raise ConfigError if no cell can be trained on them."""
    workload = drafted.study.workload
    data = workload.load_all(drafted.specs.values(), cache, download=request.download)
    grid = drafted.grid
    levels = {
        field: f"{name}={','.join(map(format_level, of_factor))}"
        for name, of_factor in grid.factors.items()
        for field in grid.fields_of(name, workload.schema)
    }
    workload.check_comparable(levels, list(data.values()), drafted.base)
    specs, impossible = _on_data(workload, drafted.specs, data, grid.baseline)
    designs.check_combinations(grid.kind, specs, impossible)
    return Plan(
        study=drafted.study,
        preset=drafted.preset,
        base=drafted.base,
        factors=grid.factors,
        grid=grid,
        cells=tuple(specs),
        skipped=(*drafted.skipped, *impossible),
        runs=expand_runs(workload, specs, drafted.seeds, data),
        data=data,
        searched=drafted.searched,
        seed_looks=drafted.seed_looks,
    )


def expand_runs(workload: Workload, specs: Mapping[Cell, Any], seeds: int, data: Mapping[Hashable, Any]) -> tuple[Run, ...]:
    """Return the runs of these cells in the order in which to start them."""
    runs: list[Run] = []
    versions = {cell: data[workload.data_key(spec)].version for cell, spec in specs.items()}
    for seed in range(seeds):
        seeded = [(cell, replace(spec, seed=seed)) for cell, spec in specs.items()]
        replicate = [Run(cell, seed, spec, workload.fingerprint(spec, versions[cell])) for cell, spec in seeded]
        # Seed by seed, so that replicates are complete early; longest first, so that no long run is left alone at the end.
        runs += sorted(replicate, key=lambda run: -workload.relative_cost(run.spec))
    return tuple(runs)


def _settings(study: Study, request: StudyRequest, asked: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields in which all runs differ from the preset: the study's settings, overridden by the request."""
    schema, lengths = study.workload.schema, set(study.workload.length_fields)
    settings = {schema.field_name(name): value for name, value in study.settings.items()}
    if lengths & asked.keys():  # the requested length replaces that of the settings, which may have another unit
        settings = {name: value for name, value in settings.items() if name not in lengths}
    settings |= {**asked, "world_size": request.workers}
    if request.probes:
        if "probes" not in schema.names:
            raise reject("--probe", request.probes[0], f"the task {study.workload.task_name} has no probes")
        named = (part for text in request.probes for part in schema.convert("probes", text))
        settings["probes"] = tuple(dict.fromkeys((*schema.convert("probes", settings.get("probes", ())), *named)))
    return settings


def _grid(study: Study, request: StudyRequest) -> Grid:
    """Return the study's factors with the requested levels, in the study's order and under its names, and the requested design."""
    kind = request.design or study.design
    designs.check_design("--design", kind)
    field_name = study.workload.schema.field_name
    chosen = {name: levels for name, levels in request.levels.items() if name in study.compound_factors}
    others = {name: levels for name, levels in request.levels.items() if name not in chosen}
    paired = {field_name(name): "+".join(group) for group in study.zip for name in group}
    of_arms = {field for settings in study.arms.values() for field in settings}
    for name in others:
        if compound := paired.get(field_name(name)):
            raise reject("--levels", name, f"is paired with others; accepted: {compound}=…")
        if field_name(name) in of_arms:
            raise reject("--levels", name, "is set by arms of the study; accepted: fields that no arm sets")
    grid = make_grid(kind, _factors(study, others), study.baseline, study.arms, study.zip, study.workload.schema)
    restricted = dict(grid.factors)
    for name, levels in chosen.items():
        if isinstance(levels, str) or not isinstance(levels, Sequence) or not levels:
            raise reject(f"--levels {name}", levels, f"accepted: a list of {', '.join(map(format_level, grid.factors[name]))}")
        for asked in levels:
            if asked not in grid.factors[name]:
                raise reject(f"--levels {name}", asked, f"accepted: {', '.join(map(format_level, grid.factors[name]))}")
        restricted[name] = tuple(dict.fromkeys(levels))
    grid = replace(grid, factors=restricted)
    for name, level in grid.baseline.items():
        if level not in grid.factors[name]:
            levels = f"{name}={','.join(map(format_level, grid.factors[name]))}"
            raise reject("--levels", levels, f"must include the baseline {format_level(level)}")
    return grid


def _factors(study: Study, requested: Mapping[str, Sequence[str]]) -> dict[str, tuple[Level, ...]]:
    """Return the levels of the study's fields, with those that are requested."""
    field_name = study.workload.schema.field_name
    own = {field_name(name): name for name in study.factors}
    # Levels are converted to the types of their fields: "20" becomes 20, and an unknown level is rejected.
    given = validated_factors("--levels", requested, study.workload)
    asked = {own.get(field_name(name), name): levels for name, levels in given.items()}
    return {name: tuple(levels) for name, levels in study.factors.items()} | asked


def _cells(
    workload: Workload, preset: str, settings: Mapping[str, Any], grid: Grid, replaced: Collection[str]
) -> tuple[dict[Cell, Any], list[tuple[Cell, str]]]:
    """Return the valid combinations, and the invalid ones with the reason. Raise ConfigError if a level is never valid.

    Args:
        workload: trainings of the study.
        preset: name of their preset.
        settings: fields in which all of them differ from it.
        grid: combinations of levels.
        replaced: settings that a cell replaces all of if it sets one of them.
    """
    specs, skipped = {}, []
    for levels in grid.combinations:
        cell = Cell(tuple(zip(grid.factors, levels, strict=True)))
        try:
            # All overrides are applied together: a setting may be valid only in combination with a level.
            own = grid.values(dict(cell.levels), workload.schema)
            # A cell's own length replaces that of the study's settings, which may have another unit.
            lengths = replaced if not own.keys().isdisjoint(replaced) else ()
            values = {**{name: value for name, value in settings.items() if name not in lengths}, **own}
            workload.check_settings(values)
            specs[cell] = workload.override(workload.presets[preset], values)
            check_storable(specs[cell])
        except ConfigError as error:
            specs.pop(cell, None)
            skipped.append((cell, str(error)))
    _check_levels_exist(specs, skipped)
    designs.check_combinations(grid.kind, specs, skipped)
    return specs, skipped


def _check_levels_exist(specs: Collection[Cell], refused: Sequence[tuple[Cell, str]]) -> None:
    """Raise ConfigError with the reason if a level, or every combination, is invalid."""
    exist = {choice for cell in specs for choice in cell.levels}
    for cell, reason in refused:
        if not specs or not exist.issuperset(cell.levels):
            raise ConfigError(reason)


def check_storable(spec: Any) -> None:
    """Raise ConfigError for a value that MLflow would truncate: the run could be neither found nor replayed."""
    for name, value in spec.flat().items():
        if isinstance(value, (str, tuple)) and len(text := str(value)) > MAX_SETTING_CHARACTERS:
            accepted = f"{len(text):,} characters; accepted: at most {MAX_SETTING_CHARACTERS:,}, the limit of MLflow"
            raise reject(name, f"{text[:40]}…", accepted)


def _on_data(
    workload: Workload, specs: Mapping[Cell, Any], data: Mapping[Hashable, Any], baseline: Mapping[str, Level]
) -> tuple[dict[Cell, Any], list[tuple[Cell, str]]]:
    """Resolve each cell on its data. Return the cells to train, and the skipped ones with the reason.

    A cell is skipped if it cannot be trained on its data, or if its training equals that of another cell. Of equal cells the one
    with the baseline's levels is kept, since others are compared with it; otherwise the first.
    """
    found: dict[Cell, Any] = {}
    alike: dict[str, list[Cell]] = {}
    refused = []
    for cell, unresolved in specs.items():
        dataset = data[workload.data_key(unresolved)]
        try:
            found[cell] = workload.resolve(unresolved, dataset)
        except ConfigError as error:
            refused.append((cell, str(error)))
            continue
        alike.setdefault(workload.fingerprint(replace(found[cell], seed=0), dataset.version), []).append(cell)
    _check_levels_exist(found, refused)
    stays = {
        cell: max(cells, key=lambda each: baseline.items() <= dict(each.levels).items())
        for cells in alike.values()
        for cell in cells
    }
    skipped = [(cell, f"the same training as {stays[cell]}") for cell in found if stays[cell] != cell]
    return {cell: spec for cell, spec in found.items() if stays[cell] == cell}, [*refused, *skipped]
