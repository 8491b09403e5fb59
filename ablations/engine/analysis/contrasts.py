"""What factors do: differences between levels within each seed, then estimated over seeds.

Intervals come from these differences and not from the pooled error of an analysis of variance: plain networks of 56 layers
spread ten times as much as others, and each difference is judged by its own spread.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations, product

import numpy as np

from ablations.engine.analysis.findings import Effect, Estimate, Interaction
from ablations.engine.analysis.inference import Array, compared
from ablations.engine.study.design import Design


@dataclass(frozen=True, kw_only=True)
class SimpleEffect:
    """A level of a factor against its reference level, at one combination of the other factors' levels."""

    factor: str
    level: str
    against: str
    at: str
    """The combination: `depth=56`; empty without other factors."""
    difference: Estimate


def references(design: Design) -> dict[str, str]:
    """Factors with two levels or more, and the level that others are compared with: the baseline's, or the first."""
    return {name: design.baseline.get(name, levels[0]) for name, levels in design.factors.items() if len(levels) > 1}


def effects(design: Design, errors: Array) -> tuple[Effect, ...]:
    """Of every factor's levels; one family for Holm's correction. Without levels that nowhere meet their reference.

    Args:
        design: of the study.
        errors: of completed runs, a row for each cell of the design, a column for each seed; NaN where there is none.
    """
    named, contrasts = [], []
    for factor, against in references(design).items():
        rows = _rows(design, [factor])
        for level in _others(design, factor):
            both = [(of[level,], of[against,]) for of in rows.values() if {(level,), (against,)} <= of.keys()]
            if both:
                named.append((factor, level, against, len(both)))
                contrasts.append(_mean(errors[row] - errors[reference] for row, reference in both))
    return tuple(
        Effect(factor=factor, level=level, against=against, combinations=count, difference=each)
        for (factor, level, against, count), each in zip(named, _family(contrasts, errors), strict=True)
    )


def simple_effects(design: Design, errors: Array, factor: str) -> tuple[SimpleEffect, ...]:
    """Of a factor's levels at every combination of the others at which both exist; one family for Holm's correction."""
    against = references(design)[factor]
    named, contrasts = [], []
    for at, of in _rows(design, [factor]).items():
        for level in _others(design, factor):
            if {(level,), (against,)} <= of.keys():
                named.append((level, " ".join(at)))
                contrasts.append(errors[of[level,]] - errors[of[against,]])
    return tuple(
        SimpleEffect(factor=factor, level=level, against=against, at=at, difference=each)
        for (level, at), each in zip(named, _family(contrasts, errors), strict=True)
    )


def interactions(design: Design, errors: Array) -> tuple[Interaction, ...]:
    """Of every two factors' levels; one family for Holm's correction. Without those that no combination of the others has."""
    named, contrasts = [], []
    for pair in combinations(references(design), 2):
        rows = _rows(design, pair)
        first, second = (references(design)[factor] for factor in pair)
        for a, b in product(*(_others(design, factor) for factor in pair)):
            corners = [(a, b), (a, second), (first, b), (first, second)]
            whole = [[of[corner] for corner in corners] for of in rows.values() if set(corners) <= of.keys()]
            if whole:
                named.append((pair, (a, b), (first, second)))
                contrasts.append(_mean(errors[r] - errors[s] - errors[t] + errors[u] for r, s, t, u in whole))
    return tuple(
        Interaction(factors=pair, levels=levels, against=against, difference=each)
        for (pair, levels, against), each in zip(named, _family(contrasts, errors), strict=True)
    )


def _others(design: Design, factor: str) -> list[str]:
    return [level for level in design.factors[factor] if level != references(design)[factor]]


def _rows(design: Design, factors: Sequence[str]) -> dict[tuple[str, ...], dict[tuple[str, ...], int]]:
    """Rows of the cells, by the other factors' levels, then by these factors'."""
    others = [name for name in references(design) if name not in factors]
    rows: dict[tuple[str, ...], dict[tuple[str, ...], int]] = defaultdict(dict)
    for row, cell in enumerate(design.cells):
        at = tuple(f"{name}={cell.levels[name]}" for name in others)
        rows[at][tuple(cell.levels[name] for name in factors)] = row
    return rows


def _mean(contrasts: Iterable[Array]) -> Array:
    """In each seed; NaN where any is missing, since a mean over other combinations would be another quantity."""
    return np.asarray(np.mean(list(contrasts), axis=0))


def _family(contrasts: Sequence[Array], errors: Array) -> list[Estimate]:
    return compared(np.reshape(contrasts, (len(contrasts), errors.shape[1])))
