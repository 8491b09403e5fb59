"""Tidy tables of a study: a row per run, per epoch or per cell.

A column per factor holds its levels with the type of the field: `depth` holds integers. A factor with the name of another column,
such as `p`, has the column `factor.p`. Columns of the compared metric carry its own name, such as `test/error`.
"""

import math
from typing import Any

import pandas as pd

from ablations.engine.analysis.evidence import COST_METRICS, CURVE_COLUMNS, Evidence
from ablations.engine.analysis.findings import Findings
from ablations.engine.analysis.statistics.estimate import Estimate
from ablations.engine.report.tables import comparisons_by_cell, escape_formulas, factor_column
from ablations.engine.study.design import DesignCell
from ablations.engine.study.factors import format_level

VALUE, TRAINING_VALUE = "value", "train_value"
"""Columns of `Evidence` with the compared metric, on evaluation and on training data."""
OWN_COLUMNS = {"cell", "seed", "fingerprint", "run_id", "outcome", "message", "attempts", "epoch", *COST_METRICS, *CURVE_COLUMNS}
"""Columns of `Evidence` that no factor replaces."""


def typed_level(cell: DesignCell, factor: str) -> Any:
    """Return a cell's level of a factor with the type of its field; the level's text if the configuration has no such field.

    Lists are tuples, so that a level can be compared and grouped.
    """
    text = cell.levels[factor]
    for name, value in cell.spec.items():
        if (name == factor or name.endswith(f".{factor}")) and format_level(value) == text:
            return _hashable(value)
    return text


def run_frame(evidence: Evidence) -> pd.DataFrame:
    """Return a row per run: factors, seed, outcome, metrics of the final epoch, costs, and the conditions of the training."""
    return _with_factors(evidence, evidence.runs)


def curve_frame(evidence: Evidence) -> pd.DataFrame:
    """Return a row per epoch of each completed run: factors, seed, epoch and the metrics of the epoch."""
    return _with_factors(evidence, evidence.curves)


def cell_frame(evidence: Evidence, findings: Findings) -> pd.DataFrame:
    """Return a row per cell: factors, mean over seeds with its interval, the paired difference from the baseline, and costs."""
    comparisons = comparisons_by_cell(findings)
    rows = []
    for cell, found in zip(evidence.design.cells, findings.cells, strict=True):
        row: dict[str, Any] = {"n": found.value.n, "planned": found.planned}
        row |= {name: _number(getattr(found.value, name)) for name in ("mean", "std", "low", "high")}
        comparison = comparisons.get(cell.label)
        difference = comparison.difference if comparison else Estimate(n=0)
        row |= {"baseline": comparison.baseline if comparison else "", "difference": _number(difference.mean)}
        row |= {f"difference_{name}": _number(getattr(difference, name)) for name in ("low", "high")}
        row |= {"pairs": difference.n, "p": _number(difference.p), "p_adjusted": _number(difference.p_adjusted)}
        row |= {name: _number(getattr(found, name)) for name in ("parameters", "flops", "seconds", "gpu_hours")}
        levels = {factor_column(name, row): typed_level(cell, name) for name in evidence.design.factors}
        rows.append(levels | row)
    return pd.DataFrame(rows)


def to_csv(frame: pd.DataFrame) -> str:
    """Return a table as CSV with a header. Text that a spreadsheet would run as a formula starts with an apostrophe."""
    return escape_formulas(frame).to_csv(index=False, lineterminator="\n")


def _with_factors(evidence: Evidence, table: pd.DataFrame) -> pd.DataFrame:
    """Return a table of `Evidence` with a column per factor in place of the column `cell`, under the metrics' own names."""
    metric = evidence.design.metric
    found = table.rename(columns={VALUE: metric.name, TRAINING_VALUE: metric.training_name})
    taken = OWN_COLUMNS | {metric.name, metric.training_name}
    columns = {name: factor_column(name, taken) for name in evidence.design.factors}
    found = found.drop(columns=[name for name in columns.values() if name in found])  # a condition that the study varies
    cells = {cell.label: cell for cell in evidence.design.cells}
    for position, factor in enumerate(evidence.design.factors):
        levels = [typed_level(cells[label], factor) for label in table["cell"]]
        found.insert(position, columns[factor], pd.Series(levels, index=table.index, dtype=None if levels else object))
    return found.drop(columns="cell")


def _hashable(value: Any) -> Any:
    return tuple(map(_hashable, value)) if isinstance(value, list) else value


def _number(value: float | None) -> float:
    return math.nan if value is None else value
