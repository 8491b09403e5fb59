"""What a search took and chose, cell by cell, and what its choice gains on the images that results are of."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ablations.engine.analysis.evidence import Evidence
from ablations.engine.analysis.findings import ChosenTrial, Gain, SearchCellFinding, SearchFindings
from ablations.engine.analysis.inference import Array, paired_tests
from ablations.engine.analysis.ranking import chose_default, compare_rankings, design_row
from ablations.engine.analysis.trial_table import cell_trials, format_value, range_position, search_design
from ablations.engine.study.design import Design, SearchCell
from ablations.engine.study.plan import DEFAULT

RANGE_EDGE_FRACTION = 0.05
"""A value is at an edge if it is so close to an end of its range, as a share of the range on the scale that was searched."""
MAX_SEARCH_TIME_RATIO = 2
"""It is said where one cell's search took so many times as long as another's."""


def analyze_search(evidence: Evidence, errors: Array) -> SearchFindings:
    """All that there is to say of a search besides what any study gets.

    Args:
        errors: of the study's completed runs, a row for each cell of the design, a column for each seed; NaN where there is none.
    """
    cells = tuple(_cell_finding(evidence, cell) for cell in search_design(evidence).cells)
    return SearchFindings(
        cells=cells,
        gains=_tuning_gains(evidence.design, errors),
        ranking=compare_rankings(evidence.design, errors),
        notes=(*_unequal_time_notes(cells), *_unchanged_choice_notes(evidence.design), *_range_edge_notes(cells)),
    )


def _cell_finding(evidence: Evidence, cell: SearchCell) -> SearchCellFinding:
    from ablations.engine.analysis.importance import field_importances  # Optuna: not for studies that search nothing

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
        # Somebody may have deleted its run.
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
        score=float(trial["error"]),
        at_edge={field: edge for field, edge in edges.items() if edge},
    )


def _range_edge(dimension: Mapping[str, Any], value: Any) -> str:
    """Which end of the range searched a value is at, if any; choices have none."""
    if "choices" in dimension:
        return ""
    where = range_position(dimension, value)
    return "low" if where <= RANGE_EDGE_FRACTION else "high" if where >= 1 - RANGE_EDGE_FRACTION else ""


def _tuning_gains(design: Design, errors: Array) -> tuple[Gain, ...]:
    """Of every cell's chosen configurations, of which runs were asked for."""
    assert design.search
    named, differences = [], []
    for cell in design.search.cells:
        default = design_row(design, cell, DEFAULT)
        for level in design.search.chosen.get(cell.label, {}):
            chosen = design_row(design, cell, level)
            if default is not None and chosen is not None and chosen != default:
                named.append((cell.label, level))
                differences.append(errors[chosen] - errors[default])
    found = paired_tests(np.reshape(differences, (len(differences), errors.shape[1])))
    return tuple(Gain(cell=cell, level=level, difference=each) for (cell, level), each in zip(named, found, strict=True))


def _unequal_time_notes(cells: Sequence[SearchCellFinding]) -> list[str]:
    took = sorted((cell for cell in cells if cell.seconds), key=lambda cell: cell.seconds)
    if not took or took[-1].seconds <= MAX_SEARCH_TIME_RATIO * took[0].seconds:
        return []
    least, most = took[0], took[-1]
    times = f"{most.label} took {most.seconds:,.0f} s, {most.seconds / least.seconds:.1f} times as long as {least.label}"
    return [f"searches took unequal time: {times} ({least.seconds:,.0f} s)"]


def _unchanged_choice_notes(design: Design) -> list[str]:
    """Searches that chose nothing new."""
    assert design.search
    notes = []
    for cell in design.search.cells:
        where = cell.label or "the search"
        chosen = design.search.chosen.get(cell.label, {})
        if design.search.chosen and not chosen:
            notes.append(f"{where} chose nothing: no trial completed")
        notes += [f"{where} chose the default configuration" for level in chosen if chose_default(design, cell, level)]
    return notes


def _range_edge_notes(cells: Sequence[SearchCellFinding]) -> list[str]:
    """Ranges that may have been too small."""
    return [
        f"{cell.label or 'the search'} chose {field} {format_value(each.values[field])}, at the {end} end of its range; "
        "consider a wider one"
        for cell in cells
        for each in cell.chosen
        for field, end in each.at_edge.items()
    ]
