"""What a search took and chose, cell by cell, and what its choice gains on the images that results are of."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ablations.engine.analysis.evidence import Evidence
from ablations.engine.analysis.findings import ChosenTrial, Gain, SearchCellFinding, SearchFindings
from ablations.engine.analysis.inference import Array, compared
from ablations.engine.analysis.ranking import chose_default, ranking, row_of
from ablations.engine.analysis.trial_table import brief, place, search_of, trials_of
from ablations.engine.study.design import Design, SearchCell
from ablations.engine.study.plan import DEFAULT

EDGE = 0.05
"""A value is at an edge if it is so close to an end of its range, as a share of the range on the scale that was searched."""
UNEQUAL_SECONDS = 2
"""It is said where one cell's search took so many times as long as another's."""


def analyse_search(evidence: Evidence, errors: Array) -> SearchFindings:
    """All that there is to say of a search besides what any study gets.

    Args:
        errors: of the study's completed runs, a row for each cell of the design, a column for each seed; NaN where there is none.
    """
    cells = tuple(_cell(evidence, cell) for cell in search_of(evidence).cells)
    return SearchFindings(
        cells=cells,
        gains=_gains(evidence.design, errors),
        ranking=ranking(evidence.design, errors),
        notes=(*_unequal(cells), *_idle(evidence.design), *_narrow(cells)),
    )


def _cell(evidence: Evidence, cell: SearchCell) -> SearchCellFinding:
    from ablations.engine.analysis.importance import importances  # Optuna: not for studies that search nothing

    trials = trials_of(evidence, cell)
    found = importances(evidence, cell)
    chosen = search_of(evidence).chosen.get(cell.label, {})
    by_number = {row["number"]: row for row in trials.to_dict("records")}
    return SearchCellFinding(
        label=cell.label,
        trials=len(trials),
        outcomes=dict(Counter(trials["outcome"].tolist())),
        epochs=int(trials["epochs"].sum()),
        seconds=float(trials["seconds"].sum()),
        gpu_hours=float(trials["gpu_hours"].sum()),
        # Somebody may have deleted its run.
        chosen=tuple(_chosen(evidence, level, by_number[number]) for level, number in chosen.items() if number in by_number),
        importances=() if isinstance(found, str) else found,
        no_importances=found if isinstance(found, str) else "",
    )


def _chosen(evidence: Evidence, level: str, trial: Mapping[Any, Any]) -> ChosenTrial:
    fields = search_of(evidence).fields
    values = {field: trial[field] for field in fields if trial[field] is not None}
    edges = {field: _edge(fields[field], value) for field, value in values.items()}
    return ChosenTrial(
        level=level,
        number=int(trial["number"]),
        values=values,
        changes=trial["changes"],
        score=float(trial["error"]),
        at_edge={field: edge for field, edge in edges.items() if edge},
    )


def _edge(dimension: Mapping[str, Any], value: Any) -> str:
    """Which end of the range searched a value is at, if any; choices have none."""
    if "choices" in dimension:
        return ""
    where = place(dimension, value)
    return "low" if where <= EDGE else "high" if where >= 1 - EDGE else ""


def _gains(design: Design, errors: Array) -> tuple[Gain, ...]:
    """Of every cell's chosen configurations, of which runs were asked for."""
    assert design.search
    named, differences = [], []
    for cell in design.search.cells:
        default = row_of(design, cell, DEFAULT)
        for level in design.search.chosen.get(cell.label, {}):
            chosen = row_of(design, cell, level)
            if default is not None and chosen is not None and chosen != default:
                named.append((cell.label, level))
                differences.append(errors[chosen] - errors[default])
    found = compared(np.reshape(differences, (len(differences), errors.shape[1])))
    return tuple(Gain(cell=cell, level=level, difference=each) for (cell, level), each in zip(named, found, strict=True))


def _unequal(cells: Sequence[SearchCellFinding]) -> list[str]:
    took = sorted((cell for cell in cells if cell.seconds), key=lambda cell: cell.seconds)
    if not took or took[-1].seconds <= UNEQUAL_SECONDS * took[0].seconds:
        return []
    least, most = took[0], took[-1]
    times = f"{most.label} took {most.seconds:,.0f} s, {most.seconds / least.seconds:.1f} times as long as {least.label}"
    return [f"searches took unequal time: {times} ({least.seconds:,.0f} s)"]


def _idle(design: Design) -> list[str]:
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


def _narrow(cells: Sequence[SearchCellFinding]) -> list[str]:
    """Ranges that may have been too small."""
    return [
        f"{cell.label or 'the search'} chose {field} {brief(each.values[field])}, at the {end} end of its range; "
        "consider a wider one"
        for cell in cells
        for each in cell.chosen
        for field, end in each.at_edge.items()
    ]
