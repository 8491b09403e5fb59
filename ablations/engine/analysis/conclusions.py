"""Whether a factor matters, in sentences that claim no more than the findings do."""

import math
from collections import Counter
from collections.abc import Sequence, Set

from ablations.engine.analysis.contrasts import SimpleEffect
from ablations.engine.analysis.findings import LEVEL, SEEDS_FOR_P, Answer, CellFinding, Effect, Estimate, Interaction
from ablations.engine.analysis.inference import SAME

NAMED = 3
"""Levels and cells that a sentence names; the others are counted."""
APART = 2
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
    depends = [each for each in interactions if factor in each.factors and each.difference.certain]
    dependent = {level for each in depends for name, level in zip(each.factors, each.levels, strict=True) if name == factor}
    somewhere = {each.level for each in simple if each.difference.certain}
    kinds = {each.level: _kind(each.difference) for each in own}
    averaged, apart = _averaged(own, effects), _apart(simple, dependent, {level for level in kinds if kinds[level] == "certain"})
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
        verdict, lead, told = "no effect shown", f"{factor}: no effect shown", [_bounds(own, effects)]
    first, *rest = [text for text in (*told, _left_out(own, cells)) if text]
    return Answer(factor=factor, verdict=verdict, text=" ".join([f"{lead}: {first}.", *(f"{_sentence(text)}." for text in rest)]))


def _averaged(own: Sequence[Effect], effects: Sequence[Effect]) -> str:
    """What levels do on average over the other factors: the strongest, and how many others do what."""
    if not own:
        return "at no combination of the other factors do two of its levels exist"
    tests = _tests(effects)
    first, others = _strongest(own)
    claims = [f"{_change(each)} {_claim(each.difference, tests)}" for each in first]
    if others:
        counts = Counter(_kind(each.difference) for each in others)
        words = {"certain": "change error", "possible": "may change it", "none": "show no effect", "unknown": "cannot be told"}
        does = ", ".join(f"{counts[kind]} {text}" for kind, text in words.items() if kind in counts)
        claims.append(f"of the other {len(others)} levels {does}")
    return _over(own, effects) + "; ".join(claims)


def _bounds(own: Sequence[Effect], effects: Sequence[Effect]) -> str:
    """How large an effect may be that is not shown."""
    first, others = _strongest(own)
    claims = [f"{_change(each)}: {_value(each.difference)}" for each in first]
    if others:
        claims.append(f"less for the other {len(others)} levels")
    if bounds := [abs(bound) for each in own for bound in (each.difference.low, each.difference.high) if bound is not None]:
        claims.append(f"a change of more than {_size(max(bounds))} points either way is unlikely")
    return _over(own, effects) + "; ".join(claims)


def _apart(simple: Sequence[SimpleEffect], dependent: Set[str], certain: Set[str]) -> str:
    """What levels do at the combinations of the others where they do most and least, unless an average says as much."""
    told = []
    for level in dict.fromkeys(each.level for each in simple if each.at):
        there = [each for each in simple if each.level == level and each.difference.n]
        hidden = level not in certain and any(each.difference.certain for each in there)
        if level in dependent or hidden or _disjoint(there):
            told.append(sorted(there, key=_rank))
    told.sort(key=lambda there: _rank(there[0]))
    return "; ".join(_extremes(there, _tests(simple)) for there in told[:APART])


def _extremes(there: Sequence[SimpleEffect], tests: int) -> str:
    """A level's strongest simple effect, the first, and the one that is farthest from it."""
    first, *others = there
    claims = [f"at {first.at} {_change(first)} {_claim(first.difference, tests)}"]
    if others:
        farthest = max(others, key=lambda each: abs(_mean(each) - _mean(first)))
        claims.append(f"at {farthest.at} it {_claim(farthest.difference, tests)}")
    if len(others) > 1:
        claims.append(f"{len(others) - 1} more not named")
    return ", ".join(claims)


def _left_out(own: Sequence[Effect], cells: Sequence[CellFinding]) -> str:
    """Which runs the numbers lack."""
    if all(each.difference.n == max(cell.planned for cell in cells) for each in own):
        return ""
    lacking = [cell for cell in cells if cell.problems]
    named = [
        f"{cell.label} ({', '.join(f'{n} of {cell.planned} {word}' for word, n in cell.problems.items())})" for cell in lacking
    ]
    if len(named) > NAMED:
        named = [*named[:NAMED], f"{len(named) - NAMED} more cells"]
    return f"seeds that lack a run are left out: {', '.join(named)}"


def _kind(difference: Estimate) -> str:
    if difference.certain:
        return "certain"
    if difference.n >= SEEDS_FOR_P and _identical(difference):
        return "none"
    if difference.p is None:
        return "unknown"
    return "possible" if difference.p < 1 - LEVEL else "none"


def _claim(difference: Estimate, tests: int) -> str:
    """What one of several tested differences says, as a predicate."""
    kind, value, mean = _kind(difference), _value(difference), difference.mean or 0
    if kind == "certain":
        return f"{'raises' if mean > 0 else 'lowers'} error by {_size(mean)} points {_interval(difference)}"
    if kind == "possible":
        chance = f"with {tests} comparisons this can be chance (corrected p {difference.corrected:.2g})"
        return f"may {'raise' if mean > 0 else 'lower'} error: {value}, but {chance}"
    if kind == "none":
        return f"shows no effect: {value}"
    if not difference.n:
        return "cannot be told: no seed has all runs"
    return f"shows {value}, {'too alike' if difference.std == 0 else 'too few'} for a test"


def _value(difference: Estimate) -> str:
    seeds = f"{difference.n} seed{'s' * (difference.n != 1)}"
    if _identical(difference):
        return f"no difference in any of {seeds}"
    points = f"{_signed(difference.mean or 0)} points"
    if difference.std == 0:
        return f"{points} in each of {seeds}"
    if difference.low is None:
        return f"{points} in {seeds}"
    return f"{points} {_interval(difference)}" + f" in {seeds}" * (difference.p is None)


def _interval(difference: Estimate) -> str:
    return f"[{_signed(difference.low or 0)}, {_signed(difference.high or 0)}]"


def _change(contrast: Contrast) -> str:
    if _number(contrast.level) and _number(contrast.against):
        return f"going from {contrast.against} to {contrast.level}"
    return f"{contrast.level} instead of {contrast.against}"


def _over(own: Sequence[Effect], effects: Sequence[Effect]) -> str:
    others = dict.fromkeys(each.factor for each in effects if each.factor != own[0].factor)
    return f"averaged over {' and '.join(others)}, " if any(each.combinations > 1 for each in own) else ""


def _strongest(own: Sequence[Effect]) -> tuple[Sequence[Effect], Sequence[Effect]]:
    """The levels that a sentence names, and the others."""
    order = sorted(own, key=_rank)
    return order[:NAMED], order[NAMED:]


def _disjoint(there: Sequence[SimpleEffect]) -> bool:
    """Whether two intervals have nothing in common."""
    lows = [each.difference.low for each in there if each.difference.low is not None]
    highs = [each.difference.high for each in there if each.difference.high is not None]
    return bool(lows) and max(lows) > min(highs)


def _tests(family: Sequence[Contrast]) -> int:
    return sum(each.difference.p is not None for each in family)


def _identical(difference: Estimate) -> bool:
    return difference.std == 0 and abs(difference.mean or 0) <= SAME


def _rank(contrast: Contrast) -> tuple[bool, float]:
    """The strongest first, the certain ones before others."""
    return not contrast.difference.certain, -abs(_mean(contrast))


def _mean(contrast: Contrast) -> float:
    return contrast.difference.mean or 0


def _number(level: str) -> bool:
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
    return f"{size:.2f}" if size >= 0.005 or size <= SAME else f"{size:.1g}"


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:]
