"""Verdict on whether the ranking of variants survives tuning, and the sentences that support it."""

from collections.abc import Sequence

from ablations.engine.analysis.number_format import ValueFormat
from ablations.engine.analysis.statistics.estimate import CONFIDENCE_LEVEL, MIN_SEEDS_FOR_P_VALUE, Estimate
from ablations.engine.analysis.tuning.findings import RankChange
from resnet_core.fields import counted

MAX_NAMED_PAIRS = 3
"""Maximum number of pairs that the text describes. It gives the number of the others."""


def ranking_verdict(changes: Sequence[RankChange]) -> str:
    """Return the verdict on the ranking of variants. An order is certain if the adjusted p-value of the difference is below 0.05.

    - `reverses`: the certain order of a pair is certainly the opposite after tuning.
    - `cannot be said yet`: a difference has no test, because runs are missing or seeds are too few.
    - `changes`: the order of a pair is certain only before or only after tuning, and the change of its difference is significant.
    - `survives`: the order of at least one pair is certain before tuning, and each such order is certain after it.
    - `no change shown`: the order of a pair is certain only before or only after tuning, but its change is not significant.
    - `no order shown`: no order is certain, before or after tuning.
    """
    kinds = [_change_kind(each) for each in changes]
    if "reversed" in kinds:
        return "reverses"
    if not all(map(_is_tested, changes)):
        return "cannot be said yet"
    uneven = [each for each, kind in zip(changes, kinds, strict=True) if kind in ("lost", "gained")]
    if any(each.change.significant for each in uneven):
        return "changes"
    if "kept" in kinds and "lost" not in kinds:
        return "survives"
    return "no change shown" if uneven else "no order shown"


def ranking_text(
    verdict: str, changes: Sequence[RankChange], best: Sequence[tuple[str, str]], seeds: int, formats: ValueFormat
) -> str:
    """Return the verdict, what was tested, and the pairs that support the verdict: those that turn first, then the strongest.

    Args:
        verdict: Result of `ranking_verdict`.
        changes: All pairs.
        best: The variants with the best mean before and after tuning, for each group of variants that are ranked together.
        seeds: Number of seeds of the study.
        formats: Formats of the values.
    """
    if verdict == "cannot be said yet":
        return f"Whether the ranking survives tuning cannot be said yet: {_missing_evidence(changes)}."
    tested = [each for each in changes if _is_tested(each)]
    order = ("reversed", "lost", "gained", "kept", "open")
    ranked = sorted(tested, key=lambda each: (order.index(_change_kind(each)), -abs(each.before.mean or 0)))
    wording = _Wording(formats)
    clauses = [wording.change_clause(each) for each in ranked[:MAX_NAMED_PAIRS]]
    if len(ranked) > MAX_NAMED_PAIRS:
        clauses.append(f"the table shows {counted(len(ranked) - MAX_NAMED_PAIRS, 'more pair')}")
    lead = {
        "survives": "The ranking survives tuning",
        "changes": "The ranking changes with tuning",
        "no change shown": "Tuning is not shown to change the ranking",
        "reverses": "The ranking reverses with tuning",
        "no order shown": "No order of the variants is shown",
    }[verdict]
    if turned := [each for each in ranked if _change_kind(each) == "reversed"]:
        lead += f": {_places_clause(turned)}"
    if len(tested) > 1:
        lead += f". {_tested_clause(tested)}"
    sentences = [
        f"{lead}{'; ' if turned and len(tested) == 1 else ': '}{'; '.join(clauses)}.",
        *_best_sentences(tested, best),
        "Brackets are 95 % confidence intervals.",
    ]
    if len(tested) < len(changes):
        untested = f"{len(changes) - len(tested)} of {counted(len(changes), 'pair')} cannot be tested yet"
        sentences.append(f"{untested}: {_missing_evidence(changes)}.")
    fewest = min(min(each.before.n, each.after.n) for each in tested)
    if fewest < seeds:
        sentences.append(f"Only seeds with every run count: at least {fewest} of {counted(seeds, 'seed')}.")
    return " ".join(sentences)


def _is_tested(change: RankChange) -> bool:
    """Return whether both differences have a test. Values that are equal in every seed need none: their order is not shown."""
    return all(
        each.p is not None or (each.std == 0 and not each.mean and each.n >= MIN_SEEDS_FOR_P_VALUE)
        for each in (change.before, change.after)
    )


def _change_kind(change: RankChange) -> str:
    before, after = change.before, change.after
    if before.significant and after.significant:
        return "kept" if (before.mean or 0) * (after.mean or 0) > 0 else "reversed"
    return "lost" if before.significant else "gained" if after.significant else "open"


class _Wording:
    """The sentences about a ranking, in the unit and by the direction of the study's metric."""

    def __init__(self, formats: ValueFormat) -> None:
        self._formats = formats

    def change_clause(self, change: RankChange) -> str:
        kind, before, after = _change_kind(change), change.before, change.after
        if kind == "open":
            if not (_may_differ(before) or _may_differ(after)):
                lead = f"no difference between {change.cell} and {change.other} is shown"
            else:
                direction = self._direction(before if _may_differ(before) else after)
                lead = f"{change.cell} may be {direction} than {change.other}, but the difference is not significant"
            return f"{lead} ({self._difference(before)} with the default configuration, {self._difference(after)} after tuning)"
        if kind in ("kept", "reversed"):
            return (
                f"{change.cell} is {self._direction(before)} than {change.other} by {self._size(before)} with the default "
                f"configuration, and {self._direction(after)} by {self._size(after)} after tuning{self._tuning_clause(change)}"
            )
        significant, when, other, other_when = before, "with the default configuration", after, "after tuning"
        if kind == "gained":
            significant, when, other, other_when = after, "after tuning", before, "with the default configuration"
        claim = "it may differ" if _may_differ(other) else "no difference is shown"
        by_chance = f"; the change itself, {self._difference(change.change)}, may be chance"
        return (
            f"{change.cell} is {self._direction(significant)} than {change.other} by {self._size(significant)} {when}, "
            f"and {other_when} {claim} ({self._difference(other)}){self._tuning_clause(change) or by_chance}"
        )

    def _tuning_clause(self, change: RankChange) -> str:
        """Return the effect of tuning on the size of a difference, if that effect is significant and the sign stays the same."""
        if not change.change.significant or (change.before.mean or 0) * (change.after.mean or 0) < 0:
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


def _tested_clause(changes: Sequence[RankChange]) -> str:
    """Return how many pairs are certainly ordered before and after tuning, and whether each order is kept."""
    kinds = [_change_kind(each) for each in changes]
    before, after = (sum(kind in of for kind in kinds) for of in (("kept", "reversed", "lost"), ("kept", "reversed", "gained")))
    if not before + after:
        return f"Of {len(changes)} pairs of variants, none is certainly ordered, before or after tuning"
    clause = (
        f"Of {len(changes)} pairs of variants, {before or 'none'} {'is' if before < 2 else 'are'} certainly ordered with the "
        f"default configuration and {after or 'none'} after tuning"
    )
    if before and kinds.count("kept") == before:
        clause += (
            ", and each of these orders is kept" if after == before else ", and each order of the default configuration is kept"
        )
    return clause


def _places_clause(turned: Sequence[RankChange]) -> str:
    named = [f"{each.other} and {each.cell}" for each in turned[:MAX_NAMED_PAIRS]]
    if len(turned) > MAX_NAMED_PAIRS:
        named.append(counted(len(turned) - MAX_NAMED_PAIRS, "more pair"))
    return f"{', '.join(named)} change places"


def _best_sentences(changes: Sequence[RankChange], best: Sequence[tuple[str, str]]) -> list[str]:
    """Return sentences about groups of variants whose best mean is that of another variant after tuning."""
    turned = {frozenset((each.cell, each.other)) for each in changes if _change_kind(each) == "reversed"}
    sentences = []
    for before, after in best:
        if {before, after} in turned:
            sentences.append(f"The best variant changes from {before} to {after}.")
        elif before != after:
            means = f"the best mean is that of {before} with the default configuration and that of {after} after tuning"
            sentences.append(f"Which variant is best is not shown: {means}.")
    return sentences


def _may_differ(difference: Estimate) -> bool:
    """Return whether a difference would be significant if it were the only one tested."""
    return difference.p is not None and difference.p < 1 - CONFIDENCE_LEVEL


def _missing_evidence(changes: Sequence[RankChange]) -> str:
    without = [each for each in changes if min(each.before.n, each.after.n) < MIN_SEEDS_FOR_P_VALUE]
    if not without:
        return "a difference is the same in every seed, so its variance is zero and no t test applies"
    fewest = min(min(each.before.n, each.after.n) for each in without)
    named = list(dict.fromkeys(each.cell for each in without))
    listed = ", ".join(named[:MAX_NAMED_PAIRS]) + ", …" * (len(named) > MAX_NAMED_PAIRS)
    return f"a test needs {MIN_SEEDS_FOR_P_VALUE} seeds with every run, and only {fewest} of them exist so far ({listed})"
