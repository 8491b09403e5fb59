"""Whether variants keep their order once each is tuned by a search of its own, in words that claim no more than intervals do."""

from collections.abc import Sequence

import numpy as np

from ablations.engine.analysis.findings import LEVEL, SEEDS_FOR_P, Estimate, RankChange, Ranking
from ablations.engine.analysis.inference import SAME, Array, compared
from ablations.engine.analysis.number_format import number, with_interval
from ablations.engine.study.design import Design, SearchCell
from ablations.engine.study.plan import CONFIGURATION, DEFAULT, TUNED

NAMED = 3
"""Variants that the text names; others are counted."""


def row_of(design: Design, cell: SearchCell, level: str) -> int | None:
    """The row of the design's cell in which a search's cell has this level of `configuration`; None where there is none.

    What was chosen is the default's row where it is the default: that is not trained twice.
    """
    if chose_default(design, cell, level):
        level = DEFAULT
    wanted = {**cell.levels, CONFIGURATION: level}
    return next((row for row, each in enumerate(design.cells) if each.levels == wanted), None)


def chose_default(design: Design, cell: SearchCell, level: str) -> bool:
    """Whether a search found nothing better than the default: the study skips what it chose."""
    assert design.search
    skipped = {label for label, _ in design.skipped}
    return level in design.search.chosen.get(cell.label, {}) and f"{cell.label} {CONFIGURATION}={level}".strip() in skipped


def ranking(design: Design, errors: Array) -> Ranking | None:
    """Every variant against its baseline, with the default configuration and each tuned, and how much that changed.

    Holm's correction is over the differences, as in the study's table, and over the changes.

    Args:
        design: of a study with a search.
        errors: of completed runs, a row for each cell of the design, a column for each seed; NaN where there is none.

    Returns:
        None while it searches, without variants, and where the search has no one winner.
    """
    search = design.search
    assert search
    if not search.chosen or search.objective:
        return None
    fixed = {name: level for name, level in design.baseline.items() if name != CONFIGURATION}
    by_levels = {tuple(sorted(cell.levels.items())): cell for cell in search.cells}
    pairs, rows, moves = [], [], []
    for cell in search.cells:
        baseline = by_levels.get(tuple(sorted({**cell.levels, **fixed}.items())))
        if baseline and baseline is not cell:
            before, after = (_errors(design, errors, cell, at) - _errors(design, errors, baseline, at) for at in (DEFAULT, TUNED))
            pairs.append((cell.label, baseline.label))
            rows += [before, after]
            moves.append(after - before)
    if not pairs:
        return None
    found, moved = compared(rows), compared(moves)  # the first family is that of the study's table
    changes = tuple(
        RankChange(cell=cell, baseline=baseline, before=found[2 * i], after=found[2 * i + 1], change=moved[i])
        for i, (cell, baseline) in enumerate(pairs)
    )
    verdict = verdict_of(changes)
    return Ranking(verdict=verdict, text=_text(verdict, changes, errors.shape[1]), changes=changes)


def verdict_of(changes: Sequence[RankChange]) -> str:
    """What became of the order that variants and baseline have with the default configuration.

    `survives`: every certain difference to the baseline is certain after tuning with the same sign, and no other has become so.
    `reverses`: a certain difference is certain with the other sign after. `changes`: one is certain only before or only after, and
    so is its change. `no change shown`: one is certain only before or only after, but its change can be chance. `no order shown`:
    none is certain, before or after. `cannot be said yet`: a difference has no test, because runs are missing or seeds are too few.
    """
    if not all(_tested(each.before) and _tested(each.after) for each in changes):
        return "cannot be said yet"
    kinds = {_kind(each) for each in changes}
    if "reversed" in kinds:
        return "reverses"
    uneven = [each for each in changes if _kind(each) in ("lost", "gained")]
    if uneven:
        return "changes" if any(each.change.certain for each in uneven) else "no change shown"
    return "survives" if "kept" in kinds else "no order shown"


def _errors(design: Design, errors: Array, cell: SearchCell, level: str) -> Array:
    row = row_of(design, cell, level)
    return np.full(errors.shape[1], np.nan) if row is None else errors[row]


def _tested(difference: Estimate) -> bool:
    same = difference.std == 0 and abs(difference.mean or 0) <= SAME
    return difference.p is not None or (same and difference.n >= SEEDS_FOR_P)


def _kind(change: RankChange) -> str:
    before, after = change.before, change.after
    if before.certain and after.certain:
        return "kept" if (before.mean or 0) * (after.mean or 0) > 0 else "reversed"
    return "lost" if before.certain else "gained" if after.certain else "open"


def _text(verdict: str, changes: Sequence[RankChange], seeds: int) -> str:
    if verdict == "cannot be said yet":
        return f"Whether the ranking survives tuning cannot be said yet: {_lacking(changes)}."
    order = ("reversed", "lost", "gained", "kept", "open")
    told = sorted(changes, key=lambda each: (order.index(_kind(each)), -abs(each.before.mean or 0)))
    claims = [_claim(each) for each in told[:NAMED]]
    if len(told) > NAMED:
        claims.append(f"{len(told) - NAMED} more are in the table")
    lead = {
        "survives": "The ranking survives tuning",
        "changes": "The ranking changes with tuning",
        "no change shown": "Tuning is not shown to change the ranking",
        "reverses": "The ranking reverses with tuning",
        "no order shown": "There is no ranking to survive",
    }[verdict]
    fewest = min(min(each.before.n, each.after.n) for each in changes)
    left_out = f" Seeds that lack a run are left out: {fewest} of {seeds} are whole." if fewest < seeds else ""
    return f"{lead}: {'; '.join(claims)}.{left_out}"


def _claim(change: RankChange) -> str:
    kind, before, after = _kind(change), change.before, change.after
    if kind == "open" and (_possible(before) or _possible(after)):
        return (
            f"{change.cell} may be {_worse(before if _possible(before) else after)} than {change.baseline}, but it is not certain: "
            f"{with_interval(before)} points with the default configuration, {with_interval(after)} tuned"
        )
    if kind == "open":
        return (
            f"no difference between {change.cell} and {change.baseline} is shown with the default configuration "
            f"({with_interval(before)}) or tuned ({with_interval(after)})"
        )
    if kind == "kept":
        return (
            f"{change.cell} is {_worse(before)} than {change.baseline} by {_by(before)} points with the default configuration "
            f"and by {_by(after)} tuned{_moved(change)}"
        )
    if kind == "reversed":
        return (
            f"{change.cell} is {_worse(before)} than {change.baseline} by {_by(before)} points with the default configuration "
            f"and {_worse(after)} by {_by(after)} tuned"
        )
    certain, where, other, there = before, "with the default configuration", after, "tuned"
    if kind == "gained":
        certain, where, other, there = after, "tuned", before, "with the default configuration"
    not_so = "it may differ" if _possible(other) else "no difference is shown"
    return (
        f"{change.cell} is {_worse(certain)} than {change.baseline} by {_by(certain)} points {where}, and {there} {not_so} "
        f"({with_interval(other)}){_moved(change) or f'; the change itself, {with_interval(change.change)}, can be chance'}"
    )


def _possible(difference: Estimate) -> bool:
    """Whether a difference would be certain were it the only one tested."""
    return difference.p is not None and difference.p < 1 - LEVEL


def _moved(change: RankChange) -> str:
    """What tuning certainly did to a difference."""
    if not change.change.certain:
        return ""
    shrinks = abs(change.after.mean or 0) < abs(change.before.mean or 0)
    return f"; tuning {'narrows' if shrinks else 'widens'} the difference by {_by(change.change)}"


def _worse(difference: Estimate) -> str:
    return "worse" if (difference.mean or 0) > 0 else "better"


def _by(difference: Estimate) -> str:
    """A size and its interval: `2.10 [1.40, 2.80]`, whichever sign it has."""
    mean, low, high = difference.mean or 0, difference.low or 0, difference.high or 0
    if mean < 0:
        mean, low, high = -mean, -high, -low
    return f"{number(mean)} [{number(low)}, {number(high)}]"


def _lacking(changes: Sequence[RankChange]) -> str:
    without = [each for each in changes if min(each.before.n, each.after.n) < SEEDS_FOR_P]
    if not without:
        return "differences are the same in every seed, which no test can judge"
    fewest = min(min(each.before.n, each.after.n) for each in without)
    named = ", ".join(each.cell for each in without[:NAMED]) + ", …" * (len(without) > NAMED)
    return f"it takes {SEEDS_FOR_P} seeds with every run, and there are {fewest} ({named})"
