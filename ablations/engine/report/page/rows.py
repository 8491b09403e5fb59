"""Rows of the page's tables: results, costs and runs."""

from collections.abc import Iterable, Mapping
from typing import Any

from ablations.engine.analysis.findings import Findings
from ablations.engine.analysis.number_format import ValueFormat
from ablations.engine.analysis.statistics.estimate import Estimate
from ablations.engine.report import notes, tables

MAX_NOTE_CHARACTERS = 300
"""Maximum length of a note in the table of results, in characters; the list of runs has the whole message."""
MAX_REASON_CHARACTERS = 110
"""Maximum length of the reason why a cell has no value, in characters: it takes one line of a wide page."""
COST_HEADINGS = {
    "parameters": "parameters",
    "flops": "multiply-adds",
    "images_per_second": "images/s",
    "peak_memory_mb": "GPU memory, MiB",
    "seconds": "seconds",
    "gpu_hours": "GPU-hours",
}
"""Headings of the table of costs."""


def result_rows(findings: Findings) -> list[dict[str, Any]]:
    """Return the rows of the table of results: cells with their comparisons. `no_value` says why a cell has no value."""
    by_cell = tables.comparisons_by_cell(findings)
    baselines = {comparison.baseline for comparison in findings.comparisons}
    rows = []
    for cell in findings.cells:
        comparison = by_cell.get(cell.label)
        note = notes.shortened(notes.cell_note(cell, comparison, ValueFormat.of(findings)), MAX_NOTE_CHARACTERS)
        difference = comparison.difference if comparison else Estimate(n=0)
        rows.append(
            {
                "cell": cell,
                "difference": difference,
                "baseline": comparison is None and cell.label in baselines,
                "note": note,
                "no_value": "" if cell.value.n else f"no value: {notes.problems(cell, MAX_REASON_CHARACTERS)}",
            }
        )
    return rows


def shown_costs(findings: Findings) -> list[str]:
    """Return the costs, by their names in `CellFinding`, that the page shows: those that runs report, GPU-hours with GPUs only."""
    used = any(cell.gpu_hours for cell in findings.cells)
    return [name for name in tables.reported_costs(findings) if used or name != "gpu_hours"]


def run_rows(runs: Iterable[Mapping[Any, Any]]) -> list[dict[Any, Any]]:
    """Return the rows of the table of runs, with `ended`: the outcome and its reason, which each cell names once."""
    first: dict[tuple[str, str, str], Any] = {}
    rows = []
    for run in runs:
        key = str(run["cell"]), str(run["outcome"]), str(run["message"])
        ended = run["outcome"]
        if run["message"]:
            known = first.setdefault(key, run["seed"])
            ended = f"{ended}: {run['message']}" if known == run["seed"] else f"{ended}, as seed {known}"
        rows.append({**run, "ended": ended})
    return rows
