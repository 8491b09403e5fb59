"""Compare the ranking of variants before and after each is tuned by its own search, and state what the tests support."""

from collections.abc import Sequence

import numpy as np

from ablations.engine.analysis.findings import CONFIDENCE_LEVEL, MIN_SEEDS_FOR_P_VALUE, Estimate, RankChange, Ranking
from ablations.engine.analysis.inference import Array, paired_tests, zero_tolerance
from ablations.engine.analysis.number_format import ValueFormat
from ablations.engine.study.design import Design, SearchCell
from ablations.engine.study.plan import CONFIGURATION, DEFAULT, TUNED
from resnet_core.fields import counted

MAX_NAMED_VARIANTS = 3
"""Maximum number of variants that the text names. It gives the number of the others."""


def design_row(design: Design, cell: SearchCell, level: str) -> int | None:
    """Return the row of the design in which a search cell has this level of the factor `configuration`; None if it has none.

    If the search chose the default configuration, this is the row of the default: the study does not train it twice.
    """
    if chose_default(design, cell, level):
        level = DEFAULT
    wanted = {**cell.levels, CONFIGURATION: level}
    return next((row for row, each in enumerate(design.cells) if each.levels == wanted), None)


def chose_default(design: Design, cell: SearchCell, level: str) -> bool:
    """Return whether a search chose the default configuration, so that the study skips the tuned cell."""
    assert design.search
    skipped = {label for label, _ in design.skipped}
    return level in design.search.chosen.get(cell.label, {}) and f"{cell.label} {CONFIGURATION}={level}".strip() in skipped


def compare_rankings(design: Design, values: Array, formats: ValueFormat) -> Ranking | None:
    """Return the differences between variants and baselines before and after tuning, and a verdict on their ranking.

    Holm's adjustment treats two families: the differences, as in the study's table, and the changes of these differences.

    Args:
        design: A design with a search.
        values: Values of completed runs; a row per cell of the design, a column per seed, NaN without a result.
        formats: Formats of these values.

    Returns:
        None while the search runs, without variants, and with a second objective, which gives no single winner.
    """
    search = design.search
    assert search
    if not search.chosen or search.objective:
        return None
    fixed = {name: level for name, level in design.baseline.items() if name != CONFIGURATION}
    by_levels = {tuple(sorted(cell.levels.items())): cell for cell in search.cells}
    pairs, differences, changes_of_pairs = [], [], []
    for cell in search.cells:
        baseline = by_levels.get(tuple(sorted({**cell.levels, **fixed}.items())))
        if baseline and baseline is not cell:
            before, after = (_values(design, values, cell, at) - _values(design, values, baseline, at) for at in (DEFAULT, TUNED))
            pairs.append((cell.label, baseline.label))
            differences += [before, after]
            changes_of_pairs.append(after - before)
    if not pairs:
        return None
    tolerance = zero_tolerance(values)
    found, changed = paired_tests(differences, tolerance), paired_tests(changes_of_pairs, tolerance)
    changes = tuple(
        RankChange(cell=cell, baseline=baseline, before=found[2 * i], after=found[2 * i + 1], change=changed[i])
        for i, (cell, baseline) in enumerate(pairs)
    )
    verdict = ranking_verdict(changes)
    return Ranking(verdict=verdict, text=_Wording(formats).text(verdict, changes, values.shape[1]), changes=changes)


def ranking_verdict(changes: Sequence[RankChange]) -> str:
    """Return the verdict on the ranking of variants and baseline. "Significant" means an adjusted p-value below 0.05.

    - `survives`: every significant difference stays significant with the same sign, and no other becomes significant.
    - `reverses`: a significant difference is significant with the opposite sign after tuning.
    - `changes`: a difference is significant only before or only after tuning, and its change is significant.
    - `no change shown`: a difference is significant only before or only after tuning, but its change is not significant.
    - `no order shown`: no difference is significant, before or after tuning.
    - `cannot be said yet`: a difference has no test, because runs are missing or seeds are too few.
    """
    if not all(_is_tested(each.before) and _is_tested(each.after) for each in changes):
        return "cannot be said yet"
    kinds = {_change_kind(each) for each in changes}
    if "reversed" in kinds:
        return "reverses"
    uneven = [each for each in changes if _change_kind(each) in ("lost", "gained")]
    if uneven:
        return "changes" if any(each.change.significant for each in uneven) else "no change shown"
    return "survives" if "kept" in kinds else "no order shown"


def _values(design: Design, values: Array, cell: SearchCell, level: str) -> Array:
    row = design_row(design, cell, level)
    return np.full(values.shape[1], np.nan) if row is None else values[row]


def _is_tested(difference: Estimate) -> bool:
    same = difference.std == 0 and not difference.mean
    return difference.p is not None or (same and difference.n >= MIN_SEEDS_FOR_P_VALUE)


def _change_kind(change: RankChange) -> str:
    before, after = change.before, change.after
    if before.significant and after.significant:
        return "kept" if (before.mean or 0) * (after.mean or 0) > 0 else "reversed"
    return "lost" if before.significant else "gained" if after.significant else "open"


class _Wording:
    """The sentences about a ranking, in the unit and by the direction of the study's metric."""

    def __init__(self, formats: ValueFormat) -> None:
        self._formats = formats

    def text(self, verdict: str, changes: Sequence[RankChange], seeds: int) -> str:
        """Return the verdict with the changes that support it, the strongest first."""
        if verdict == "cannot be said yet":
            return f"Whether the ranking survives tuning cannot be said yet: {_missing_evidence(changes)}."
        order = ("reversed", "lost", "gained", "kept", "open")
        ranked = sorted(changes, key=lambda each: (order.index(_change_kind(each)), -abs(each.before.mean or 0)))
        clauses = [self._change_clause(each) for each in ranked[:MAX_NAMED_VARIANTS]]
        if len(ranked) > MAX_NAMED_VARIANTS:
            clauses.append(f"the table shows {counted(len(ranked) - MAX_NAMED_VARIANTS, 'more variant')}")
        lead = {
            "survives": "The ranking survives tuning",
            "changes": "The ranking changes with tuning",
            "no change shown": "Tuning is not shown to change the ranking",
            "reverses": "The ranking reverses with tuning",
            "no order shown": "There is no ranking to survive",
        }[verdict]
        fewest = min(min(each.before.n, each.after.n) for each in changes)
        left_out = f" Only seeds with every run count: at least {fewest} of {counted(seeds, 'seed')}." if fewest < seeds else ""
        return f"{lead}: {'; '.join(clauses)}. Brackets are 95 % confidence intervals.{left_out}"

    def _change_clause(self, change: RankChange) -> str:
        kind, before, after = _change_kind(change), change.before, change.after
        if kind == "open":
            if not (_may_differ(before) or _may_differ(after)):
                lead = f"no difference between {change.cell} and {change.baseline} is shown"
            else:
                direction = self._direction(before if _may_differ(before) else after)
                lead = f"{change.cell} may be {direction} than {change.baseline}, but the difference is not significant"
            return f"{lead} ({self._difference(before)} with the default configuration, {self._difference(after)} after tuning)"
        if kind in ("kept", "reversed"):
            return (
                f"{change.cell} is {self._direction(before)} than {change.baseline} by {self._size(before)} with the default "
                f"configuration, and {self._direction(after)} by {self._size(after)} after tuning{self._tuning_clause(change)}"
            )
        significant, when, other, other_when = before, "with the default configuration", after, "after tuning"
        if kind == "gained":
            significant, when, other, other_when = after, "after tuning", before, "with the default configuration"
        claim = "it may differ" if _may_differ(other) else "no difference is shown"
        by_chance = f"; the change itself, {self._difference(change.change)}, may be chance"
        return (
            f"{change.cell} is {self._direction(significant)} than {change.baseline} by {self._size(significant)} {when}, "
            f"and {other_when} {claim} ({self._difference(other)}){self._tuning_clause(change) or by_chance}"
        )

    def _tuning_clause(self, change: RankChange) -> str:
        """Return the effect of tuning on the size of a difference, if that effect is significant and the sign stays the same."""
        if not change.change.significant or _change_kind(change) == "reversed":
            return ""
        shrinks = abs(change.after.mean or 0) < abs(change.before.mean or 0)
        return f"; tuning {'narrows' if shrinks else 'widens'} the difference by {self._size(change.change)}"

    def _direction(self, difference: Estimate) -> str:
        return "better" if self._formats.metric.is_better(difference.mean or 0) else "worse"

    def _difference(self, difference: Estimate) -> str:
        """Return `+0.28 points [−0.57, +1.12]`, or the difference alone if it has no interval."""
        interval = "" if difference.low is None else f" {self._formats.signed_interval(difference)}"
        return self._formats.in_points(self._formats.signed(difference.mean)) + interval

    def _size(self, difference: Estimate) -> str:
        """Return a magnitude with its interval, whatever its sign: `2.10 points [1.40, 2.80]`."""
        mean, low, high = difference.mean or 0, difference.low or 0, difference.high or 0
        if mean < 0:
            mean, low, high = -mean, -high, -low
        formats = self._formats
        return f"{formats.size(mean)} [{formats.number(low)}, {formats.number(high)}]"


def _may_differ(difference: Estimate) -> bool:
    """Return whether a difference would be significant if it were the only one tested."""
    return difference.p is not None and difference.p < 1 - CONFIDENCE_LEVEL


def _missing_evidence(changes: Sequence[RankChange]) -> str:
    without = [each for each in changes if min(each.before.n, each.after.n) < MIN_SEEDS_FOR_P_VALUE]
    if not without:
        return "a difference is the same in every seed, so its variance is zero and no t test applies"
    fewest = min(min(each.before.n, each.after.n) for each in without)
    named = ", ".join(each.cell for each in without[:MAX_NAMED_VARIANTS]) + ", …" * (len(without) > MAX_NAMED_VARIANTS)
    return f"a test needs {MIN_SEEDS_FOR_P_VALUE} seeds with every run, and only {fewest} of them exist so far ({named})"
