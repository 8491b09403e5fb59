"""The trials of a search as a table: the values of the searched fields and their positions in the searched ranges."""

import math
from collections.abc import Mapping
from typing import Any

import pandas as pd

from ablations.engine.analysis.evidence import Evidence
from ablations.engine.analysis.tuning.findings import ChosenTrial
from ablations.engine.study.design import SearchCell, SearchDesign
from ablations.engine.study.factors import format_level

ENDED_OUTCOMES = ("completed", "pruned", "diverged", "oom", "failed")
"""Outcomes of trials that have ended: trained to their last epoch, stopped early, or failed."""


def search_design(evidence: Evidence) -> SearchDesign:
    """Return the design of the search. The study must have one."""
    assert evidence.design.search, "a study without a search"
    return evidence.design.search


def cell_trials(evidence: Evidence, cell: SearchCell) -> pd.DataFrame:
    """Return the trials of a cell, sorted by number; each searched field is a column of suggested values (None without one)."""
    assert evidence.trials is not None, "a search has trials"
    trials = evidence.trials[evidence.trials["cell"] == cell.label].sort_values("number")
    of_fields = {
        field: pd.Series([restore_value(dimension, value) for value in trials[field]], index=trials.index, dtype=object)
        for field, dimension in search_design(evidence).fields.items()
    }
    return trials.assign(**of_fields)


def observed_space(evidence: Evidence) -> dict[str, dict[str, Any]]:
    """Return the searched space, widened to contain every trial: an earlier submission may have searched other ranges."""
    assert evidence.trials is not None, "a search has trials"
    fields: dict[str, dict[str, Any]] = {}
    for field, dimension in search_design(evidence).fields.items():
        values = [value for given in evidence.trials[field] if (value := restore_value(dimension, given)) is not None]
        if "choices" in dimension:
            others = [value for i, value in enumerate(values) if value not in dimension["choices"] and value not in values[:i]]
            fields[field] = {"choices": [*dimension["choices"], *others]}
        else:
            low, high = min([dimension["low"], *values]), max([dimension["high"], *values])
            fields[field] = {"low": low, "high": high, "log": dimension["log"] and low > 0}
    return fields


def restore_value(dimension: Mapping[str, Any], value: Any) -> Any:
    """Return a value as it was suggested. In a table column with missing values, integers are floats and None is NaN."""
    if value is None or value != value:
        return None
    if "choices" in dimension:
        return next((choice for choice in dimension["choices"] if choice == value), value)
    return int(value) if is_integer_range(dimension) else float(value)


def is_integer_range(dimension: Mapping[str, Any]) -> bool:
    """Return whether a range contains only integers."""
    return isinstance(dimension["low"], int) and isinstance(dimension["high"], int)


def range_position(dimension: Mapping[str, Any], value: Any) -> float:
    """Return the position of a value in its range, from 0 to 1: on the searched scale, or in the order of the choices."""
    if "choices" in dimension:
        choices: list[Any] = dimension["choices"]
        return choices.index(value) / max(1, len(choices) - 1)
    scale = math.log if dimension["log"] else float
    low, high = scale(dimension["low"]), scale(dimension["high"])
    return (scale(value) - low) / (high - low)


def format_value(value: Any) -> str:
    """Return a value as text: a list as on the command line, a float with three significant digits."""
    if isinstance(value, list):
        return ",".join(map(format_value, value))
    return f"{value:.3g}" if isinstance(value, float) else format_level(value)


def format_configuration(chosen: ChosenTrial) -> str:
    """Return a chosen configuration as text: `optim.lr=0.1, optim.momentum=0.9; then 4:lr=0.04`."""
    values = ", ".join(f"{field}={format_value(value)}" for field, value in chosen.values.items())
    return f"{values}; then {chosen.changes}" if chosen.changes else values


def format_range(dimension: Mapping[str, Any]) -> str:
    """Return a searched range or its choices as text: `0.001 to 1, logarithmic`, `step · cosine`."""
    if "choices" in dimension:
        return " · ".join(map(format_value, dimension["choices"]))
    return f"{format_value(dimension['low'])} to {format_value(dimension['high'])}{', logarithmic' if dimension['log'] else ''}"
