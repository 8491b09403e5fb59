"""Notes on cells: runs that did not complete or train, and why."""

import re

from ablations.engine.analysis.findings import CellFinding, Comparison
from ablations.engine.analysis.number_format import ValueFormat
from resnet_core.fields import counted

OUTCOME_WORDS = {"oom": "ran out of memory", "running": "still running"}
"""Outcomes of runs in words, where these differ."""


def failed_to_train(cell: CellFinding, formats: ValueFormat) -> str:
    """Return which completed runs show no training: `1 of 5 seeds failed to train: 60.30 %; median 2.05 %`; empty if all do."""
    texts = []
    for runs, what in ((cell.failed_to_train, "failed to train"), (cell.outlying, "did far worse than the others")):
        if runs:
            values = ", ".join(formats.with_unit(each.value) for each in runs)
            texts.append(f"{len(runs)} of {counted(cell.planned, 'seed')} {what}: {values}")
    return "; ".join([*texts, f"median {formats.with_unit(cell.median)}"]) if texts else ""


def problems(cell: CellFinding, max_characters: int = 1000) -> str:
    """Return how many runs did not complete, and why: `2 runs failed: disk full`. Reasons that differ in numbers are named once.

    Args:
        max_characters: Maximum length of a reason.
    """
    counts = ", ".join(f"{counted(count, 'run')} {OUTCOME_WORDS.get(each, each)}" for each, count in cell.problems.items())
    reasons: dict[str, list[str]] = {}
    for reason in cell.reasons:
        reasons.setdefault(re.sub(r"\d+", "0", reason), []).append(reason)
    texts = [
        shortened(first, max_characters) + (f" (and {len(others)} like it)" if others else "")
        for first, *others in reasons.values()
    ]
    return ": ".join(filter(None, (counts, "; ".join(texts))))


def shortened(text: str, max_characters: int) -> str:
    """Return text of at most so many characters, cut between words with an ellipsis if it was longer."""
    if len(text) <= max_characters:
        return text
    whole_words = text[: max_characters + 1].rpartition(" ")[0]
    return f"{whole_words or text[:max_characters]} …"


def cell_note(cell: CellFinding, comparison: Comparison | None, formats: ValueFormat) -> str:
    """Return the caveats of a row: runs that did not complete or train and why, mixed conditions, a missing p-value."""
    parts = [problems(cell), failed_to_train(cell, formats), *cell.flags]
    parts += [comparison.note] if comparison else []
    return "; ".join(filter(None, parts))
