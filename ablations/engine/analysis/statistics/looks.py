"""Repeated looks at a study: which part of the significance level each complete answer may spend.

Whoever adds seeds until an answer is certain finds a false one more often than in 5 % of studies. Each look therefore has a
share of the significance level, and p-values and intervals are those of that share (alpha spending: Lan and DeMets 1983). Shares
add up over looks (Bonferroni's bound), so that the bound holds for any test, however its statistics correlate over looks.
"""

import math
from dataclasses import dataclass
from typing import Self

from ablations.engine.analysis.statistics.estimate import MIN_SEEDS_FOR_P_VALUE
from ablations.engine.study.design import Design
from resnet_core.fields import counted

RESERVE = 0.1
"""Share of the significance level for all looks at more seeds than planned, in addition to the planned looks' share of 1."""
MAX_LISTED_LOOKS = 8
"""Longest list of looks in a sentence."""
ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth")


@dataclass(frozen=True, kw_only=True)
class Looks:
    """The looks at a study up to the present one. A look is a complete answer that was shown with some number of seeds."""

    planned: int
    """Number of seeds that the study plans, at least 1."""
    seen: tuple[int, ...]
    """Numbers of seeds of these looks, ascending and distinct. The last is that of the present look."""

    @classmethod
    def at(cls, seeds: int, earlier: tuple[int, ...], planned: int) -> Self:
        """Return the looks up to one at a number of seeds.

        Args:
            seeds: number of seeds of the present look.
            earlier: numbers of seeds of other looks. One at more seeds, of which the present answer is a part, is left out.
            planned: number of planned seeds; 0 if it is not known, which is then that of the first look.
        """
        seen = (*sorted(each for each in {*earlier} if each < seeds), seeds)
        return cls(planned=planned or seen[0], seen=seen)

    @property
    def seeds(self) -> int:
        """Number of seeds of the present look."""
        return self.seen[-1]

    @property
    def share(self) -> float:
        """Fraction of the significance level that the present look may spend, above 0 and at most 1.

        With t = seeds ÷ planned seeds, looks up to t have spent min(1, t)². A look after the last planned one has a share of the
        reserve: the j-th has `RESERVE` · 6 ÷ (π² j²), which adds up to the reserve over any number of looks. A look at fewer than
        three seeds has no test, so it spends nothing and its intervals are those of one look.
        """
        if self.seeds < MIN_SEEDS_FOR_P_VALUE:
            return 1.0
        before = [seeds for seeds in self.seen[:-1] if seeds >= MIN_SEEDS_FOR_P_VALUE]
        left = self._spent(self.seeds) - (self._spent(before[-1]) if before else 0)
        if left > 0:
            return left
        extensions = 1 + sum(seeds > self._last_planned for seeds in before)
        return RESERVE * 6 / (math.pi * extensions) ** 2

    @property
    def p_factor(self) -> float:
        """Factor by which the present look multiplies p-values; 1 for one look at the planned seeds. A p-value is at most 1."""
        return 1 / self.share

    @property
    def is_extension(self) -> bool:
        """True if an earlier look has spent the planned looks' whole share."""
        return self.seeds > self._last_planned

    def sentence(self) -> str:
        """Return a sentence about the looks and what they cost; empty for one look at the planned seeds."""
        if self.share == 1:
            return ""
        cost = f"({self._factor} times the p of a single look)"
        present = f"p and intervals are those of {self._name} {cost}"
        if not self.is_extension:
            return f"Read {self._places} of {self.planned} planned; {present}."
        verb = "was" if self.planned == 1 else "were"
        return (
            f"Read {self._places}, although {self.planned} {verb} planned: {present}, since the earlier looks have spent the "
            f"significance level. A study that may need {self.seeds} seeds plans them before its first answer: "
            f"Study(seeds={self.seeds})."
        )

    def forecast(self) -> str:
        """Return a clause about the present look before it is taken; empty if it is the only one."""
        if self.share == 1:
            return ""
        *before, seeds = self.seen
        earlier = Looks(planned=self.planned, seen=tuple(before))._places if before else ""
        why = f"The answer has been read {earlier}" if before else f"The study plans {self.planned} seeds"
        return f"{why}: p-values at {counted(seeds, 'seed')} are multiplied by {self._factor}"

    @property
    def _factor(self) -> str:
        return f"{self.p_factor:.1f}" if self.p_factor < 10 else f"{self.p_factor:,.0f}"

    @property
    def _last_planned(self) -> float:
        """Number of seeds of the look that spent the planned looks' whole share; infinite if there is none."""
        return next((seeds for seeds in self.seen if seeds >= max(self.planned, MIN_SEEDS_FOR_P_VALUE)), math.inf)

    def _spent(self, seeds: int) -> float:
        return min(1.0, seeds / self.planned) ** 2

    @property
    def _name(self) -> str:
        number = len(self.seen)
        return f"the {ORDINALS[number - 1]} look" if number <= len(ORDINALS) else f"look {number}"

    @property
    def _places(self) -> str:
        """The numbers of seeds, such as `at 3, 5 and 8 seeds`."""
        *first, last = self.seen
        if len(self.seen) > MAX_LISTED_LOOKS:
            return f"{len(self.seen)} times, at {first[0]} to {last} seeds"
        return f"at {', '.join(map(str, first))} and {last} seeds" if first else f"at {counted(last, 'seed')}"


def looks_at(design: Design, earlier: tuple[int, ...]) -> Looks:
    """Return the looks at a study when its answer is shown, given the numbers of seeds of earlier ones (`Evidence.looks`).

    The declared looks of an adaptive study count, whether or not an answer was shown.
    """
    return Looks.at(design.seeds, (*earlier, *design.seed_looks), _planned(design))


def declared_shares(design: Design, earlier: tuple[int, ...]) -> dict[int, float]:
    """Return the share of each declared look of an adaptive study, by its number of seeds; empty for a fixed number of seeds.

    A recorded look that was not declared has its share too, which the next declared look lacks. A declared look with fewer seeds
    than a recorded one is none, unless it was recorded itself: its results were seen before it was declared.
    """
    seen = max((*earlier, 0))
    taken = [seeds for seeds in design.seed_looks if seeds in earlier or seeds > seen] or list(design.seed_looks[-1:])
    every = (*earlier, *taken)
    return {seeds: Looks.at(seeds, every, _planned(design)).share for seeds in taken}


def undeclared_sentence(design: Design, earlier: tuple[int, ...]) -> str:
    """Return a sentence about the looks and what they cost; empty for one look at the planned seeds, or if all are declared."""
    looks = looks_at(design, earlier)
    if design.seed_looks and {*looks.seen} <= {*design.seed_looks} and looks.planned == design.seed_looks[-1]:
        return ""
    return looks.sentence()


def _planned(design: Design) -> int:
    """Return the number of planned seeds; 0 if it is not known."""
    return design.planned_seeds or (design.seed_looks[-1] if design.seed_looks else 0)
