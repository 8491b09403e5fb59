"""Analyze a search: its cost and choice in each cell, and the gain of that choice by the metric of the study."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ablations.engine.analysis.evidence import Evidence
from ablations.engine.analysis.number_format import ValueFormat, decimals_for
from ablations.engine.analysis.statistics.inference import Array, paired_tests, zero_tolerance
from ablations.engine.analysis.trial_table import cell_trials, format_value, range_position, search_design
from ablations.engine.analysis.tuning.findings import ChosenTrial, Gain, SearchCellFinding, SearchFindings
from ablations.engine.analysis.tuning.ranking import chose_default, compare_rankings, design_row
from ablations.engine.study.design import Design, SearchCell
from ablations.engine.study.plan import DEFAULT

RANGE_EDGE_FRACTION = 0.05
"""A value is at the edge of its range if its distance to an end is at most this fraction of the range, on the searched scale."""
MAX_SEARCH_TIME_RATIO = 2
"""Largest ratio of search times between two cells without a remark."""


def analyze_search(evidence: Evidence, values: Array, formats: ValueFormat) -> SearchFindings:
    """Return the findings about a search.

    Args:
        values: Values of completed runs; a row per cell of the design, a column per seed, NaN without a result.
        formats: Formats of these values.
    """
    search = search_design(evidence)
    cells = tuple(_cell_finding(evidence, cell) for cell in search.cells)
    assert evidence.trials is not None, "a search has trials"
    return SearchFindings(
        metric=search.metric,
        decimals=decimals_for(search.metric, evidence.trials["value"]),
        cells=cells,
        gains=_tuning_gains(evidence.design, values),
        ranking=compare_rankings(evidence.design, values, formats),
        notes=(*_unequal_time_notes(cells), *_unchanged_choice_notes(evidence.design), *_range_edge_notes(cells)),
    )


def _cell_finding(evidence: Evidence, cell: SearchCell) -> SearchCellFinding:
    from ablations.engine.analysis.tuning.importance import (
        field_importances,  # imports Optuna, which studies without a search do not need
    )

    trials = cell_trials(evidence, cell)
    found = field_importances(evidence, cell)
    chosen = search_design(evidence).chosen.get(cell.label, {})
    by_number = {row["number"]: row for row in trials.to_dict("records")}
    return SearchCellFinding(
        label=cell.label,
        trials=len(trials),
        outcomes=dict(Counter(trials["outcome"].tolist())),
        epochs=int(trials["epochs"].sum()),
        seconds=float(trials["seconds"].sum()),
        gpu_hours=float(trials["gpu_hours"].sum()),
        # A chosen trial is missing if someone deleted its MLflow run.
        chosen=tuple(_chosen_trial(evidence, level, by_number[number]) for level, number in chosen.items() if number in by_number),
        importances=() if isinstance(found, str) else found,
        no_importances=found if isinstance(found, str) else "",
    )


def _chosen_trial(evidence: Evidence, level: str, trial: Mapping[Any, Any]) -> ChosenTrial:
    fields = search_design(evidence).fields
    values = {field: trial[field] for field in fields if trial[field] is not None}
    edges = {field: _range_edge(fields[field], value) for field, value in values.items()}
    return ChosenTrial(
        level=level,
        number=int(trial["number"]),
        values=values,
        changes=trial["changes"],
        score=float(trial["value"]),
        at_edge={field: edge for field, edge in edges.items() if edge},
    )


def _range_edge(dimension: Mapping[str, Any], value: Any) -> str:
    """Return the end of the searched range that a value is close to, `low` or `high`; empty otherwise, and for choices."""
    if "choices" in dimension:
        return ""
    where = range_position(dimension, value)
    return "low" if where <= RANGE_EDGE_FRACTION else "high" if where >= 1 - RANGE_EDGE_FRACTION else ""


def _tuning_gains(design: Design, values: Array) -> tuple[Gain, ...]:
    """Return the gain of each chosen configuration that the study trains."""
    assert design.search
    named, differences = [], []
    for cell in design.search.cells:
        default = design_row(design, cell, DEFAULT)
        for level in design.search.chosen.get(cell.label, {}):
            chosen = design_row(design, cell, level)
            if default is not None and chosen is not None and chosen != default:
                named.append((cell.label, level))
                differences.append(values[chosen] - values[default])
    found = paired_tests(np.reshape(differences, (len(differences), values.shape[1])), zero_tolerance(values))
    return tuple(Gain(cell=cell, level=level, difference=each) for (cell, level), each in zip(named, found, strict=True))


def _unequal_time_notes(cells: Sequence[SearchCellFinding]) -> list[str]:
    took = sorted((cell for cell in cells if cell.seconds), key=lambda cell: cell.seconds)
    if not took or took[-1].seconds <= MAX_SEARCH_TIME_RATIO * took[0].seconds:
        return []
    least, most = took[0], took[-1]
    times = f"{most.label} took {most.seconds:,.0f} s, {most.seconds / least.seconds:.1f} times as long as {least.label}"
    return [f"Searches took unequal times: {times} ({least.seconds:,.0f} s)"]


def _unchanged_choice_notes(design: Design) -> list[str]:
    """Return remarks about searches that chose nothing, or the default configuration."""
    assert design.search
    notes = []
    for cell in design.search.cells:
        where = f"The search in {cell.label}" if cell.label else "The search"
        chosen = design.search.chosen.get(cell.label, {})
        if design.search.chosen and not chosen:
            notes.append(f"{where} chose nothing, because no trial completed")
        notes += [f"{where} chose the default configuration" for level in chosen if chose_default(design, cell, level)]
    return notes


def _range_edge_notes(cells: Sequence[SearchCellFinding]) -> list[str]:
    """Return remarks about chosen values at an end of their range, where a wider range may contain a better value."""
    return [
        f"{f'The search in {cell.label}' if cell.label else 'The search'} chose {field}={format_value(each.values[field])}, "
        f"at the {end} end of its range: a wider range may contain a better value"
        for cell in cells
        for each in cell.chosen
        for field, end in each.at_edge.items()
    ]
