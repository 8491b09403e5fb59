"""Verdict on a change: keep, discard or undecided, from runs before and after it that are paired by seed."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from scipy.stats import binomtest

from ablations.engine.analysis.number_format import MIN_DISPLAYED_P, ValueFormat, decimals_for, p_value
from ablations.engine.analysis.statistics.estimate import CONFIDENCE_LEVEL, MIN_SEEDS_FOR_P_VALUE
from ablations.engine.analysis.statistics.inference import estimate_means, shifted_p_value, zero_tolerance
from ablations.engine.analysis.statistics.power import POWER, Spread, expected_power
from ablations.engine.analysis.verdicts.sentences import gain_interval
from ablations.engine.task.metric import Metric
from resnet_core.fields import counted

Verdict = Literal["keep", "discard", "undecided"]
MAX_SEEDS = 1000
"""Maximum number of seeds that is considered."""


@dataclass(frozen=True, kw_only=True)
class ChangeFinding:
    """The effect of a change, from paired runs."""

    verdict: Verdict
    n: int
    """Number of seeds whose runs of both sides completed."""
    gain: float | None
    """Mean improvement over seeds, in the unit of differences of the metric; above zero is better."""
    low: float | None
    """Lower end of its 95 % t interval."""
    high: float | None
    """Upper end of the interval."""
    p: float | None
    """p-value of a two-sided paired t test that the improvement is the one asked for, times the number of looks."""
    failures: int
    """Number of seeds with a run after the change that failed."""
    base_failures: int
    """Number of seeds with a run before the change that failed."""
    more_seeds: int | None
    """Number of further seeds with which one more look has 80 % power, if the observed improvement is the true one. None if it is
    decided, if they would be more than `MAX_SEEDS`, or if every seed has a run that failed."""
    text: str = ""
    """The finding in one line."""


def judge_change(
    base: Mapping[int, Sequence[float | None]],
    changed: Mapping[int, Sequence[float | None]],
    metric: Metric,
    *,
    by: float = 0.0,
    looks: int = 1,
) -> ChangeFinding:
    """Return the verdict on a change.

    It is kept if its improvement is above `by` and discarded if it is below, in both cases by a two-sided paired t test at 5 %. It
    is not kept if it makes more seeds fail than before, and discarded if that is significant (exact McNemar test).

    Args:
        base: values of the metric before the change, by seed; one per cell, None for a run that failed.
        changed: the same after the change, with the same seeds and cells.
        metric: the compared metric.
        by: least improvement worth the change, in the metric's unit.
        looks: how often the runs of this comparison have been judged, this time included. The p-value is multiplied by it.
    """
    sign = 1 if metric.better == "higher" else -1
    failed = {seed for seed in changed if None in changed[seed]}
    base_failed = {seed for seed in base if None in base[seed]}
    gains = [
        sign * float(np.mean([after - before for after, before in zip(changed[seed], base[seed], strict=True)]))  # type: ignore[operator]
        for seed in base
        if seed not in failed | base_failed
    ]
    values = [value for side in (base, changed) for of_seed in side.values() for value in of_seed if value is not None]
    (estimate,) = estimate_means([gains or [np.nan]], zero_tolerance(values))
    p = None
    if estimate.n >= MIN_SEEDS_FOR_P_VALUE and estimate.low is not None and estimate.mean is not None and estimate.std is not None:
        p = min(1.0, looks * shifted_p_value(estimate.mean, estimate.std, estimate.n, by))
    verdict: Verdict = "undecided"
    only_after, only_before = len(failed - base_failed), len(base_failed - failed)
    if only_after > only_before and looks * binomtest(only_after, only_after + only_before).pvalue < 1 - CONFIDENCE_LEVEL:
        verdict = "discard"
    elif p is not None and p < 1 - CONFIDENCE_LEVEL and estimate.mean is not None:
        if estimate.mean < by:
            verdict = "discard"
        elif len(failed) <= len(base_failed):
            verdict = "keep"
    all_failed = bool(base) and not gains
    more = None if verdict != "undecided" or all_failed else _more_seeds(estimate.n, estimate.mean, estimate.std, by, looks + 1)
    found = ChangeFinding(
        verdict=verdict,
        n=estimate.n,
        gain=estimate.mean,
        low=estimate.low,
        high=estimate.high,
        p=p,
        failures=len(failed),
        base_failures=len(base_failed),
        more_seeds=more,
    )
    formats = ValueFormat(metric, decimals_for(metric, values))
    return replace(found, text="; ".join(_texts(found, formats, by, all_failed=all_failed)))


def _more_seeds(n: int, mean: float | None, std: float | None, by: float, looks: int) -> int | None:
    if n < 2 or mean is None or not std:
        return max(1, MIN_SEEDS_FOR_P_VALUE - n) if n < MIN_SEEDS_FOR_P_VALUE else None
    effect = abs(mean - by)
    # The spread counts as known. Comparisons that are undecided have large spreads more often than small ones, so this promises
    # about the right power: 68 to 85 % in simulations, where an average over what the spread may be gives 85 to 97 %.
    spread = Spread(std, math.inf)

    def enough(seeds: int) -> bool:
        return expected_power(effect, spread, seeds, looks) >= POWER

    if not enough(MAX_SEEDS):
        return None
    low, high = max(n, MIN_SEEDS_FOR_P_VALUE - 1), MAX_SEEDS  # `low` is too few, or what there is
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high - n


def _texts(found: ChangeFinding, formats: ValueFormat, by: float, *, all_failed: bool) -> list[str]:
    metric = formats.metric
    unit = f" {metric.difference_unit}" if metric.difference_unit else ""
    texts = [f"{found.verdict}: no seed has all runs of both sides"]
    if found.gain is not None:
        interval = f" ({gain_interval(found.low, found.high, formats)})" if found.low is not None and found.high is not None else ""
        word = "better" if found.gain >= 0 else "worse"
        over = f"over {counted(found.n, 'seed')}"
        texts = [f"{found.verdict}: {metric.label} is {formats.size(found.gain)} {word}{interval} {over}"]
    if all_failed:
        texts = [f"{found.verdict}: every seed has a run that failed, so that no difference can be tested"]
    elif found.p is not None:
        against = f" against a gain of {by:g}{unit}" if by else ""
        texts.append(f"p {'' if found.p < MIN_DISPLAYED_P else '= '}{p_value(found.p)}{against}")
    elif found.n >= MIN_SEEDS_FOR_P_VALUE:
        texts.append("the differences do not vary and so allow no t test")
    else:
        texts.append(f"a test needs {MIN_SEEDS_FOR_P_VALUE} seeds")
    if found.failures or found.base_failures:
        before = f"{counted(found.base_failures, 'seed')} before"
        texts.append(f"runs failed in {counted(found.failures, 'seed')} after the change and in {before}")
    if found.more_seeds is not None and found.n < MIN_SEEDS_FOR_P_VALUE:
        texts.append(f"at least {counted(found.more_seeds, 'more seed')}")
    elif found.more_seeds is not None:
        texts.append(
            f"{counted(found.more_seeds, 'more seed')} for 80 % power at the next look, if the observed gain is the true one"
        )
    elif found.verdict == "undecided" and found.p is not None:
        texts.append(f"more than {MAX_SEEDS} seeds for 80 % power")
    return texts
