"""The path of an adaptive study: at each look, which comparisons are decided and which cells get more seeds.

The path is a function of the design and the results alone, so that a resubmission follows the same path. It replays the looks in
their order. All cells have the seeds of the first look. Then each primary comparison, an average effect of a level, is decided if

- it is an `effect`: its difference or its failures to train are rejected in the family of all tests at the looks so far,
- it is `within margin`: shown to be within the study's margin, with Holm's method over all effects, or
- it is `hopeless`: the probability of either at a later look, given its own results, is below `HOPELESS_BELOW`.

Cells of undecided comparisons get the seeds of the next look; the others have all of theirs. The sequential p-values hold for any
rule that ends the seeds of a cell.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from ablations.engine.analysis.statistics import contrasts
from ablations.engine.analysis.statistics.contrasts import Contrast, Terms
from ablations.engine.analysis.statistics.estimate import MIN_SEEDS_FOR_P_VALUE
from ablations.engine.analysis.statistics.failures import FAR_FRACTION, NEAR_CHANCE_FRACTION, find_failures
from ablations.engine.analysis.statistics.family import Family, rows_of
from ablations.engine.analysis.statistics.gatekeeping import INTERACTION_PART
from ablations.engine.analysis.statistics.inference import SIGNIFICANCE_LEVEL, Array, Scale, zero_tolerance
from ablations.engine.analysis.statistics.prospects import failures_would_be_significant, probability_of_result
from ablations.engine.analysis.statistics.sequential import LookScale, SequentialTest, estimate_over_looks
from ablations.engine.study.design import Design

HOPELESS_BELOW = 0.2
"""Probability of a result below which a comparison gets no more seeds; docs/evidence.md has what it saves and costs."""
Outcomes = npt.NDArray[np.object_]
EFFECT, WITHIN_MARGIN, HOPELESS = "effect", "within margin", "hopeless"


@dataclass(frozen=True, kw_only=True)
class DecidedLook:
    """A look at which all results were there."""

    seeds: int
    cells: int
    """Number of cells that were trained with so many seeds."""
    decided: tuple[tuple[Contrast, str], ...]
    """Comparisons that this look decided, and how."""
    open: tuple[Contrast, ...]
    """Comparisons that are undecided after it."""


@dataclass(frozen=True, kw_only=True)
class Path:
    """The path as far as the results tell."""

    looks: tuple[DecidedLook, ...]
    seeds: tuple[int, ...]
    """Number of seeds of each cell that the path needs, whatever the missing results will be."""
    most_seeds: tuple[int, ...]
    """Number of seeds of each cell that the path may need."""
    distances: tuple[float, ...]
    """Distance of each cell's closest open comparison: that of its probability of a result from 1/2; infinite without results
    of a look."""
    finished: bool
    """True if no comparison is open, or the seeds are used up."""


def follow_looks(
    design: Design,
    values: Array,
    outcomes: Sequence[Sequence[str]],
    shares: Mapping[int, float],
    known: dict[int, Mapping[Terms, str]] | None = None,
) -> Path:
    """Return the path of an adaptive study.

    Args:
        design: Design with all seeds that its cells may get.
        values: Values of completed runs; a row per cell, a column per seed, NaN without a value.
        outcomes: Outcomes in the same shape; an empty text for a run without a result as yet.
        shares: Share of the significance level of each look, ascending by its number of seeds.
        known: Decisions of earlier calls with fewer results of the same study, by the look's number of seeds; this call adds its
            own. They save time, since a look whose results are all there decides the same for ever.
    """
    decided = {} if known is None else known
    return _Replay(design, values, np.array(outcomes, object).reshape(values.shape), shares, decided).run()


class _Replay:
    """A replay of the looks of a study. Parameters are those of `follow_looks`."""

    def __init__(
        self,
        design: Design,
        values: Array,
        outcomes: Outcomes,
        shares: Mapping[int, float],
        known: dict[int, Mapping[Terms, str]],
    ) -> None:
        self.design, self.values, self.outcomes, self.shares, self.known = design, values, outcomes, shares, known
        self.scale = Scale(tolerance=zero_tolerance(values), step=design.step)
        self.looks = [LookScale(seeds=seeds, scale=replace(self.scale, share=share)) for seeds, share in shares.items()]
        self.comparisons = list(contrasts.average_effects(design))
        crossed = any(True for _ in contrasts.interactions(design))
        self.part = (1 - INTERACTION_PART if crossed else 1.0) / max(1, len(self.comparisons))
        """Part of the significance level of each comparison before any is rejected."""

    def run(self) -> Path:
        seeds = dict.fromkeys(range(len(self.design.cells)), self.looks[0].seeds)
        still_open, looks = self.comparisons, list[DecidedLook]()
        for position, look in enumerate(self.looks):
            if not self._all_ended([row for row, number in seeds.items() if number == look.seeds], look.seeds):
                for each, number in self._certain_steps(still_open, position):
                    seeds |= {row: max(number, seeds[row]) for row in rows_of(each.terms)}
                return self._path(looks, seeds, still_open, finished=False)
            if look.seeds not in self.known:
                self.known[look.seeds] = self._decisions(still_open, position, seeds)
            decisions = self.known[look.seeds]
            cells = sum(number == look.seeds for number in seeds.values())
            decided = tuple((each, decisions[each.terms]) for each in still_open if each.terms in decisions)
            still_open = [each for each in still_open if each.terms not in decisions]
            looks.append(DecidedLook(seeds=look.seeds, cells=cells, decided=decided, open=tuple(still_open)))
            if not still_open:
                break
            for following in self.looks[position + 1 : position + 2]:
                seeds |= {row: following.seeds for each in still_open for row in rows_of(each.terms)}
        return self._path(looks, seeds, still_open, finished=True)

    def _all_ended(self, rows: Sequence[int], seeds: int) -> bool:
        return bool((self.outcomes[rows, :seeds] != "").all())

    def _decisions(self, still_open: Sequence[Contrast], position: int, seeds: Mapping[int, int]) -> dict[Terms, str]:
        """Return how a look decides comparisons. One with fewer than three seeds decides none."""
        if self.looks[position].seeds < MIN_SEEDS_FOR_P_VALUE:
            return {}
        family, decisions = self._family(seeds), dict[Terms, str]()
        effects = {each.terms: effect for each, effect in zip(self.comparisons, family.effects, strict=True)}
        for each in still_open:
            effect = effects[each.terms]
            if effect.difference.significant or (effect.failures and effect.failures.significant):
                decisions[each.terms] = EFFECT
            elif effect.p_within_margin is not None and effect.p_within_margin < SIGNIFICANCE_LEVEL:
                decisions[each.terms] = WITHIN_MARGIN
            elif self._is_hopeless(each, position, family):
                decisions[each.terms] = HOPELESS
        return decisions

    def _family(self, seeds: Mapping[int, int]) -> Family:
        """Return the family of tests with the first seeds of each cell."""
        numbers = np.array([seeds[row] for row in range(len(self.design.cells))])
        within = np.arange(self.values.shape[1]) < numbers[:, None]
        values, outcomes = np.where(within, self.values, np.nan), np.where(within, self.outcomes, "")
        cells = [replace(cell, fingerprints=cell.fingerprints[:n]) for cell, n in zip(self.design.cells, numbers, strict=True)]
        design = replace(self.design, cells=tuple(cells))
        failures = find_failures(values, outcomes.tolist(), design.metric, design.chance)
        return Family(design=design, values=values, failures=failures, scale=self.scale, looks=self.shares)

    def _is_hopeless(self, comparison: Contrast, position: int, family: Family) -> bool:
        if not (later := self.looks[position + 1 :]):
            return False  # the seeds are used up
        latest = self._own_test(comparison, position).latest
        if probability_of_result(latest, later, self.part, self.design.margin) >= HOPELESS_BELOW:
            return False
        return not failures_would_be_significant(
            family.failures, comparison.pairs, self.looks[position].seeds, later[-1], self.part
        )

    def _own_test(self, comparison: Contrast, position: int) -> SequentialTest:
        """Return the test of a comparison at the looks up to one, with its own results only."""
        parts = [self.values[list(add)].sum(axis=0) - self.values[list(take)].sum(axis=0) for add, take in comparison.terms]
        looks = self.looks[: position + 1]
        return estimate_over_looks(parts, looks, self.design.margin, whole=not comparison.matched)

    def _certain_steps(self, still_open: Sequence[Contrast], position: int) -> Iterator[tuple[Contrast, int]]:
        """Yield comparisons that stay undecided whatever the missing results are, with the number of seeds that they get."""
        for each in still_open:
            for here in range(position, len(self.looks) - 1):
                rows, seeds = rows_of(each.terms), self.looks[here].seeds
                if not (self._all_ended(rows, seeds) and self._stays_open(each, rows, here)):
                    break
                yield each, self.looks[here + 1].seeds

    def _stays_open(self, comparison: Contrast, rows: Sequence[int], position: int) -> bool:
        """Return whether a comparison is undecided even if its tests had the whole significance level."""
        seeds = self.looks[position].seeds
        if seeds < MIN_SEEDS_FOR_P_VALUE:
            return True
        if self._may_have_failures(rows, seeds):
            return False  # which runs failed to train depends on the other cells
        test = self._own_test(comparison, position)
        decided = [p for p in (test.estimate.p, test.within_margin) if p is not None and p < SIGNIFICANCE_LEVEL]
        later = self.looks[position + 1 :]
        return not decided and probability_of_result(test.latest, later, self.part, self.design.margin) >= HOPELESS_BELOW

    def _may_have_failures(self, rows: Sequence[int], seeds: int) -> bool:
        """Return whether a run of these cells diverged, or is so bad that it may count as a failure to train."""
        if (self.outcomes[rows, :seeds] == "diverged").any():
            return True
        metric, chance = self.design.metric, self.design.chance
        losses = metric.minimized(self.values[rows, :seeds])
        if chance is None or not np.isfinite(losses).any():
            return False
        guessing = metric.minimized(chance)
        best, worst = sorted(map(metric.minimized, metric.bounds))
        near = guessing - min(NEAR_CHANCE_FRACTION * (guessing - best), worst - guessing)
        far = guessing - FAR_FRACTION * (guessing - np.nanmin(losses))
        return bool((losses >= min(near, far)).any())

    def _path(
        self, looks: Sequence[DecidedLook], seeds: Mapping[int, int], still_open: Sequence[Contrast], *, finished: bool
    ) -> Path:
        rows = range(len(self.design.cells))
        most, distances = dict(seeds), dict.fromkeys(rows, math.inf)
        for each in still_open:
            ended = [i for i, look in enumerate(self.looks) if self._all_ended(rows_of(each.terms), look.seeds)]
            distance = math.inf
            if ended and (later := self.looks[ended[-1] + 1 :]):
                latest = self._own_test(each, ended[-1]).latest
                distance = abs(probability_of_result(latest, later, self.part, self.design.margin) - 0.5)
            for row in rows_of(each.terms):
                distances[row] = min(distances[row], distance)
                most[row] = seeds[row] if finished else self.looks[-1].seeds
        return Path(
            looks=tuple(looks),
            seeds=tuple(seeds[row] for row in rows),
            most_seeds=tuple(most[row] for row in rows),
            distances=tuple(distances[row] for row in rows),
            finished=finished,
        )
