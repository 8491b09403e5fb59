"""Whether a factor matters, in sentences that claim no more than the findings do."""

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
from ablations.engine.analysis.inference import ZERO_TOLERANCE_POINTS

MAX_NAMED = 3
"""Levels and cells that a sentence names; the others are counted."""
MAX_LEVELS_BY_COMBINATION = 2
"""Levels that are told one combination at a time."""

Contrast = Effect | SimpleEffect


def conclude_factor(
    factor: str,
    effects: Sequence[Effect],
    interactions: Sequence[Interaction],
    simple: Sequence[SimpleEffect],
    cells: Sequence[CellFinding],
) -> Answer:
    """What a study says about one of its factors.

    It `matters` where a level certainly changes the error on average over the other factors; or at one of their combinations, if it
    certainly depends on these or there is no average. Each alone would be taken for certain by chance in too many studies.

    Args:
        factor: with two levels or more.
        effects: all of the study: they are one family of tests.
        interactions: all of the study.
        simple: this factor's, at every combination of the others.
        cells: all of the study.
    """
    own = [each for each in effects if each.factor == factor]
    depends = [each for each in interactions if factor in each.factors and each.difference.significant]
    dependent = {level for each in depends for name, level in zip(each.factors, each.levels, strict=True) if name == factor}
    somewhere = {each.level for each in simple if each.difference.significant}
    kinds = {each.level: _strength(each.difference) for each in own}
    averaged, apart = (
        _average_text(own, effects),
        _combinations_text(simple, dependent, {level for level in kinds if kinds[level] == "certain"}),
    )
    others = dict.fromkeys(name for each in depends for name in each.factors if name != factor)
    depending = f"it depends on {' and '.join(others)}: {apart}" if others else apart
    if "certain" in kinds.values():
        verdict, lead, told = "matters", f"{factor} matters", [averaged, depending]
    elif any(level in dependent or kinds.get(level, "unknown") == "unknown" for level in somewhere):
        verdict, lead, told = "matters", f"{factor} matters", [apart, averaged]
    elif somewhere:
        verdict, lead, told = "may matter", f"{factor} may matter", [apart, averaged]
    elif "possible" in kinds.values() or depends:
        verdict, lead, told = "may matter", f"{factor} may matter", [averaged, depending]
    elif not own or "unknown" in kinds.values():
        verdict, lead, told = "cannot be said yet", f"{factor}: cannot be said yet", [averaged]
    else:
        verdict, lead, told = "no effect shown", f"{factor}: no effect shown", [_bounds_text(own, effects)]
    first, *rest = [text for text in (*told, _missing_runs_text(own, cells)) if text]
    return Answer(factor=factor, verdict=verdict, text=" ".join([f"{lead}: {first}.", *(f"{_sentence(text)}." for text in rest)]))


def _average_text(own: Sequence[Effect], effects: Sequence[Effect]) -> str:
    """What levels do on average over the other factors: the strongest, and how many others do what."""
    if not own:
        return "at no combination of the other factors do two of its levels exist"
    tests = _number_of_tests(effects)
    first, others = _strongest(own)
    claims = [f"{_level_change(each)} {_predicate(each.difference, tests)}" for each in first]
    if others:
        counts = Counter(_strength(each.difference) for each in others)
        words = {"certain": "change error", "possible": "may change it", "none": "show no effect", "unknown": "cannot be told"}
        does = ", ".join(f"{counts[kind]} {text}" for kind, text in words.items() if kind in counts)
        claims.append(f"of the other {len(others)} levels {does}")
    return _averaged_over(own, effects) + "; ".join(claims)


def _bounds_text(own: Sequence[Effect], effects: Sequence[Effect]) -> str:
    """How large an effect may be that is not shown."""
    first, others = _strongest(own)
    claims = [f"{_level_change(each)}: {_difference_text(each.difference)}" for each in first]
    if others:
        claims.append(f"less for the other {len(others)} levels")
    if bounds := [abs(bound) for each in own for bound in (each.difference.low, each.difference.high) if bound is not None]:
        claims.append(f"a change of more than {_size(max(bounds))} points either way is unlikely")
    return _averaged_over(own, effects) + "; ".join(claims)


def _combinations_text(simple: Sequence[SimpleEffect], dependent: Set[str], certain: Set[str]) -> str:
    """What levels do at the combinations of the others where they do most and least, unless an average says as much."""
    told = []
    for level in dict.fromkeys(each.level for each in simple if each.at):
        there = [each for each in simple if each.level == level and each.difference.n]
        hidden = level not in certain and any(each.difference.significant for each in there)
        if level in dependent or hidden or _intervals_disjoint(there):
            told.append(sorted(there, key=_by_strength))
    told.sort(key=lambda there: _by_strength(there[0]))
    return "; ".join(_extreme_combinations(there, _number_of_tests(simple)) for there in told[:MAX_LEVELS_BY_COMBINATION])


def _extreme_combinations(there: Sequence[SimpleEffect], tests: int) -> str:
    """A level's strongest simple effect, the first, and the one that is farthest from it."""
    first, *others = there
    claims = [f"at {first.at} {_level_change(first)} {_predicate(first.difference, tests)}"]
    if others:
        farthest = max(others, key=lambda each: abs(_mean(each) - _mean(first)))
        claims.append(f"at {farthest.at} it {_predicate(farthest.difference, tests)}")
    if len(others) > 1:
        claims.append(f"{len(others) - 1} more not named")
    return ", ".join(claims)


def _missing_runs_text(own: Sequence[Effect], cells: Sequence[CellFinding]) -> str:
    """Which runs the numbers lack."""
    if all(each.difference.n == max(cell.planned for cell in cells) for each in own):
        return ""
    lacking = [cell for cell in cells if cell.problems]
    named = [
        f"{cell.label} ({', '.join(f'{n} of {cell.planned} {word}' for word, n in cell.problems.items())})" for cell in lacking
    ]
    if len(named) > MAX_NAMED:
        named = [*named[:MAX_NAMED], f"{len(named) - MAX_NAMED} more cells"]
    return f"seeds that lack a run are left out: {', '.join(named)}"


def _strength(difference: Estimate) -> str:
    if difference.significant:
        return "certain"
    if difference.n >= MIN_SEEDS_FOR_P_VALUE and _is_identical(difference):
        return "none"
    if difference.p is None:
        return "unknown"
    return "possible" if difference.p < 1 - CONFIDENCE_LEVEL else "none"


def _predicate(difference: Estimate, tests: int) -> str:
    """What one of several tested differences says, as a predicate."""
    kind, value, mean = _strength(difference), _difference_text(difference), difference.mean or 0
    if kind == "certain":
        return f"{'raises' if mean > 0 else 'lowers'} error by {_size(mean)} points {_interval(difference)}"
    if kind == "possible":
        chance = f"with {tests} comparisons this can be chance (corrected p {difference.p_adjusted:.2g})"
        return f"may {'raise' if mean > 0 else 'lower'} error: {value}, but {chance}"
    if kind == "none":
        return f"shows no effect: {value}"
    if not difference.n:
        return "cannot be told: no seed has all runs"
    return f"shows {value}, {'too alike' if difference.std == 0 else 'too few'} for a test"


def _difference_text(difference: Estimate) -> str:
    seeds = f"{difference.n} seed{'s' * (difference.n != 1)}"
    if _is_identical(difference):
        return f"no difference in any of {seeds}"
    points = f"{_signed(difference.mean or 0)} points"
    if difference.std == 0:
        return f"{points} in each of {seeds}"
    if difference.low is None:
        return f"{points} in {seeds}"
    return f"{points} {_interval(difference)}" + f" in {seeds}" * (difference.p is None)


def _interval(difference: Estimate) -> str:
    return f"[{_signed(difference.low or 0)}, {_signed(difference.high or 0)}]"


def _level_change(contrast: Contrast) -> str:
    if _is_number(contrast.level) and _is_number(contrast.reference):
        return f"going from {contrast.reference} to {contrast.level}"
    return f"{contrast.level} instead of {contrast.reference}"


def _averaged_over(own: Sequence[Effect], effects: Sequence[Effect]) -> str:
    others = dict.fromkeys(each.factor for each in effects if each.factor != own[0].factor)
    return f"averaged over {' and '.join(others)}, " if any(each.combinations > 1 for each in own) else ""


def _strongest(own: Sequence[Effect]) -> tuple[Sequence[Effect], Sequence[Effect]]:
    """The levels that a sentence names, and the others."""
    order = sorted(own, key=_by_strength)
    return order[:MAX_NAMED], order[MAX_NAMED:]


def _intervals_disjoint(there: Sequence[SimpleEffect]) -> bool:
    """Whether two intervals have nothing in common."""
    lows = [each.difference.low for each in there if each.difference.low is not None]
    highs = [each.difference.high for each in there if each.difference.high is not None]
    return bool(lows) and max(lows) > min(highs)


def _number_of_tests(family: Sequence[Contrast]) -> int:
    return sum(each.difference.p is not None for each in family)


def _is_identical(difference: Estimate) -> bool:
    return difference.std == 0 and abs(difference.mean or 0) <= ZERO_TOLERANCE_POINTS


def _by_strength(contrast: Contrast) -> tuple[bool, float]:
    """The strongest first, the certain ones before others."""
    return not contrast.difference.significant, -abs(_mean(contrast))


def _mean(contrast: Contrast) -> float:
    return contrast.difference.mean or 0


def _is_number(level: str) -> bool:
    try:
        return math.isfinite(float(level))
    except ValueError:
        return False


def _signed(points: float) -> str:
    return f"{'−' if points < 0 else '+'}{_size(points)}"


def _size(points: float) -> str:
    """Two decimals, one from 10 on; more where two would say that it is zero."""
    size = abs(points)
    if size >= 9.995:
        return f"{size:.1f}"
    return f"{size:.2f}" if size >= 0.005 or size <= ZERO_TOLERANCE_POINTS else f"{size:.1g}"


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:]
