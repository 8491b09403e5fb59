"""Phrases that the captions of all figures share."""

from collections.abc import Sequence

from ablations.engine.analysis.evidence import Evidence

MAX_NAMED = 6
"""Maximum number of items that an alternative text lists. If there are more, it lists the first two and the last."""


def short(evidence: Evidence) -> str:
    """Return the metric in a word: its quantity, such as `error`."""
    return evidence.design.metric.quantity.replace("_", " ")


def plural(evidence: Evidence) -> str:
    """Return what the metric's values are called: `errors` of image classification, `values` of a task."""
    return "values" if evidence.design.task else "errors"


def list_or_ends(items: Sequence[str]) -> str:
    """Return all items, or the first two and the last of many."""
    if len(items) <= MAX_NAMED:
        return "; ".join(items)
    return f"{items[0]}; {items[1]}; … {items[-1]} ({len(items)} in all)"
