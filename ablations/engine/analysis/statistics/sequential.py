"""Tests over the looks of an adaptive study.

Each look has a share of the significance level. The sequential p-value of a hypothesis is the least of its looks' p-values, each
divided by the share of its look. Under the hypothesis it is at most α with a probability of at most α (Bonferroni's bound over
looks), whatever decides at which look the seeds of its cells end.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ablations.engine.analysis.statistics.estimate import Estimate
from ablations.engine.analysis.statistics.inference import (
    SIGNIFICANCE_LEVEL,
    Array,
    Scale,
    equivalence_p_value,
    estimate_average,
)


@dataclass(frozen=True, kw_only=True)
class LookScale:
    """A look at a contrast."""

    seeds: int
    """Number of seeds of its cells."""
    scale: Scale
    """Scale of the values, with the share of the look."""


@dataclass(frozen=True, kw_only=True)
class SequentialTest:
    """The test of a contrast over its looks."""

    estimate: Estimate
    """Difference at the look that is shown, with the sequential p-value. That look has the least p-value if it would be significant
    alone, so that claim and interval agree; otherwise it is the last look."""
    latest: Estimate
    """Difference at the last look, with the p-value of that look."""
    used: tuple[int, ...]
    """Combinations that the estimate averages."""
    shown: LookScale
    """Look of the estimate."""
    last: LookScale
    """Last look at which all cells had seeds."""
    within_margin: float | None
    """Sequential p-value that the difference is within the study's margin; None without a margin or a test."""


def estimate_over_looks(
    parts: Sequence[Array], looks: Sequence[LookScale], margin: float | None, *, whole: bool = False
) -> SequentialTest:
    """Return the test of a contrast.

    Args:
        parts: Differences; a row per combination, a column per seed, NaN without a result.
        looks: Looks at which all its cells had seeds, in their order, at least one.
        margin: Largest difference that counts as no effect; None for no such test.
        whole: As in `estimate_average`.
    """
    rows = np.asarray(parts, float)
    found = [(look, *estimate_average(rows[:, : look.seeds], look.scale, whole=whole)) for look in looks]
    tested = [each for each in found if each[1].p is not None]
    look, estimate, used = found[-1]
    latest = estimate
    if tested:
        best = min(tested, key=lambda each: each[1].p or 0.0)
        p = best[1].p or 0.0
        if p < SIGNIFICANCE_LEVEL:
            look, estimate, used = best
        if estimate.p is not None or estimate.mean is None:
            estimate = replace(estimate, p=p)
    within = []
    if margin is not None:
        every = (equivalence_p_value(difference, margin, each.scale.share) for each, difference, _ in found)
        within = [p for p in every if p is not None]
    return SequentialTest(
        estimate=estimate,
        latest=latest,
        used=used,
        shown=look,
        last=looks[-1],
        within_margin=min(within, default=None),
    )
