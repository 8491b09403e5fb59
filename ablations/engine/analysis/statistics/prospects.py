"""Prospects of a comparison whose seeds go on: how probable is a result, given the seeds so far?"""

import math
from collections.abc import Sequence

from scipy.stats import t

from ablations.engine.analysis.statistics.estimate import MIN_SEEDS_FOR_P_VALUE, Estimate
from ablations.engine.analysis.statistics.failures import FailureTable
from ablations.engine.analysis.statistics.inference import SIGNIFICANCE_LEVEL
from ablations.engine.analysis.statistics.sequential import LookScale


def probability_of_result(difference: Estimate, later: Sequence[LookScale], part: float, margin: float | None) -> float:
    """Return the largest probability of a result at one of the later looks: of a difference, or of one within the margin.

    Given n differences and nothing else about the true mean, the predictive distribution of a later mean is a t distribution with
    n - 1 degrees of freedom around the present one (flat prior). The later standard deviation is taken to be the present one.

    Args:
        difference: The difference at the present look.
        later: Later looks.
        part: Part of the significance level that the comparison has before any other is rejected.
        margin: Largest difference that counts as no effect; None if the study does not say.

    Returns:
        The probability: 0 without any difference or if all are zero; 1 for a single one, which tells nothing.
    """
    n, mean = difference.n, abs(difference.mean or 0.0)
    if difference.se is None or n < 2:
        return float(n == 1)
    spread = difference.se * math.sqrt(n)
    if not spread:
        return float(mean > 0)
    found = [0.0]
    for look in later:
        if look.seeds < MIN_SEEDS_FOR_P_VALUE or look.seeds <= n:
            continue
        level, se, df = SIGNIFICANCE_LEVEL * look.scale.share * part, spread / math.sqrt(look.seeds), look.seeds - 1
        moves = spread * math.sqrt((look.seeds - n) / (n * look.seeds))  # scale of the later mean around the present one
        needed = float(t.isf(level / 2, df)) * se
        found.append(float(t.sf((needed - mean) / moves, n - 1) + t.sf((needed + mean) / moves, n - 1)))
        if margin is not None and (inside := margin - float(t.isf(level, df)) * se) > 0:
            found.append(float(t.sf((mean - inside) / moves, n - 1) - t.sf((mean + inside) / moves, n - 1)))
    return max(found)


def failures_would_be_significant(
    failures: FailureTable, pairs: Sequence[tuple[int, int]], seeds: int, last: LookScale, part: float
) -> bool:
    """Return whether failures to train would be significant at the last look if runs went on to fail as often as so far."""
    p = failures.p_if_rates_go_on(pairs, seeds, last.seeds)
    return p is not None and p / last.scale.share < SIGNIFICANCE_LEVEL * part
