"""Failing to train as an outcome: which runs failed, and exact tests of whether a level makes runs fail more often."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import hypergeom

from ablations.engine.analysis.statistics.estimate import FailureTest
from ablations.engine.analysis.statistics.inference import SIGNIFICANCE_LEVEL, Array
from ablations.engine.task.metric import Metric

Flags = npt.NDArray[np.bool_]

NEAR_CHANCE_FRACTION = 0.1
"""A run ends near chance if it covers at most this fraction of the way from guessing to the best possible value."""
MAX_MADS = 6
"""Distance from the median of its cell, in median absolute deviations, beyond which a worse run failed to train."""
MIN_RUNS_FOR_MAD = 8
"""Fewest completed runs of a study from which a median absolute deviation is estimated."""
MAD_TO_STD = 1.4826
"""Factor from a median absolute deviation to the standard deviation of a normal distribution."""


@dataclass(frozen=True, kw_only=True)
class FailureTable:
    """Which runs failed to train, and which count at all; a row per cell of the design, a column per seed."""

    failed: Flags
    """True for a run that diverged, or completed with a value that shows no training."""
    diverged: Flags
    """True for a run that diverged and so has no value."""
    counted: Flags
    """True for a run that completed or diverged. Others, such as crashed ones, say nothing about training."""

    def test(self, pairs: Sequence[tuple[int, int]]) -> FailureTest | None:
        """Return the exact test of whether one row of each pair fails more often than the other; None if neither has a failure.

        The pairs are strata: Fisher's exact test for one, the exact conditional test of a common odds ratio for several.
        """
        counts = [(*self._count(row), *self._count(reference)) for row, reference in pairs]
        failed, runs, reference_failed, reference_runs = np.sum(counts, axis=0).tolist()
        if not failed + reference_failed:
            return None
        p, least = _exact_p_value(counts)
        return FailureTest(
            failed=failed,
            runs=runs,
            reference_failed=reference_failed,
            reference_runs=reference_runs,
            without_value=sum(int(self.diverged[list(pair)].sum()) for pair in pairs),
            p=p,
            least_p=least,
        )

    def _count(self, row: int) -> tuple[int, int]:
        counted = self.counted[row]
        return int((self.failed[row] & counted).sum()), int(counted.sum())


def find_failures(values: Array, outcomes: Sequence[Sequence[str]], metric: Metric, chance: float | None) -> FailureTable:
    """Return which runs failed to train.

    A completed run counts as failed if its value is near that of guessing, or worse than the median of its cell by more than six
    median absolute deviations (the larger of the cell's and the study's typical one) and by a tenth of the way to guessing.

    Args:
        values: Values of completed runs; a row per cell, a column per seed, NaN without a result.
        outcomes: Outcomes of all runs, in the same shape.
        metric: Metric of the values.
        chance: Value that guessing gives; None if it is not known.
    """
    diverged = np.array(outcomes, object) == "diverged"
    completed = np.isfinite(values)
    return FailureTable(
        failed=diverged | _shows_no_training(values, metric, chance), diverged=diverged, counted=completed | diverged
    )


def _shows_no_training(values: Array, metric: Metric, chance: float | None) -> Flags:
    known = np.isfinite(values)
    losses = metric.minimized(values)
    medians = np.array([np.median(row[of_row]) if of_row.any() else np.nan for row, of_row in zip(losses, known, strict=True)])
    off = losses - medians[:, None]
    deviations = np.array(
        [np.median(abs(row[of_row])) if of_row.sum() > 2 else np.nan for row, of_row in zip(off, known, strict=True)]
    )
    found = np.zeros(values.shape, bool)
    if known.sum() >= MIN_RUNS_FOR_MAD and np.isfinite(deviations).any():
        spread = MAD_TO_STD * np.fmax(deviations, np.nanmedian(deviations))
        far = np.zeros(len(values)) if chance is None else NEAR_CHANCE_FRACTION * (metric.minimized(chance) - medians)
        found |= known & (off > np.fmax(MAX_MADS * spread, far)[:, None]) & (spread > 0)[:, None]
    if chance is not None:
        guessing = metric.minimized(chance)
        best = metric.minimized(metric.bounds[0] if metric.better == "lower" else metric.bounds[1])
        found |= known & (losses >= guessing - NEAR_CHANCE_FRACTION * (guessing - best))
    return found


def _exact_p_value(counts: Sequence[tuple[int, int, int, int]]) -> tuple[float, float]:
    """Return the two-sided p-value of the failures of one side given those of both, and the least one that is possible."""
    ways, least_sum, observed = np.ones(1), 0, 0
    for failed, runs, reference_failed, reference_runs in counts:
        both, all_runs = failed + reference_failed, runs + reference_runs
        low, high = max(0, both - reference_runs), min(both, runs)
        ways = np.convolve(ways, hypergeom.pmf(np.arange(low, high + 1), all_runs, both, runs))
        least_sum, observed = least_sum + low, observed + failed
    p_values = [float(min(1.0, ways[ways <= way * (1 + 1e-7)].sum())) for way in ways]
    return p_values[observed - least_sum], min(p_values)


def can_be_significant(test: FailureTest, share: float) -> bool:
    """Return whether so many failures could be significant at all. If not, a family need not count the test (Tarone 1990)."""
    return test.least_p / share < SIGNIFICANCE_LEVEL
