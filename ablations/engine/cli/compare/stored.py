"""Comparison of two studies that MLflow has, paired by cell and seed, without training."""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from ablations.engine.cli.studies import catalog
from ablations.engine.cli.studies.catalog import StudyEntry
from ablations.engine.cli.studies.documents import print_document
from ablations.engine.cli.studies.reader import Reader, read, tracking_uri
from ablations.engine.cli.studies.run_rows import RunRow, StoredRuns
from ablations.engine.cli.studies.show_command import stored_runs
from ablations.engine.study.design import Design
from ablations.engine.study.factors import is_level
from resnet_core.fields import ConfigError, counted, enumerated, reject

if TYPE_CHECKING:
    from ablations.engine.analysis.statistics.estimate import Estimate
    from ablations.engine.analysis.verdicts.change import ChangeFinding

SCHEMA = "ablations-stored-comparison/1"
ENDED = ("completed", "diverged", "oom", "failed")
"""Outcomes of runs that a comparison counts; the others have not been trained to their end."""
MAX_SETTINGS = 6
"""Maximum number of different settings that the output names."""
MAX_CELLS = 3
"""Maximum number of cells of a study that a message names."""
Key = tuple[tuple[str, str], ...]
"""A cell by the levels of the factors that both studies have."""


@dataclass(frozen=True, kw_only=True)
class ComparedCell:
    """A cell that both studies have."""

    name: str
    base: Mapping[int, RunRow]
    """Its ended runs in the first study, by seed."""
    changed: Mapping[int, RunRow]
    """Its ended runs in the second study, by seed."""

    @property
    def differences(self) -> dict[int, float]:
        """Second minus first value, by seed at which both completed."""
        found = {}
        for seed in sorted(self.base.keys() & self.changed.keys()):
            before, after = self.base[seed].value, self.changed[seed].value
            if self.base[seed].completed and self.changed[seed].completed and before is not None and after is not None:
                found[seed] = after - before
        return found


@dataclass(frozen=True, kw_only=True)
class StoredComparison:
    """Two studies and the cells that both have."""

    base: StoredRuns
    changed: StoredRuns
    cells: Sequence[ComparedCell]
    left_out: int
    """Number of cells of either study without a counterpart."""


def run(given: argparse.Namespace) -> int:
    """Compare the studies and print the differences; return the exit code."""
    found = read(tracking_uri(given), lambda reader: _find(reader, given.base, given.changed))
    from ablations.engine.analysis.statistics.inference import paired_tests, zero_tolerance
    from ablations.engine.analysis.verdicts.change import judge_change

    values = [
        row.value for cell in found.cells for side in (cell.base, cell.changed) for row in side.values() if row.value is not None
    ]
    seeds = sorted({seed for cell in found.cells for seed in cell.differences}) or [0]
    rows = [[cell.differences.get(seed, float("nan")) for seed in seeds] for cell in found.cells]
    estimates = paired_tests(rows, zero_tolerance(values))
    base, changed = _values(found)
    finding = judge_change(base, changed, found.base.design.metric, by=given.by, looks=given.looks)
    if given.json:
        print_document(_document(found, estimates, finding, given))
    else:
        _print(found, estimates, finding)
    return 0


def _find(reader: Reader, base: str, changed: str) -> StoredComparison:
    entries = catalog.list_studies(reader)
    chosen = [catalog.find_exactly_one(entries, name) for name in (base, changed)]
    if chosen[0].run_id == chosen[1].run_id:
        raise ConfigError(f"compare: {base} and {changed} are the same study; accepted: two studies, or --study FILE and two sides")
    first, second = (stored_runs(reader, entry) for entry in chosen)
    _check_comparable(first.design, second.design)
    for name, side in ((base, first), (changed, second)):
        if not any(row.outcome in ENDED for row in side.runs):
            raise reject("NAME", name, "has no run that has ended; accepted: studies with a trained run")
    pairs, left_out = _pair_cells(first, second)
    if not pairs:
        shown = "; ".join(enumerated([cell.label for cell in each.design.cells], MAX_CELLS) for each in (first, second))
        raise ConfigError(
            f"compare: the studies have no cell in common: {shown}; accepted: studies with equal levels of their factors"
        )
    if all(
        cell.base[seed].fingerprint == cell.changed[seed].fingerprint for cell in pairs for seed in cell.base.keys() & cell.changed
    ):
        raise ConfigError(f"compare: {base} and {changed} share all their runs or have no seed in common, so that nothing differs")
    return StoredComparison(base=first, changed=second, cells=pairs, left_out=left_out)


def _check_comparable(base: Design, changed: Design) -> None:
    """Raise ConfigError if the studies are scored differently."""
    for what, values in {
        "data sets": (base.dataset, changed.dataset),
        "metrics": (base.metric.heading, changed.metric.heading),
    }.items():
        if values[0] != values[1]:
            raise ConfigError(
                f"compare: the studies have different {what}: {values[0]}; {values[1]}; accepted: studies scored alike"
            )


def _pair_cells(base: StoredRuns, changed: StoredRuns) -> tuple[list[ComparedCell], int]:
    """Return the cells that both studies have, and how many have no counterpart.

    A factor that only one study varies is there at the value that the other study has, or else at its baseline.
    """
    shared = [name for name in base.design.factors if name in changed.design.factors]
    sides = [_cells_by_key(one, other.design, shared) for one, other in ((base, changed), (changed, base))]
    keys = [key for key in sides[0] if key in sides[1]]
    name = {key: " ".join(f"{factor}={level}" for factor, level in key) or "all" for key in keys}
    left_out = len(base.design.cells) + len(changed.design.cells) - 2 * len(keys)
    return [ComparedCell(name=name[key], base=sides[0][key], changed=sides[1][key]) for key in keys], left_out


def _cells_by_key(found: StoredRuns, other: Design, shared: Sequence[str]) -> dict[Key, dict[int, RunRow]]:
    """Return the ended runs of a study by cell and seed; raise ConfigError if the shared factors do not tell its cells apart."""
    design, fixed = found.design, {}
    for factor, levels in found.design.factors.items():
        if factor not in shared:
            fixed[factor] = _level_in(other, factor, levels) or design.baseline.get(factor) or ",".join(levels)
            if fixed[factor] not in levels:
                raise reject(
                    f"compare {factor}", fixed[factor], "is varied in one study only; accepted: factors of both, or a baseline"
                )
    sides: dict[Key, dict[int, RunRow]] = {}
    for row in found.runs:
        if row.outcome in ENDED and all(row.levels[factor] == level for factor, level in fixed.items()):
            sides.setdefault(tuple((name, row.levels[name]) for name in shared), {})[row.seed] = row
    return sides


def _level_in(other: Design, factor: str, levels: Sequence[str]) -> str:
    """Return the level that a field has in all cells of another study; empty if it has none of these, or several."""
    values = [value for cell in other.cells for name, value in cell.spec.items() if name == factor or name.endswith(f".{factor}")]
    found = {level for level in levels for value in values if is_level(value, level)}
    return found.pop() if len(found) == 1 else ""


def _values(found: StoredComparison) -> tuple[dict[int, list[float | None]], dict[int, list[float | None]]]:
    """Return the values of both sides by seed, one per cell; None for a run that failed. Seeds that lack a run are left out."""
    seeds = set.intersection(*(set(side) for cell in found.cells for side in (cell.base, cell.changed)))
    base, changed = (
        {
            seed: [row.value if row.completed else None for row in (getattr(cell, side)[seed] for cell in found.cells)]
            for seed in sorted(seeds)
        }
        for side in ("base", "changed")
    )
    return base, changed


def _different_settings(found: StoredComparison) -> dict[str, tuple[str, str]]:
    one, other = found.base.entry.settings, found.changed.entry.settings
    names = dict.fromkeys([*one, *other])
    return {name: (one.get(name, ""), other.get(name, "")) for name in names if one.get(name, "") != other.get(name, "")}


def _document(
    found: StoredComparison, estimates: "Sequence[Estimate]", finding: "ChangeFinding", given: argparse.Namespace
) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "metric": found.base.design.metric.to_dict(),
        "base": _side(found.base.entry, given.base),
        "changed": _side(found.changed.entry, given.changed),
        "settings": {name: list(values) for name, values in _different_settings(found).items()},
        "by": given.by,
        "looks": given.looks,
        **asdict(finding),
        "cells_left_out": found.left_out,
        "cells": [
            {
                "cell": cell.name,
                "difference": each.mean,
                "low": each.low,
                "high": each.high,
                "p": each.p,
                "p_adjusted": each.p_adjusted,
                "n": each.n,
                "differences": {str(seed): value for seed, value in cell.differences.items()},
            }
            for cell, each in zip(found.cells, estimates, strict=True)
        ],
    }


def _side(entry: StudyEntry, selector: str) -> dict[str, Any]:
    return {"name": entry.name, "selector": selector, "run_id": entry.run_id, "preset": entry.preset}


def _print(found: StoredComparison, estimates: "Sequence[Estimate]", finding: "ChangeFinding") -> None:
    from ablations.engine.analysis import number_format
    from ablations.engine.environment.console import make_console, print_line
    from ablations.engine.report.fitted_table import FittedTable

    console, metric = make_console(), found.base.design.metric
    values = [row.value for cell in found.cells for row in (*cell.base.values(), *cell.changed.values()) if row.value is not None]
    formats = number_format.ValueFormat(metric, number_format.decimals_for(metric, values))
    if different := _different_settings(found):
        shown = [f"{name} {before or 'not set'} → {after or 'not set'}" for name, (before, after) in different.items()]
        print_line(console, f"Different settings: {enumerated(shown, MAX_SETTINGS)}")
    heading = f"difference in {metric.label}, {metric.difference_unit}".rstrip(", ")
    table = FittedTable(
        ("cell",), ("first", "second", "pairs", f"{heading} [95 %]", "p, adjusted"), optional=("p, adjusted", "pairs")
    )
    for cell, each in zip(found.cells, estimates, strict=True):
        sides = [_mean([side[seed] for seed in cell.differences], formats) for side in (cell.base, cell.changed)]
        table.add_row([cell.name, *sides, str(each.n), formats.signed_with_interval(each), number_format.p_value(each.p_adjusted)])
    console.print(table)
    if found.left_out:
        print_line(console, f"{counted(found.left_out, 'cell')} of one study without a counterpart in the other left out.")
    print_line(console, f"Second against first, mean over {counted(len(found.cells), 'cell')}: {finding.text.partition(': ')[2]}")


def _mean(paired: Sequence[RunRow], formats: Any) -> str:
    """Return the mean of one side over the seeds of the differences, so that theirs is the difference of the means."""
    from ablations.engine.analysis.statistics.inference import estimate_means

    (estimate,) = estimate_means([[row.value for row in paired if row.value is not None] or [float("nan")]])
    return str(formats.mean_std(estimate))
