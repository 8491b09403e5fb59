"""Claims that the tests of a contrast support: an effect, a possible effect, or none."""

from collections.abc import Sequence
from typing import TypeVar

from ablations.engine.analysis.findings import Effect, Interaction, SimpleEffect
from ablations.engine.analysis.statistics.estimate import CONFIDENCE_LEVEL, MIN_SEEDS_FOR_P_VALUE, Estimate
from ablations.engine.analysis.statistics.inference import holm_adjust
from ablations.engine.task.metric import Metric

Contrast = Effect | SimpleEffect
TestedT = TypeVar("TestedT", bound=Effect | SimpleEffect | Interaction)


def is_tested(difference: Estimate) -> bool:
    """Return whether a difference has a test. One of zero in each of enough seeds needs none."""
    return difference.p is not None or (difference.n >= MIN_SEEDS_FOR_P_VALUE and is_identical(difference))


def is_identical(difference: Estimate) -> bool:
    """Return whether no seed has a difference."""
    return difference.std == 0 and not difference.mean


def may_differ(difference: Estimate) -> bool:
    """Return whether a difference would be significant if it were the only one tested."""
    return difference.p is not None and difference.p < 1 - CONFIDENCE_LEVEL


def claims_difference(contrast: Contrast, metric: Metric) -> bool:
    """Return whether a contrast shows a difference: it is significant, and the level that it favors does not fail more often.

    Seeds in which a run failed are not in the difference, so a level that fails where training is hard would seem better.
    """
    return contrast.difference.significant and not favors_failing_level(contrast, metric)


def favors_failing_level(contrast: Contrast, metric: Metric) -> bool:
    """Return whether the level that is better among the seeds in which both trained is the one that fails more often."""
    test = contrast.failures
    if test is None or not test.without_value:
        return False
    excess = test.failed * test.reference_runs - test.reference_failed * test.runs
    return excess > 0 if metric.is_better(contrast.difference.mean or 0) else excess < 0


def claims_failures(contrast: Contrast) -> bool:
    """Return whether a contrast shows that a level makes runs fail to train more or less often."""
    return contrast.failures is not None and contrast.failures.significant


def claims_dependence(interaction: Interaction) -> bool:
    """Return whether an interaction is shown: it is significant, and no run of its cells diverged."""
    return interaction.difference.significant and not interaction.without_value


def possible(contrasts: Sequence[TestedT]) -> list[TestedT]:
    """Return the contrasts of a factor that would be significant if they were the only family of tests (Holm)."""
    tested = [each for each in contrasts if each.difference.p is not None]
    adjusted = holm_adjust([each.difference.p or 0.0 for each in tested])
    return [each for each, p in zip(tested, adjusted, strict=True) if p < 1 - CONFIDENCE_LEVEL]
