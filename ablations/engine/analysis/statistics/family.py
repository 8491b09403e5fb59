"""The family of tests of a study: all its contrasts, estimated, tested, and adjusted together."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from ablations.engine.analysis.findings import Effect, Interaction, SimpleEffect
from ablations.engine.analysis.statistics import contrasts
from ablations.engine.analysis.statistics.contrasts import Contrast, Terms
from ablations.engine.analysis.statistics.estimate import Estimate, FailureTest
from ablations.engine.analysis.statistics.failures import FailureTable, can_be_significant
from ablations.engine.analysis.statistics.gatekeeping import FAILURE_PART, INTERACTION_PART, Node, adjust_p_values
from ablations.engine.analysis.statistics.inference import (
    Array,
    Scale,
    holm_adjust,
    selected_interval,
)
from ablations.engine.analysis.statistics.sequential import LookScale, SequentialTest, estimate_over_looks
from ablations.engine.study.design import Design

Name = tuple[str, Terms]
"""A hypothesis: its kind, `difference` or `failure`, and its contrast."""
DIFFERENCE, FAILURE = "difference", "failure"
"""The two kinds of hypotheses about a contrast: equal means, and equal chances to fail."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """All contrasts of a study, tested as one family.

    Args:
        design: The design of the study.
        values: Values of completed runs; a row per cell of the design, a column per seed, NaN without a result.
        failures: Which runs failed to train.
        scale: Scale of the values.
        looks: Share of the significance level of each look of an adaptive study, by its number of seeds; otherwise empty. A
            contrast is tested at the looks up to the number of seeds that all its cells have in the design.
    """

    design: Design
    values: Array
    failures: FailureTable
    scale: Scale
    looks: Mapping[int, float] = field(default_factory=dict)

    @cached_property
    def effects(self) -> tuple[Effect, ...]:
        """Average effects of all levels."""
        found = []
        for each in self._effects:
            difference, used = self.difference(each.terms), self._tested[each.terms].used
            found.append(
                Effect(
                    factor=each.factors[0],
                    level=each.levels[0],
                    reference=each.references[0],
                    difference=difference,
                    combinations=len(used),
                    of_combinations=each.of_places if 0 < len(used) < each.of_places else 0,
                    place=each.places[used[0]] if len(used) == 1 and each.of_places > 1 else "",
                    failures=self.failure_test(each.terms),
                    at_chance=self._at_chance(each),
                    median=self._median(each) if each.matched else None,
                )
            )
        return tuple(self._with_margin(found))

    @cached_property
    def interactions(self) -> tuple[Interaction, ...]:
        """Interactions of all pairs of factors."""
        return tuple(
            Interaction(
                factors=(each.factors[0], each.factors[1]),
                levels=(each.levels[0], each.levels[1]),
                references=(each.references[0], each.references[1]),
                difference=self.difference(each.terms),
                without_value=int(self.failures.diverged[rows_of(each.terms), : self._tested[each.terms].shown.seeds].sum()),
            )
            for each in self._interactions
        )

    def simple_effects(self, factor: str) -> tuple[SimpleEffect, ...]:
        """Return the effects of a factor's levels at every combination of the others."""
        return tuple(
            SimpleEffect(
                factor=factor,
                level=each.levels[0],
                reference=each.references[0],
                at=each.at,
                difference=self.difference(each.terms),
                failures=self.failure_test(each.terms),
            )
            for each in self._simple_effects[factor]
        )

    @cached_property
    def tests(self) -> int:
        """Number of tests in the family."""
        return len(self._nodes)

    @cached_property
    def effect_bonferroni(self) -> float:
        """Factor by which the p-value of one effect is adjusted at least, if nothing else is rejected."""
        weights = [node.weight for node in self._nodes if node.name[0] == DIFFERENCE and node.name[1] in self._top_terms]
        shares = [self._tested[each.terms].shown.scale.share for each in self._effects]
        return 1 / (min(weights) * min(shares)) if weights else 1.0

    def difference(self, terms: Terms) -> Estimate:
        """Return the difference of a contrast of this study."""
        return self._adjusted_estimates[terms]

    def seeds_shown(self, terms: Terms) -> int:
        """Return the number of seeds of the look at which the difference of a contrast is shown."""
        return self._tested[terms].shown.seeds

    def failure_test(self, terms: Terms) -> FailureTest | None:
        """Return the test of failures of a contrast of two levels; None if neither has any."""
        found = self._failure_tests.get(terms)
        return found and replace(found, p_adjusted=self._adjusted.get((FAILURE, terms)))

    @cached_property
    def whole_ladder(self) -> SimpleEffect | None:
        """The last rung of a ladder instead of its first; None for another design."""
        if self._total is None:
            return None
        terms = self._total.terms
        return SimpleEffect(
            factor="",
            level="the last rung",
            reference="the first",
            at="",
            difference=self.difference(terms),
            failures=self.failure_test(terms),
        )

    @cached_property
    def _effects(self) -> Sequence[Contrast]:
        return list(contrasts.average_effects(self.design))

    @cached_property
    def _total(self) -> Contrast | None:
        return contrasts.whole_ladder(self.design)

    @cached_property
    def _top(self) -> Sequence[Contrast]:
        """Contrasts that are tested from the start besides interactions: effects and the whole of a ladder."""
        return [*self._effects, *([self._total] if self._total else [])]

    @cached_property
    def _interactions(self) -> Sequence[Contrast]:
        return list(contrasts.interactions(self.design))

    @cached_property
    def _simple_effects(self) -> Mapping[str, Sequence[Contrast]]:
        return {factor: list(contrasts.simple_effects(self.design, factor)) for factor in contrasts.reference_levels(self.design)}

    @cached_property
    def _single(self) -> Sequence[Contrast]:
        """Contrasts of two cells: simple effects and comparisons with the baseline."""
        simple = [each for of_factor in self._simple_effects.values() for each in of_factor]
        return [*simple, *contrasts.comparisons(self.design)]

    @cached_property
    def _top_terms(self) -> frozenset[Terms]:
        return frozenset(each.terms for each in self._top)

    @cached_property
    def _tested(self) -> Mapping[Terms, SequentialTest]:
        found = {}
        for each in (*self._top, *self._interactions, *self._single):
            if each.terms not in found:
                parts = [self.values[list(add)].sum(axis=0) - self.values[list(take)].sum(axis=0) for add, take in each.terms]
                looks = self._looks_at(each.terms)
                found[each.terms] = estimate_over_looks(parts, looks, self.design.margin, whole=not each.matched)
        return found

    def _looks_at(self, terms: Terms) -> list[LookScale]:
        """Return the looks at which all cells of a contrast have seeds: one, at all seeds, unless the study is adaptive."""
        seeds = min(len(self.design.cells[row].fingerprints) for row in rows_of(terms))
        taken = [(look, share) for look, share in self.looks.items() if look <= seeds] or [(self.values.shape[1], self.scale.share)]
        return [LookScale(seeds=look, scale=replace(self.scale, share=share)) for look, share in taken]

    @cached_property
    def _failure_tests(self) -> Mapping[Terms, FailureTest]:
        found = {}
        for each in (*self._top, *self._single):
            last = self._tested[each.terms].last
            found[each.terms] = self.failures.test(each.pairs, last.scale.share, last.seeds, matched=each.matched)
        return {terms: test for terms, test in found.items() if test}

    @cached_property
    def _nodes(self) -> Sequence[Node]:
        names = _Names(
            tested={terms for terms, test in self._tested.items() if test.estimate.p is not None},
            counted={terms for terms, test in self._failure_tests.items() if can_be_significant(test)},
        )
        by_level: dict[tuple[str, str], list[Name]] = {}
        for each in self._single:
            for level in zip(each.factors, each.levels, strict=True):
                by_level.setdefault(level, []).extend(name for name in names.of(each.terms) if each.terms not in self._top_terms)
        parts = _initial_parts(
            differences=[(DIFFERENCE, each.terms) for each in self._top if each.terms in names.tested],
            failures=[(FAILURE, each.terms) for each in self._top if each.terms in names.counted],
            interactions=[(DIFFERENCE, each.terms) for each in self._interactions if each.terms in names.tested],
        )
        nodes: dict[Name, Node] = {}
        for contrasts_of_kind in (self._top, self._interactions):
            siblings = [name for each in contrasts_of_kind for name in names.of(each.terms)]
            for each in contrasts_of_kind:
                below = [by_level.get(level, ()) for level in zip(each.factors, each.levels, strict=True)]
                children = list(dict.fromkeys(name for of_level in below for name in of_level))
                for name in names.of(each.terms):
                    nodes[name] = Node(name=name, p=self._p(name), weight=parts[name], siblings=siblings, children=children)
        top = [name for each in self._top for name in names.of(each.terms)]
        for of_level in by_level.values():
            for name in of_level:
                known = nodes[name].siblings if name in nodes else ()
                nodes[name] = Node(name=name, p=self._p(name), siblings=list(dict.fromkeys((*known, *of_level))) or top)
        return list(nodes.values())

    def _p(self, name: Name) -> float:
        kind, terms = name
        if kind == FAILURE:
            return self._failure_tests[terms].p
        return self._tested[terms].estimate.p or 0.0

    @cached_property
    def _adjusted(self) -> Mapping[Name, float]:
        return adjust_p_values(self._nodes)

    @cached_property
    def _adjusted_estimates(self) -> Mapping[Terms, Estimate]:
        adjusted = {
            terms: replace(test.estimate, p_adjusted=self._adjusted.get((DIFFERENCE, terms)))
            for terms, test in self._tested.items()
        }
        effects, crossed = self._top_terms, {each.terms for each in self._interactions}
        for kind in (effects, crossed, adjusted.keys() - effects - crossed):
            tested = [terms for terms in kind if adjusted[terms].p is not None]
            claimed = [terms for terms in tested if adjusted[terms].significant]
            for terms in claimed:
                adjusted[terms] = selected_interval(
                    adjusted[terms], len(claimed) / len(tested), self._tested[terms].shown.scale.share
                )
        return {terms: estimate if terms in crossed else self._within_bounds(estimate) for terms, estimate in adjusted.items()}

    def _within_bounds(self, difference: Estimate) -> Estimate:
        """Return a difference whose intervals end where no two values of the metric differ by more."""
        low, high = self.design.metric.bounds
        most = high - low
        if not math.isfinite(most):
            return difference
        clipped = {
            name: min(max(bound, -most), most)
            for name in ("low", "high", "selected_low", "selected_high")
            if (bound := getattr(difference, name)) is not None
        }
        return replace(difference, **clipped)

    def _at_chance(self, contrast: Contrast) -> float | None:
        """Return the mean difference if diverged runs count as guessing; None without such runs."""
        seeds, pairs = self._tested[contrast.terms].shown.seeds, contrast.pairs
        chance, diverged = self.design.chance, self.failures.diverged[:, :seeds]
        if chance is None or not any(diverged[row].any() or diverged[reference].any() for row, reference in pairs):
            return None
        filled = np.where(diverged, chance, self.values[:, :seeds])
        means = [float(np.nanmean(off)) for row, ref in pairs if np.isfinite(off := filled[row] - filled[ref]).any()]
        return float(np.mean(means)) if means else None

    def _median(self, contrast: Contrast) -> float | None:
        """Return the median of the differences, over seeds and combinations; None unless a completed run failed to train."""
        seeds, pairs = self._tested[contrast.terms].shown.seeds, contrast.pairs
        values = self.values[:, :seeds]
        failed = self.failures.failed[:, :seeds] & np.isfinite(values)
        if not any(failed[row].any() or failed[reference].any() for row, reference in pairs):
            return None
        differences = np.concatenate([values[row] - values[reference] for row, reference in pairs])
        return float(np.nanmedian(differences)) if np.isfinite(differences).any() else None

    def _with_margin(self, effects: Sequence[Effect]) -> Sequence[Effect]:
        """Return the effects with tests of whether they are within the study's margin, if it has one."""
        p_values = {
            i: p
            for i, (each, contrast) in enumerate(zip(effects, self._effects, strict=True))
            if not each.failures and (p := self._tested[contrast.terms].within_margin) is not None
        }
        adjusted = dict(zip(p_values, holm_adjust(list(p_values.values())).tolist(), strict=True))
        return [replace(each, p_within_margin=adjusted.get(i)) for i, each in enumerate(effects)]


def rows_of(terms: Terms) -> list[int]:
    """Return the rows of the cells of a contrast."""
    return list(dict.fromkeys(row for sides in terms for side in sides for row in side))


def _initial_parts(*, differences: Sequence[Name], failures: Sequence[Name], interactions: Sequence[Name]) -> Mapping[Name, float]:
    """Return the initial part of the significance level of each hypothesis about effects and interactions."""
    of_effects = 0.0 if not (differences or failures) else 1 - INTERACTION_PART if interactions else 1.0
    of_failures = 0.0 if not failures else of_effects * FAILURE_PART if differences else of_effects
    kinds = ((differences, of_effects - of_failures), (failures, of_failures), (interactions, 1 - of_effects))
    return {name: part / len(names) for names, part in kinds for name in names}


@dataclass(frozen=True, kw_only=True)
class _Names:
    """Names of the hypotheses about contrasts: those with a test of means, and those with enough failures to count."""

    tested: set[Terms]
    counted: set[Terms]

    def of(self, terms: Terms) -> list[Name]:
        return [(DIFFERENCE, terms)] * (terms in self.tested) + [(FAILURE, terms)] * (terms in self.counted)
