"""Half-normal plots of contrasts (Daniel 1959) and their robust standard error (Lenth 1989)."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from ablations.engine.analysis.statistics.estimate import CONFIDENCE_LEVEL

MIN_CONTRASTS = 7
"""Fewest contrasts for which most can be taken to be small: those of 8 cells."""
MEDIAN_TO_STANDARD_DEVIATION = 1.5
"""Ratio of the standard deviation to the median absolute value of a normal variable, as Lenth rounds it."""
TRIM_AT = 2.5
"""Contrasts of at least so many first standard deviations do not enter the pseudo standard error."""


def pseudo_standard_error(contrasts: Sequence[float]) -> float:
    """Return Lenth's pseudo standard error: 1.5 times the median size of the contrasts without those that are large.

    It supposes that most contrasts are zero but for noise (effect sparsity). [Lenth 1989](https://doi.org/10.2307/1269997).
    """
    sizes = np.abs(np.asarray(contrasts, float))
    first = MEDIAN_TO_STANDARD_DEVIATION * float(np.median(sizes))
    small = sizes[sizes < TRIM_AT * first]
    return MEDIAN_TO_STANDARD_DEVIATION * float(np.median(small)) if small.size else 0.0


def margin_of_error(contrasts: Sequence[float]) -> float:
    """Return the size above which Lenth calls one of the contrasts large: a t quantile with a third as many degrees of freedom."""
    quantile = stats.t.ppf((1 + CONFIDENCE_LEVEL) / 2, len(contrasts) / 3)
    return float(quantile) * pseudo_standard_error(contrasts)


def half_normal_quantiles(count: int) -> NDArray[np.float64]:
    """Return the quantiles at which `count` absolute values of a standard normal variable are expected, ascending."""
    probabilities = (np.arange(count) + 0.5) / count
    return np.asarray(stats.norm.ppf((1 + probabilities) / 2), dtype=np.float64)
