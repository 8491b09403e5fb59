"""Estimates over seeds and tests of failures, as plain data."""

from dataclasses import dataclass, replace
from typing import Self

CONFIDENCE_LEVEL = 0.95
"""Confidence level of every interval. The significance level of every test is 1 - CONFIDENCE_LEVEL."""
MIN_SEEDS_FOR_P_VALUE = 3
"""Fewest seeds (replicates) for which a p-value is given."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean over seeds with its uncertainty. A field is None if there are too few values to estimate it."""

    n: int
    """Number of values: one per seed."""
    mean: float | None = None
    std: float | None = None
    """Sample standard deviation; needs 2 values."""
    se: float | None = None
    """Standard error of the mean, of at least one step of the metric ÷ √n for differences; needs 2 values."""
    low: float | None = None
    """Lower end of the 95 % t confidence interval, within what the metric can be; needs a standard error above zero."""
    high: float | None = None
    """Upper end of the 95 % t confidence interval."""
    p: float | None = None
    """p-value of a two-sided test of mean zero, at the looks taken; differences only; needs 3 values that are not all zero."""
    p_adjusted: float | None = None
    """p-value adjusted for the tests in its family: all of the study's for a comparison, an effect or an interaction."""
    effect_size: float | None = None
    """Standardized mean difference d_z: mean ÷ standard deviation of the differences, with Hedges' small-sample correction.
    None without a p-value, or if the differences do not vary."""
    selected_low: float | None = None
    """Lower end of the interval of a difference that was selected as significant (95 % in the mean over those selected)."""
    selected_high: float | None = None
    """Upper end of that interval."""

    @property
    def significant(self) -> bool:
        """True if the adjusted p-value is below the significance level, 0.05."""
        return self.p_adjusted is not None and self.p_adjusted < 1 - CONFIDENCE_LEVEL

    def within(self, least: float, largest: float) -> Self:
        """Return the estimate with its interval cut off at what the metric can be."""
        if self.low is None or self.high is None:
            return self
        return replace(self, low=max(self.low, least), high=min(self.high, largest))


@dataclass(frozen=True, kw_only=True)
class FailureTest:
    """Failures to train with a level or in a cell, beside those of its reference, with an exact test of equal chances to fail."""

    failed: int
    """Number of runs that failed to train: diverged ones, and completed ones whose value shows no training."""
    runs: int
    """Number of runs that completed or diverged."""
    reference_failed: int
    reference_runs: int
    without_value: int
    """Number of the failed runs that have no value, because they diverged, and so are in no difference."""
    p: float
    """Two-sided p-value: Fisher's exact test, stratified by the combinations of other factors' levels."""
    least_p: float
    """Least p-value that so many failures can give."""
    p_adjusted: float | None = None
    """p-value adjusted for all tests of the study; None if not even the most extreme split could be significant."""

    @property
    def significant(self) -> bool:
        """True if the adjusted p-value is below the significance level, 0.05."""
        return self.p_adjusted is not None and self.p_adjusted < 1 - CONFIDENCE_LEVEL
