"""Results per test example in the report and in `findings.json`."""

from collections.abc import Mapping
from typing import Any

from ablations.engine.analysis.evidence import Evidence
from ablations.engine.analysis.examples import (
    CellExamples,
    ComparisonExamples,
    CrossedEstimate,
    analyze_examples,
    scope_sentence,
)
from ablations.engine.analysis.findings import Findings

MAX_LISTED = 10
"""Maximum number of test examples that a list names; the total is always given."""


def template_values(evidence: Evidence, findings: Findings) -> dict[str, Any]:
    """Return the variables of the page that concern test examples: `scope`, and `per_example`, None without predictions."""
    found = analyze_examples(evidence, findings)
    per_example = None
    if found:
        of_cell = {cell.label: cell for cell in findings.cells}
        of_comparison = {each.cell: each.difference for each in findings.comparisons}
        per_example = {
            "count": found.examples,
            "cells": [(of_cell[each.cell].value, each) for each in found.cells],
            "comparisons": [
                {
                    "found": each,
                    "over_seeds": of_comparison.get(each.cell),
                    "worse": listed(each.changed.worse),
                    "better": listed(each.changed.better),
                }
                for each in found.comparisons
            ],
            "one_seed": any(each.mcnemar for each in found.comparisons),
        }
    return {"scope": scope_sentence(evidence.design), "per_example": per_example}


def listed(positions: tuple[int, ...]) -> str:
    """Return a number of test examples and the positions of the first ones: `3: 12, 40, 77`."""
    if not positions:
        return "0"
    more = ", …" if len(positions) > MAX_LISTED else ""
    return f"{len(positions):,}: {', '.join(map(str, positions[:MAX_LISTED]))}{more}"


def documents(evidence: Evidence, findings: Findings) -> Mapping[str, dict[str, Any]]:
    """Return the `images` of `findings.json` by cell, each with that of the comparison under `comparison`, or None."""
    found = analyze_examples(evidence, findings)
    if found is None:
        return {}
    comparisons = {each.cell: _comparison(each) for each in found.comparisons}
    return {each.cell: {"cell": _cell(each), "comparison": comparisons.get(each.cell)} for each in found.cells}


def _cell(found: CellExamples) -> dict[str, Any]:
    return _estimate(found.value, "mean")


def _comparison(found: ComparisonExamples) -> dict[str, Any]:
    test, changed = found.mcnemar, found.changed
    tested = test and {"worse": test.worse, "better": test.better, "p": test.p, "p_adjusted": test.p_adjusted}
    return {
        **_estimate(found.difference, "difference"),
        "worse": len(changed.worse),
        "better": len(changed.better),
        "first_worse": list(changed.worse[:MAX_LISTED]),
        "first_better": list(changed.better[:MAX_LISTED]),
        "mcnemar": tested,
    }


def _estimate(found: CrossedEstimate, name: str) -> dict[str, Any]:
    return {"examples": found.examples, "n": found.seeds, name: found.mean, "low": found.low, "high": found.high}
