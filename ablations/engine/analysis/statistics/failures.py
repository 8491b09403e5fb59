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
FAR_FRACTION = 0.5
"""A run that is far from its cell failed to train if it covers at least this fraction of the way from the median to guessing."""
MAX_MADS = 6
"""Distance from the median of its cell, in median absolute deviations, beyond which a worse run is far from the others."""
MIN_RUNS_FOR_MAD = 8
"""Fewest completed runs of a study from which a median absolute deviation is estimated."""
MAD_TO_STD = 1.4826
"""Factor from a median absolute deviation to the standard deviation of a normal distribution."""


@dataclass(frozen=True, kw_only=True)
class FailureTable:
    """Flags of runs that failed to train, and of those that count at all; a row per cell of the design, a column per seed."""

    failed: Flags
    """True for a run that diverged, or completed with a value that shows no training."""
    diverged: Flags
    """True for a run that diverged and so has no value."""
    outlying: Flags
    """True for a completed run that is far worse than the others of its cell but did train, as far as is known."""
    counted: Flags
    """True for a run that completed or diverged. Others, such as crashed ones, say nothing about training."""

    def test(
        self, pairs: Sequence[tuple[int, int]], share: float = 1.0, seeds: int | None = None, *, matched: bool = True
    ) -> FailureTest | None:
        """Return the exact test of whether one row of each pair fails more often than the other; None if neither has a failure.

        The pairs are strata: Fisher's exact test for one, the exact conditional test of a common odds ratio for several. Runs with
        the same seed count as independent.

        Args:
            pairs: Rows to compare.
            share: Fraction of the significance level that the present look at the study may spend.
            seeds: Number of seeds to count; None for all.
            matched: False if the rows of a pair differ in other respects as well, which only their sum balances: one stratum.
        """
        counts = [(*self._count(row, seeds), *self._count(reference, seeds)) for row, reference in pairs]
        if not matched:
            counts = [tuple(np.sum(counts, axis=0).tolist())]
        failed, runs, reference_failed, reference_runs = np.sum(counts, axis=0).tolist()
        if not failed + reference_failed:
            return None
        p, least = _exact_p_value(counts)
        return FailureTest(
            failed=failed,
            runs=runs,
            reference_failed=reference_failed,
            reference_runs=reference_runs,
            without_value=sum(int(self.diverged[list(pair), :seeds].sum()) for pair in pairs),
            p=min(1.0, p / share),
            least_p=min(1.0, least / share),
        )

    def p_if_rates_go_on(self, pairs: Sequence[tuple[int, int]], seeds: int, until: int) -> float | None:
        """Return the p-value of `test` at a later number of seeds, if runs went on to fail as often; None without a failure."""
        counts = [(*self._count(row, seeds), *self._count(reference, seeds)) for row, reference in pairs]
        if not any(failed + reference_failed for failed, _, reference_failed, _ in counts):
            return None
        later = np.rint(np.array(counts) * until / seeds).astype(int).tolist()
        return _exact_p_value([(a, b, c, d) for a, b, c, d in later])[0]

    def _count(self, row: int, seeds: int | None) -> tuple[int, int]:
        counted = self.counted[row, :seeds]
        return int((self.failed[row, :seeds] & counted).sum()), int(counted.sum())


def find_failures(values: Array, outcomes: Sequence[Sequence[str]], metric: Metric, chance: float | None) -> FailureTable:
    """Return which runs failed to train.

    A completed run counts as failed if its value is near that of guessing: within a tenth of the way to the best value, and within
    the way to the worst one. It also counts if it is worse than the median of its cell by more than six median absolute deviations
    (the larger of the cell's and the study's typical one) and by half of the way to guessing. Without a value of guessing, such
    a run is outlying.

    Args:
        values: Values of completed runs; a row per cell, a column per seed, NaN without a result.
        outcomes: Outcomes of all runs, in the same shape.
        metric: Metric of the values.
        chance: Value that guessing gives; None if it is not known.
    """
    diverged = np.array(outcomes, object) == "diverged"
    completed = np.isfinite(values)
    far, untrained = _far_from_cell(values, metric), np.zeros(values.shape, bool)
    if chance is not None:
        losses, guessing = metric.minimized(values), metric.minimized(chance)
        best, worst = sorted(map(metric.minimized, metric.bounds))
        near = losses >= guessing - min(NEAR_CHANCE_FRACTION * (guessing - best), worst - guessing)
        medians = _row_medians(losses)[:, None]
        untrained = completed & (near | (far & (losses - medians >= FAR_FRACTION * (guessing - medians))))
    return FailureTable(failed=diverged | untrained, diverged=diverged, outlying=far & ~untrained, counted=completed | diverged)


def _far_from_cell(values: Array, metric: Metric) -> Flags:
    known, losses = np.isfinite(values), metric.minimized(values)
    off = losses - _row_medians(losses)[:, None]
    deviations = _row_medians(np.where((known.sum(axis=1) > 2)[:, None], abs(off), np.nan))
    if known.sum() < MIN_RUNS_FOR_MAD or not np.isfinite(deviations).any():
        return np.zeros(values.shape, bool)
    spread = MAD_TO_STD * np.fmax(deviations, np.nanmedian(deviations))[:, None]
    return np.asarray(known & (spread > 0) & (off > MAX_MADS * spread))


def _row_medians(rows: Array) -> Array:
    """Return the median of each row; NaN without values."""
    return np.array([np.median(row[np.isfinite(row)]) if np.isfinite(row).any() else np.nan for row in rows])


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


def can_be_significant(test: FailureTest) -> bool:
    """Return whether so many failures could be significant at all. If not, a family need not count the test (Tarone 1990)."""
    return test.least_p < SIGNIFICANCE_LEVEL
