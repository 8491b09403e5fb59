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
from ablations.engine.analysis.inference import Array, paired_tests
from ablations.engine.study.design import Design


@dataclass(frozen=True, kw_only=True)
class SimpleEffect:
    """A level of a factor reference its reference level, at one combination of the other factors' levels."""

    factor: str
    level: str
    reference: str
    at: str
    """The combination: `depth=56`; empty without other factors."""
    difference: Estimate


def reference_levels(design: Design) -> dict[str, str]:
    """Factors with two levels or more, and the level that others are compared with: the baseline's, or the first."""
    return {name: design.baseline.get(name, levels[0]) for name, levels in design.factors.items() if len(levels) > 1}


def estimate_effects(design: Design, errors: Array) -> tuple[Effect, ...]:
    """Of every factor's levels; one family for Holm's correction. Without levels that nowhere meet their reference.

    Args:
        design: of the study.
        errors: of completed runs, a row for each cell of the design, a column for each seed; NaN where there is none.
    """
    named, contrasts = [], []
    for factor, reference in reference_levels(design).items():
        rows = _design_rows(design, [factor])
        for level in _other_levels(design, factor):
            both = [(of[level,], of[reference,]) for of in rows.values() if {(level,), (reference,)} <= of.keys()]
            if both:
                named.append((factor, level, reference, len(both)))
                contrasts.append(_mean_per_seed(errors[row] - errors[reference] for row, reference in both))
    return tuple(
        Effect(factor=factor, level=level, reference=reference, combinations=count, difference=each)
        for (factor, level, reference, count), each in zip(named, _test_family(contrasts, errors), strict=True)
    )


def estimate_simple_effects(design: Design, errors: Array, factor: str) -> tuple[SimpleEffect, ...]:
    """Of a factor's levels at every combination of the others at which both exist; one family for Holm's correction."""
    reference = reference_levels(design)[factor]
    named, contrasts = [], []
    for at, of in _design_rows(design, [factor]).items():
        for level in _other_levels(design, factor):
            if {(level,), (reference,)} <= of.keys():
                named.append((level, " ".join(at)))
                contrasts.append(errors[of[level,]] - errors[of[reference,]])
    return tuple(
        SimpleEffect(factor=factor, level=level, reference=reference, at=at, difference=each)
        for (level, at), each in zip(named, _test_family(contrasts, errors), strict=True)
    )


def estimate_interactions(design: Design, errors: Array) -> tuple[Interaction, ...]:
    """Of every two factors' levels; one family for Holm's correction. Without those that no combination of the others has."""
    named, contrasts = [], []
    for pair in combinations(reference_levels(design), 2):
        rows = _design_rows(design, pair)
        first, second = (reference_levels(design)[factor] for factor in pair)
        for a, b in product(*(_other_levels(design, factor) for factor in pair)):
            corners = [(a, b), (a, second), (first, b), (first, second)]
            whole = [[of[corner] for corner in corners] for of in rows.values() if set(corners) <= of.keys()]
            if whole:
                named.append((pair, (a, b), (first, second)))
                contrasts.append(_mean_per_seed(errors[r] - errors[s] - errors[t] + errors[u] for r, s, t, u in whole))
    return tuple(
        Interaction(factors=pair, levels=levels, references=reference, difference=each)
        for (pair, levels, reference), each in zip(named, _test_family(contrasts, errors), strict=True)
    )


def _other_levels(design: Design, factor: str) -> list[str]:
    return [level for level in design.factors[factor] if level != reference_levels(design)[factor]]


def _design_rows(design: Design, factors: Sequence[str]) -> dict[tuple[str, ...], dict[tuple[str, ...], int]]:
    """Rows of the cells, by the other factors' levels, then by these factors'."""
    others = [name for name in reference_levels(design) if name not in factors]
    rows: dict[tuple[str, ...], dict[tuple[str, ...], int]] = defaultdict(dict)
    for row, cell in enumerate(design.cells):
        at = tuple(f"{name}={cell.levels[name]}" for name in others)
        rows[at][tuple(cell.levels[name] for name in factors)] = row
    return rows


def _mean_per_seed(contrasts: Iterable[Array]) -> Array:
    """In each seed; NaN where any is missing, since a mean over other combinations would be another quantity."""
    return np.asarray(np.mean(list(contrasts), axis=0))


def _test_family(contrasts: Sequence[Array], errors: Array) -> list[Estimate]:
    return paired_tests(np.reshape(contrasts, (len(contrasts), errors.shape[1])))
