"""Which trials are worth going on with: successive halving, asynchronous (ASHA, Li et al. 2020, arXiv:1810.05934), and Hyperband.

A decision is a function of the errors reported so far: there is no state that could be lost.
"""

import math
from collections.abc import Mapping
from functools import cache
from itertools import pairwise

REDUCTION = 3
"""η of the papers: one of so many trials goes on from a rung."""
MIN_EPOCHS = 3
"""Epochs before which nothing is compared: deep networks still guess. Of 48 trials with 56 layers on digits, 42 had an error of
80 to 90 % after their first epoch, one that ended at 3.5 % among them."""
GOLDEN_RATIO = (math.sqrt(5) - 1) / 2


def rungs(epochs: int) -> tuple[int, ...]:
    """After how many epochs trials are compared: a 27th, a 9th and a 3rd of a whole training, but not before `EARLIEST`."""
    return tuple(sorted({round(epochs / REDUCTION**power) for power in (1, 2, 3)} - set(range(MIN_EPOCHS)) - {epochs}))


@cache
def bracket(number: int, epochs: int) -> int:
    """The bracket of a trial: how many of the first rungs it passes without being compared.

    Brackets get trials in proportion to the inverse of what a trial in them costs, so that each trains about as many epochs (Li et
    al. 2018, arXiv:1603.06560). They are spread by multiples of the golden ratio: evenly, however many trials there are.
    """
    weights = [1 / _cost(passed, epochs) for passed in range(len(rungs(epochs)) + 1)]
    place = number * GOLDEN_RATIO % 1 * sum(weights)
    return next((which for which in range(len(weights)) if place < sum(weights[: which + 1])), len(weights) - 1)


def should_continue(
    number: int, epoch: int, errors: Mapping[int, Mapping[int, float]], *, epochs: int, hyperband: bool = False
) -> bool:
    """Whether a trial is to be trained beyond `epoch`, whose error it has just reported.

    At a rung it is if its error is among the best third of all that its bracket has reported there, itself included and rounded
    down; the best so far always goes on, and so do ties. Unlike in the paper nothing waits for a rung to fill: a trial that is not
    among the best now is over (the stopping variant). An error that is not finite never goes on.

    Args:
        errors: of all trials, by number and epoch, in percent.
        epochs: of a whole training.
        hyperband: whether there are brackets; without, all trials are in one, with every rung.
    """
    error = errors[number][epoch]
    if not math.isfinite(error):
        return False
    passed = bracket(number, epochs) if hyperband else 0
    if epoch not in rungs(epochs)[passed:]:
        return True
    rivals = [
        curve[epoch] for other, curve in errors.items() if epoch in curve and (not hyperband or bracket(other, epochs) == passed)
    ]
    return sum(rival < error for rival in rivals) < max(1, len(rivals) // REDUCTION)


def _cost(passed: int, epochs: int) -> float:
    """Epochs that a trial is expected to train which passes the first rungs."""
    ends = (0, *rungs(epochs)[passed:], epochs)
    return sum((end - start) / float(REDUCTION) ** index for index, (start, end) in enumerate(pairwise(ends)))
