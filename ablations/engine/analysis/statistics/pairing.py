"""Correlation between cells over seeds: what pairing by seed gains."""

import math

import numpy as np
import numpy.typing as npt
from scipy.stats import norm

from ablations.engine.analysis.statistics.estimate import CONFIDENCE_LEVEL
from ablations.engine.analysis.statistics.inference import zero_tolerance

MIN_SEEDS_FOR_CORRELATION = 4
"""Fewest common seeds for which a correlation is given: Fisher's interval needs n - 3 of them."""


def seed_correlation(a: npt.ArrayLike, b: npt.ArrayLike) -> tuple[float, float, float] | None:
    """Return Pearson's correlation of two cells over their common seeds, with the ends of Fisher's 95 % interval.

    Args:
        a: Values of one cell, one per seed; NaN without a result.
        b: Values of the other cell, for the same seeds.

    Returns:
        Correlation, lower end, upper end. None for fewer than 4 common seeds, or if the values of a cell do not vary.
    """
    pairs = np.array([a, b], float)
    pairs = pairs[:, np.isfinite(pairs).all(axis=0)]
    n = pairs.shape[1]
    if n < MIN_SEEDS_FOR_CORRELATION or np.ptp(pairs, axis=1).min() <= zero_tolerance(pairs):
        return None
    r = float(np.clip(np.corrcoef(pairs)[0, 1], -1, 1))
    if abs(r) == 1:
        return r, r, r
    half = float(norm.isf((1 - CONFIDENCE_LEVEL) / 2)) / math.sqrt(n - 3)
    return r, math.tanh(math.atanh(r) - half), math.tanh(math.atanh(r) + half)
