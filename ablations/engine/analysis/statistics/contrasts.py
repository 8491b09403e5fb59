"""Contrasts between the levels of factors: computed within each seed, then estimated over seeds.

The confidence interval of each contrast uses the variance of that contrast, not the pooled residual of an analysis of variance.
Plain networks of 56 layers vary ten times as much between seeds as other networks, so a pooled variance would mislead.
"""

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, product

import numpy as np
import numpy.typing as npt

from ablations.engine.study.design import Design
from ablations.engine.study.designs import FACTORIAL, LADDER, RESOLUTIONS, resolution

Terms = tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]
"""Rows that a contrast averages: for each combination of the other factors, those that are added and those that are subtracted."""


@dataclass(frozen=True, kw_only=True)
class Contrast:
    """A contrast to be estimated. Two contrasts with the same terms are the same hypothesis."""

    factors: tuple[str, ...]
    """Factors that vary: one for an effect, two for an interaction, none for a comparison of cells that differ in several."""
    levels: tuple[str, ...]
    references: tuple[str, ...]
    at: str = ""
    """Combination of the other factors' levels, such as `depth=56`; empty for an average over them."""
    terms: Terms
    places: tuple[str, ...] = ()
    """Combination of the other factors' levels of each term, for an average effect."""
    of_places: int = 1
    """Number of combinations of the other factors' levels that a full design has."""
    matched: bool = True
    """False if the rows of a term differ in further factors, as in a screening, where only the sum of all terms is balanced."""

    @property
    def pairs(self) -> tuple[tuple[int, int], ...]:
        """Row and reference row of each combination, for a contrast of two levels."""
        return tuple((added[0], subtracted[0]) for added, subtracted in self.terms)


def reference_levels(design: Design) -> dict[str, str]:
    """Return each factor with at least two levels and its reference level: the level of the baseline, or else the first."""
    return {name: design.baseline.get(name, levels[0]) for name, levels in design.factors.items() if len(levels) > 1}


def average_effects(design: Design) -> Iterator[Contrast]:
    """Yield the effect of every level: on average over the combinations of the other factors that have it and its reference.

    With one factor at a time, there is one such combination, the baseline. A rung of a ladder has the level below as its reference.
    A main effect of a screening is the mean of the cells with a level minus that of all others.
    """
    if design.kind == LADDER:
        yield from (each for each in comparisons(design) if len(each.factors) == 1)
    elif design.kind in RESOLUTIONS:
        yield from _main_effects(design)
    else:
        yield from _effects_at_combinations(design)


def _main_effects(design: Design) -> Iterator[Contrast]:
    signs = design_signs(design)
    if signs.sum(axis=0).any() or resolution(signs) < RESOLUTIONS[design.kind]:
        return  # a part of a screening, whose cells do not separate the effects
    for factor, reference in reference_levels(design).items():
        without = [row for row, cell in enumerate(design.cells) if cell.levels[factor] == reference]
        for level in _other_levels(design, factor):
            rows = [row for row, cell in enumerate(design.cells) if cell.levels[factor] == level]
            if rows and len(rows) == len(without):
                terms = tuple(((row,), (other,)) for row, other in zip(rows, without, strict=True))
                yield Contrast(factors=(factor,), levels=(level,), references=(reference,), terms=terms, matched=False)


def _effects_at_combinations(design: Design) -> Iterator[Contrast]:
    whole = design.kind == FACTORIAL
    for factor, reference in reference_levels(design).items():
        rows = _design_rows(design, [factor])
        for level in _other_levels(design, factor):
            both = {at: row for at, row in rows.items() if {(level,), (reference,)} <= row.keys()}
            if both:
                yield Contrast(
                    factors=(factor,),
                    levels=(level,),
                    references=(reference,),
                    terms=tuple(((row[level,],), (row[reference,],)) for row in both.values()),
                    places=tuple(map(" ".join, both)),
                    of_places=math.prod(len(design.factors[name]) for name in reference_levels(design) if name != factor)
                    if whole
                    else 1,
                )


def simple_effects(design: Design, factor: str) -> Iterator[Contrast]:
    """Yield the simple effects of a factor's levels: at every combination of the others. Only factorial designs have any."""
    if design.kind != FACTORIAL:
        return
    reference = reference_levels(design)[factor]
    for at, row_by_level in _design_rows(design, [factor]).items():
        for level in _other_levels(design, factor):
            if {(level,), (reference,)} <= row_by_level.keys():
                terms = (((row_by_level[level,],), (row_by_level[reference,],)),)
                yield Contrast(factors=(factor,), levels=(level,), references=(reference,), at=" ".join(at), terms=terms)


def interactions(design: Design) -> Iterator[Contrast]:
    """Yield the interactions of all pairs of factors, averaged over the combinations of the others that have all four cells.

    Only factorial designs have any: a screening has sums of several, which no test attributes to one of them.
    """
    if design.kind != FACTORIAL:
        return
    for pair in combinations(reference_levels(design), 2):
        rows = _design_rows(design, pair)
        first, second = (reference_levels(design)[factor] for factor in pair)
        for a, b in product(*(_other_levels(design, factor) for factor in pair)):
            corners = [(a, b), (a, second), (first, b), (first, second)]
            whole = [[row[corner] for corner in corners] for row in rows.values() if set(corners) <= row.keys()]
            if whole:
                terms = tuple(((r, u), (s, t)) for r, s, t, u in whole)
                yield Contrast(factors=pair, levels=(a, b), references=(first, second), terms=terms)


def comparisons(design: Design) -> Iterator[Contrast]:
    """Yield the comparison of every cell with its baseline, with the factors in which they differ."""
    row_of = {cell.label: row for row, cell in enumerate(design.cells)}
    for cell in design.cells:
        label = design.baseline_label(cell)
        if label is None:
            continue
        baseline = design.cells[row_of[label]]
        differ = tuple(name for name in cell.levels if cell.levels[name] != baseline.levels[name])
        yield Contrast(
            factors=differ,
            levels=tuple(cell.levels[name] for name in differ),
            references=tuple(baseline.levels[name] for name in differ),
            at=cell.label,
            terms=(((row_of[cell.label],), (row_of[label],)),),
        )


def whole_ladder(design: Design) -> Contrast | None:
    """Return the comparison of a ladder's last rung with its first; None for another design, one step, or a part of one."""
    if design.kind != LADDER or len(design.cells) < 3 or not all(map(design.baseline_label, design.cells[1:])):
        return None
    return Contrast(factors=(), levels=(), references=(), terms=(((len(design.cells) - 1,), (0,)),))


def design_signs(design: Design) -> npt.NDArray[np.int_]:
    """Return -1 for a reference level and 1 for another one: a row per cell, a column per factor with several levels."""
    references = reference_levels(design)
    return np.array([[-1 if cell.levels[name] == level else 1 for name, level in references.items()] for cell in design.cells])


def _other_levels(design: Design, factor: str) -> list[str]:
    return [level for level in design.factors[factor] if level != reference_levels(design)[factor]]


def _design_rows(design: Design, factors: Sequence[str]) -> Mapping[tuple[str, ...], dict[tuple[str, ...], int]]:
    """Return the row number of each cell, by the levels of the other factors, then by the levels of `factors`."""
    others = [name for name in reference_levels(design) if name not in factors]
    rows: dict[tuple[str, ...], dict[tuple[str, ...], int]] = defaultdict(dict)
    for row, cell in enumerate(design.cells):
        at = tuple(f"{name}={cell.levels[name]}" for name in others)
        rows[at][tuple(cell.levels[name] for name in factors)] = row
    return rows
