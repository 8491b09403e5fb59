"""State for each factor whether it matters, in sentences that claim no more than the tests support."""

import math
from collections import Counter
from collections.abc import Sequence, Set

from ablations.engine.analysis.contrasts import SimpleEffect
from ablations.engine.analysis.findings import (
    CONFIDENCE_LEVEL,
    MIN_SEEDS_FOR_P_VALUE,
    Answer,
    CellFinding,
    Effect,
    Estimate,
    Interaction,
)
from ablations.engine.analysis.number_format import ValueFormat
from resnet_core.fields import counted

MAX_NAMED = 3
"""Maximum number of levels or cells that a sentence names. It gives the number of the others."""
MAX_LEVELS_BY_COMBINATION = 2
"""Maximum number of levels whose effects a sentence reports for single combinations of the other factors."""

Contrast = Effect | SimpleEffect


def conclude_factor(
    factor: str,
    effects: Sequence[Effect],
    interactions: Sequence[Interaction],
    simple: Sequence[SimpleEffect],
    cells: Sequence[CellFinding],
    formats: ValueFormat,
) -> Answer:
    """Return the verdict on one factor of a study, with the sentences that support it.

    A factor `matters` if the average effect of one of its levels is significant. It also matters if a simple effect is significant
    and either the level takes part in a significant interaction or its average effect has no test. One significant simple effect
    alone is not enough: among many combinations, one is often significant by chance.

    Args:
        factor: A factor with at least two levels.
        effects: Average effects of all factors of the study; they form one family of tests.
        interactions: Interactions of all pairs of factors of the study.
        simple: Simple effects of this factor, at every combination of the other factors.
        cells: All cells of the study.
        formats: Formats of the study's values.
    """
    wording = _Wording(formats)
    own = [each for each in effects if each.factor == factor]
    significant = [each for each in interactions if factor in each.factors and each.difference.significant]
    interacting = {level for each in significant for name, level in zip(each.factors, each.levels, strict=True) if name == factor}
    at_a_combination = {each.level for each in simple if each.difference.significant}
    strengths = {each.level: _strength(each.difference) for each in own}
    average = wording.average_text(own, effects)
    combinations = wording.combinations_text(
        simple, interacting, {level for level in strengths if strengths[level] == "significant"}
    )
    moderators = dict.fromkeys(name for each in significant for name in each.factors if name != factor)
    dependence = f"the effect depends on {' and '.join(moderators)}: {combinations}" if moderators else combinations
    if "significant" in strengths.values():
        verdict, lead, texts = "matters", f"{factor} matters", [average, dependence]
    elif any(level in interacting or strengths.get(level, "untested") == "untested" for level in at_a_combination):
        verdict, lead, texts = "matters", f"{factor} matters", [combinations, average]
    elif at_a_combination:
        verdict, lead, texts = "may matter", f"{factor} may matter", [combinations, average]
    elif "possible" in strengths.values() or significant:
        verdict, lead, texts = "may matter", f"{factor} may matter", [average, dependence]
    elif not own or "untested" in strengths.values():
        verdict, lead, texts = "cannot be said yet", f"The effect of {factor} cannot be said yet", [average]
    else:
        verdict, lead, texts = "no effect shown", f"No effect of {factor} is shown", [wording.bounds_text(own, effects)]
    first, *rest = [text for text in (*texts, _missing_runs_text(own, cells)) if text]
    return Answer(factor=factor, verdict=verdict, text=" ".join([f"{lead}: {first}.", *(f"{_sentence(text)}." for text in rest)]))


class _Wording:
    """The sentences about effects, in the words and the unit of the study's metric."""

    def __init__(self, formats: ValueFormat) -> None:
        self._formats, self._label = formats, f"the {formats.metric.label}"

    def average_text(self, own: Sequence[Effect], effects: Sequence[Effect]) -> str:
        """Return the average effects of the strongest levels, and the number of other levels by strength of evidence."""
        if not own:
            return "no combination of the other factors has runs of two of its levels"
        tests = _number_of_tests(effects)
        named, others = _strongest(own)
        claims = [f"{_level_change(each)} {self._predicate(each.difference, tests)}" for each in named]
        if others:
            counts = Counter(_strength(each.difference) for each in others)
            phrases = {"significant": "a significant", "possible": "a possible", "none": "no", "untested": "an untested"}
            parts = [f"{counts[strength]} with {text} effect" for strength, text in phrases.items() if strength in counts]
            claims.append(f"the study has {counted(len(others), 'more level')}: {', '.join(parts)}")
        return _averaged_over(own, effects) + "; ".join(claims)

    def bounds_text(self, own: Sequence[Effect], effects: Sequence[Effect]) -> str:
        """Return the largest effect that the confidence intervals leave possible."""
        named, others = _strongest(own)
        claims = [f"{_level_change(each)} gives {self._difference_text(each.difference)}" for each in named]
        if others:
            claims.append(f"the study has {counted(len(others), 'more level')}, with smaller mean differences")
        if bounds := [abs(bound) for each in own for bound in (each.difference.low, each.difference.high) if bound is not None]:
            claims.append(f"the intervals reach {self._formats.size(max(bounds))}, so a larger change is unlikely")
        return _averaged_over(own, effects) + "; ".join(claims)

    def combinations_text(self, simple: Sequence[SimpleEffect], interacting: Set[str], on_average: Set[str]) -> str:
        """Return the strongest simple effects of each level that its average effect describes badly.

        Such a level takes part in a significant interaction, has a significant simple effect but no significant average effect, or
        has simple effects whose confidence intervals do not overlap.

        Args:
            interacting: Levels that take part in a significant interaction.
            on_average: Levels with a significant average effect.
        """
        reported = []
        for level in dict.fromkeys(each.level for each in simple if each.at):
            of_level = [each for each in simple if each.level == level and each.difference.n]
            hidden = level not in on_average and any(each.difference.significant for each in of_level)
            if level in interacting or hidden or _intervals_disjoint(of_level):
                reported.append(sorted(of_level, key=_by_strength))
        reported.sort(key=lambda of_level: _by_strength(of_level[0]))
        tests = _number_of_tests(simple)
        return "; ".join(self._extreme_combinations(of_level, tests) for of_level in reported[:MAX_LEVELS_BY_COMBINATION])

    def _extreme_combinations(self, of_level: Sequence[SimpleEffect], tests: int) -> str:
        """Return a level's strongest simple effect, which comes first, and the one farthest from it."""
        first, *others = of_level
        claims = [f"at {first.at}, {_level_change(first)} {self._predicate(first.difference, tests)}"]
        if others:
            farthest = max(others, key=lambda each: abs(_mean(each) - _mean(first)))
            claims.append(f"at {farthest.at} it {self._predicate(farthest.difference, tests)}")
        if len(others) > 1:
            claims.append(f"{counted(len(others) - 1, 'more combination')} not named here")
        return ", ".join(claims)

    def _predicate(self, difference: Estimate, tests: int) -> str:
        """Return a tested difference as the predicate of a sentence. `tests` is the number of tests in its family."""
        strength, value, mean = _strength(difference), self._difference_text(difference), difference.mean or 0
        if strength == "significant":
            verb = "raises" if mean > 0 else "lowers"
            return f"{verb} {self._label} by {self._formats.size(mean)} ({self._interval(difference)})"
        if strength == "possible":
            adjusted = f"adjusted for {counted(tests, 'comparison')}, p = {difference.p_adjusted:.2g}"
            return f"may {'raise' if mean > 0 else 'lower'} {self._label}: {value}, but this may be chance ({adjusted})"
        if strength == "none":
            return f"shows no effect: {value}"
        if not difference.n:
            return "has no test, because no seed has all runs of the comparison"
        why = "which do not vary and so allow no t test" if difference.std == 0 else "too few for a test"
        return f"shows {value}, {why}"

    def _difference_text(self, difference: Estimate) -> str:
        seeds = counted(difference.n, "seed")
        if _is_identical(difference):
            return f"no difference in any of {seeds}"
        points = self._formats.in_points(self._formats.signed(difference.mean or 0))
        if difference.std == 0:
            return f"{points} in each of {seeds}"
        if difference.low is None:
            return f"{points} in {seeds}"
        return f"{points} ({self._interval(difference)})" + f" in {seeds}" * (difference.p is None)

    def _interval(self, difference: Estimate) -> str:
        return f"95 % CI {self._formats.signed(difference.low or 0)} to {self._formats.signed(difference.high or 0)}"


def _missing_runs_text(own: Sequence[Effect], cells: Sequence[CellFinding]) -> str:
    """Return which cells lack runs, if that removes seeds from the comparisons."""
    if all(each.difference.n == max(cell.planned for cell in cells) for each in own):
        return ""
    incomplete = [cell for cell in cells if cell.problems]
    named = [
        f"{cell.label} ({', '.join(f'{n} of {cell.planned} {outcome}' for outcome, n in cell.problems.items())})"
        for cell in incomplete
    ]
    if len(named) > MAX_NAMED:
        named = [*named[:MAX_NAMED], counted(len(named) - MAX_NAMED, "more cell")]
    return f"a comparison leaves out seeds that lack one of its runs: {', '.join(named)}"


def _strength(difference: Estimate) -> str:
    """Return `significant`, `possible` (significant only without adjustment), `none` or `untested`."""
    if difference.significant:
        return "significant"
    if difference.n >= MIN_SEEDS_FOR_P_VALUE and _is_identical(difference):
        return "none"
    if difference.p is None:
        return "untested"
    return "possible" if difference.p < 1 - CONFIDENCE_LEVEL else "none"


def _level_change(contrast: Contrast) -> str:
    if _is_number(contrast.level) and _is_number(contrast.reference):
        return f"going from {contrast.reference} to {contrast.level}"
    return f"{contrast.level} instead of {contrast.reference}"


def _averaged_over(own: Sequence[Effect], effects: Sequence[Effect]) -> str:
    others = dict.fromkeys(each.factor for each in effects if each.factor != own[0].factor)
    return f"averaged over {' and '.join(others)}, " if any(each.combinations > 1 for each in own) else ""


def _strongest(own: Sequence[Effect]) -> tuple[Sequence[Effect], Sequence[Effect]]:
    """Return the levels that a sentence names, and the others."""
    order = sorted(own, key=_by_strength)
    return order[:MAX_NAMED], order[MAX_NAMED:]


def _intervals_disjoint(of_level: Sequence[SimpleEffect]) -> bool:
    """Return whether two of the confidence intervals do not overlap."""
    lows = [each.difference.low for each in of_level if each.difference.low is not None]
    highs = [each.difference.high for each in of_level if each.difference.high is not None]
    return bool(lows) and max(lows) > min(highs)


def _number_of_tests(family: Sequence[Contrast]) -> int:
    return sum(each.difference.p is not None for each in family)


def _is_identical(difference: Estimate) -> bool:
    return difference.std == 0 and not difference.mean


def _by_strength(contrast: Contrast) -> tuple[bool, float]:
    """Return a sort key: significant contrasts first, then by decreasing size."""
    return not contrast.difference.significant, -abs(_mean(contrast))


def _mean(contrast: Contrast) -> float:
    return contrast.difference.mean or 0


def _is_number(level: str) -> bool:
    try:
        return math.isfinite(float(level))
    except ValueError:
        return False


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:]
