"""Sentences about the effects of levels, in the words and the unit of the study's metric."""

import math
from collections import Counter
from collections.abc import Sequence

from ablations.engine.analysis.findings import Effect, Interaction, SimpleEffect
from ablations.engine.analysis.number_format import MIN_DISPLAYED_P, ValueFormat
from ablations.engine.analysis.statistics.estimate import CONFIDENCE_LEVEL, Estimate, FailureTest
from ablations.engine.analysis.verdicts.claims import (
    Contrast,
    claims_difference,
    claims_failures,
    is_identical,
    is_tested,
    may_differ,
    possible,
)
from resnet_core.fields import counted

MAX_NAMED = 3
"""Maximum number of levels or cells that a sentence names. It gives the number of the others."""
MAX_LEVELS_BY_COMBINATION = 2
"""Maximum number of levels whose effects a sentence reports for single combinations of the other factors."""


class Sentences:
    """Sentences about contrasts.

    Args:
        formats: Formats of the study's values.
        tests: Number of tests in the study's family.
    """

    def __init__(self, formats: ValueFormat, tests: int) -> None:
        self._formats, self._tests, self._label = formats, tests, f"the {formats.metric.label}"

    def average(self, effects: Sequence[Effect]) -> str:
        """Return the average effects of the strongest levels, and the number of other levels by strength of evidence."""
        if not effects:
            return "no combination of the other factors has runs of a level and its reference"
        named, others = self._strongest(effects)
        claims = [self.claim(each) for each in named]
        if others:
            counts = Counter(self._strength(each) for each in others)
            phrases = {"shown": "an effect", "possible": "a possible effect", "none": "no difference shown", "untested": "no test"}
            parts = [f"{counts[strength]} with {text}" for strength, text in phrases.items() if strength in counts]
            claims.append(f"the study has {counted(len(others), 'more level')}: {', '.join(parts)}")
        return "; ".join(claims)

    def bounds(self, effects: Sequence[Effect], within: float | None = None) -> str:
        """Return the differences of the strongest levels, and which ones the confidence intervals leave possible.

        Args:
            within: The margin that all of them are within; None to state the range that is left possible.
        """
        named, others = self._strongest(effects)
        claims = [self._with_failures(each, f"gives {self._difference(each.difference)}") for each in named]
        if others:
            claims.append(f"the study has {counted(len(others), 'more level')}, with smaller mean differences")
        if within is not None:
            p = max(each.p_within_margin or 0.0 for each in effects)
            claims.append(
                f"two one-sided tests place {'it' if len(effects) == 1 else 'all'} within ±{self._formats.size(within)} ({_p(p)})"
            )
        else:
            lows = [each.difference.low for each in effects if each.difference.low is not None]
            highs = [each.difference.high for each in effects if each.difference.high is not None]
            trained = not any(each.failures and each.failures.without_value for each in effects)
            if lows and trained:
                span = f"{self._formats.signed(min(lows))} to {self._formats.signed(max(highs))}"
                claims.append(f"the results are compatible with differences from {self._formats.in_points(span)}")
        return "; ".join(claims)

    def combinations(self, simple: Sequence[SimpleEffect], depends: Sequence[Interaction], effects: Sequence[Effect]) -> str:
        """Return the strongest simple effects of each level that its average effect describes badly.

        Such a level takes part in a significant interaction, has a simple effect that is shown or possible while its average effect
        is not, or has simple effects whose confidence intervals do not overlap.

        Args:
            simple: Simple effects of a factor.
            depends: Significant interactions of the factor.
            effects: Average effects of the factor's levels.
        """
        averages = {each.level: self._strength(each) for each in effects}
        interacting = {level for each in depends for level in each.levels}
        chosen = {id(each) for each in possible([each for each in simple if each.at])}
        reported = []
        for level in dict.fromkeys(each.level for each in simple if each.at):
            of_level = [each for each in simple if each.level == level and (each.difference.n or each.failures)]
            found = any(self._strength(each) == "shown" for each in of_level)
            hidden = (found and averages.get(level) != "shown") or (
                averages.get(level) not in ("shown", "possible") and any(id(each) in chosen for each in of_level)
            )
            if of_level and (level in interacting or hidden or _intervals_disjoint(of_level)):
                reported.append(sorted(of_level, key=self._by_strength))
        reported.sort(key=lambda of_level: self._by_strength(of_level[0]))
        clauses = [self._extreme_combinations(of_level) for of_level in reported[:MAX_LEVELS_BY_COMBINATION]]
        where = [_place_of_failures(each, simple) for each in effects if claims_failures(each)]
        return "; ".join([*filter(None, where), *clauses])

    def within_margin(self, effects: Sequence[Effect], margin: float | None) -> str:
        """Return which levels have effects that are shown to be within the margin; empty without a margin or such levels."""
        within = [
            each.level for each in effects if each.p_within_margin is not None and each.p_within_margin < 1 - CONFIDENCE_LEVEL
        ]
        if margin is None or not within:
            return ""
        levels = ", ".join(within[:MAX_NAMED]) + (f" and {len(within) - MAX_NAMED} more" if len(within) > MAX_NAMED else "")
        verb = "is" if len(within) == 1 else "are"
        return f"on average, the difference of {levels} {verb} within the margin of ±{self._formats.size(margin)}"

    def dependence(self, interaction: Interaction) -> str:
        """Return a significant interaction: how much a level's effect changes with another factor."""
        (factor, other), (level, other_level), (reference, other_reference) = (
            interaction.factors,
            interaction.levels,
            interaction.references,
        )
        change = interaction.difference
        return (
            f"the difference between {factor}={level} and {reference} changes by "
            f"{self._formats.in_points(self._formats.signed(change.mean))} from "
            f"{other}={other_reference} to {other_level} ({self._interval(change)})"
        )

    def _extreme_combinations(self, of_level: Sequence[SimpleEffect]) -> str:
        """Return a level's strongest simple effect, which comes first, and the one farthest from it."""
        first, *others = of_level
        count = len(of_level)
        if self._strength(first) == "possible":
            return f"at {first.at}, one of {counted(count, 'combination')}, {self.claim(first)}"
        claims = [f"at {first.at}, {self.claim(first)}"]
        if others:
            farthest = max(others, key=lambda each: abs(_mean(each) - _mean(first)))
            claims.append(f"at {farthest.at}, {self.claim(farthest)}")
        if len(others) > 1:
            verb = "is" if len(others) == 2 else "are"
            claims.append(f"{counted(len(others) - 1, 'more combination')} {verb} not named here")
        return "; ".join(claims)

    def claim(self, contrast: Contrast) -> str:
        """Return what a contrast shows as a clause."""
        return self._with_failures(contrast, self._predicate(contrast))

    def _with_failures(self, contrast: Contrast, predicate: str) -> str:
        """Return a clause about a contrast: first the failures to train of its levels, then the difference."""
        subject = level_change(contrast)
        if isinstance(contrast, Effect) and contrast.of_combinations:
            where = (
                f"only at {contrast.place}"
                if contrast.place
                else f"over {contrast.combinations} of {contrast.of_combinations} combinations"
            )
            subject += f" ({where})"
        if contrast.failures is None:
            return f"{subject} {predicate}"
        failures = _failures(contrast, contrast.failures)
        if not contrast.difference.n:
            return failures
        trained = "of the seeds in which both trained, " if contrast.failures.without_value else ""
        return f"{failures}; {trained}{subject} {predicate}{self._robust(contrast)}"

    def _robust(self, contrast: Contrast) -> str:
        """Return what the difference would be if runs that failed counted otherwise."""
        if not isinstance(contrast, Effect):
            return ""
        formats, text = self._formats, ""
        if contrast.at_chance is not None:
            text += f"; with failed runs counted as guessing it would be {formats.in_points(formats.signed(contrast.at_chance))}"
        if contrast.median is not None:
            text += f"; the median difference is {formats.in_points(formats.signed(contrast.median))}"
        return text

    def _predicate(self, contrast: Contrast) -> str:
        """Return a tested difference as the predicate of a sentence."""
        difference, mean, formats = contrast.difference, contrast.difference.mean or 0, self._formats
        value = self._difference(difference)
        if claims_difference(contrast, formats.metric):
            verb = "raises" if mean > 0 else "lowers"
            return f"{verb} {self._label} by {formats.size(mean)} ({self._interval(difference)})"
        if difference.significant:
            return f"gives {value}, which the failures may explain"
        if may_differ(difference):
            adjusted = f"adjusted for {counted(self._tests, 'test')}, {_p(difference.p_adjusted or 1.0)}"
            return f"may {'raise' if mean > 0 else 'lower'} {self._label}: {value}, but this may be chance ({adjusted})"
        if is_tested(difference):
            return f"gives {value}: no difference shown" if not is_identical(difference) else f"gives {value}"
        if not difference.n:
            return "has no test, because no seed has both of its runs"
        why = "which do not vary and so allow no test" if difference.std == 0 else "too few for a test"
        return f"shows {value}, {why}"

    def _difference(self, difference: Estimate) -> str:
        seeds = counted(difference.n, "seed")
        if is_identical(difference):
            return f"no difference in any of {seeds}"
        points = self._formats.in_points(self._formats.signed(difference.mean or 0))
        if difference.low is None:
            return f"{points} in each of {seeds}" if difference.std == 0 else f"{points} in {seeds}"
        return f"{points} ({self._interval(difference)})" + f" in {seeds}" * (difference.p is None)

    def _interval(self, difference: Estimate) -> str:
        """Return the interval of a difference: `95 % CI …` as in tables, or `adjusted 95 % CI …` if it is widened for selection."""
        low, high = difference.low, difference.high
        if difference.selected_low is not None and difference.selected_high is not None:
            low, high = difference.selected_low, difference.selected_high
        if difference.significant and low is not None and high is not None and low <= 0 <= high:
            return f"exact sign-flip test, adjusted {_p(difference.p_adjusted or 0.0)}"  # which a t interval does not agree with
        if low is None or high is None:
            return f"in each of {counted(difference.n, 'seed')}"
        adjusted = "adjusted " if (low, high) != (difference.low, difference.high) else ""
        return f"{adjusted}95 % CI {self._formats.signed(low)} to {self._formats.signed(high)}"

    def _strength(self, contrast: Contrast) -> str:
        """Return `shown`, `possible` (significant only if tested alone), `none` or `untested`."""
        if claims_difference(contrast, self._formats.metric) or claims_failures(contrast):
            return "shown"
        if may_differ(contrast.difference) or (contrast.failures and contrast.failures.p < 1 - CONFIDENCE_LEVEL):
            return "possible"
        return "none" if is_tested(contrast.difference) else "untested"

    def _strongest(self, effects: Sequence[Effect]) -> tuple[Sequence[Effect], Sequence[Effect]]:
        """Return the levels that a sentence names, and the others."""
        order = sorted(effects, key=self._by_strength)
        return order[:MAX_NAMED], order[MAX_NAMED:]

    def _by_strength(self, contrast: Contrast) -> tuple[bool, bool, float, float]:
        """Return a sort key: contrasts that are shown first, then those that are possible, then by failures and size."""
        strength, test = self._strength(contrast), contrast.failures
        excess = abs(test.failed / max(1, test.runs) - test.reference_failed / max(1, test.reference_runs)) if test else 0.0
        return strength != "shown", strength != "possible", -excess, -abs(_mean(contrast))


def level_change(contrast: Contrast) -> str:
    """Return the change from the reference to a level: `none instead of A`, `going from 20 to 56`."""
    if _is_number(contrast.level) and _is_number(contrast.reference):
        return f"going from {contrast.reference} to {contrast.level}"
    return f"{contrast.level} instead of {contrast.reference}"


def gain_interval(low: float, high: float, formats: ValueFormat) -> str:
    """Return the interval of an improvement: `95 % CI of the gain −1.27 to −0.21`."""
    return f"95 % CI of the gain {formats.signed(low)} to {formats.signed(high)}"


def sentence(text: str) -> str:
    """Return text that begins with a capital letter."""
    return text[:1].upper() + text[1:]


def _failures(contrast: Contrast, test: FailureTest) -> str:
    if test.failed == test.runs and test.reference_failed == test.reference_runs:
        return f"all {test.runs + test.reference_runs} runs of both levels fail to train"
    p = f"exact test, {_p(test.p)}" if test.p_adjusted is None else f"exact test, adjusted {_p(test.p_adjusted)}"
    if test.p < 1 - CONFIDENCE_LEVEL and not test.significant:
        p += ", which may be chance"
    return (
        f"{contrast.level} fails to train in {test.failed} of {counted(test.runs, 'run')}, {contrast.reference} in "
        f"{test.reference_failed} of {test.reference_runs} ({p})"
    )


def _place_of_failures(effect: Effect, simple: Sequence[SimpleEffect]) -> str:
    """Return the combination of the other factors at which all failures of a level happened; empty if there are several."""
    places = [each.at for each in simple if each.level == effect.level and each.at and each.failures]
    return f"all failures of {effect.level} and {effect.reference} are at {places[0]}" if len(places) == 1 else ""


def _p(p: float) -> str:
    return f"p < {MIN_DISPLAYED_P}" if p < MIN_DISPLAYED_P else f"p = {p:.2g}"


def _intervals_disjoint(of_level: Sequence[SimpleEffect]) -> bool:
    """Return whether two of the confidence intervals do not overlap."""
    lows = [each.difference.low for each in of_level if each.difference.low is not None]
    highs = [each.difference.high for each in of_level if each.difference.high is not None]
    return bool(lows) and max(lows) > min(highs)


def _mean(contrast: Contrast) -> float:
    return contrast.difference.mean or 0


def _is_number(level: str) -> bool:
    try:
        return math.isfinite(float(level))
    except ValueError:
        return False
