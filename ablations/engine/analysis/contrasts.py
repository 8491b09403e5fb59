"""Contrasts between the levels of factors: computed within each seed, then estimated over seeds.

The confidence interval of each contrast uses the variance of that contrast, not the pooled residual of an analysis of variance.
Plain networks of 56 layers vary ten times as much between seeds as other networks, so a pooled variance would mislead.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations, product

import numpy as np

from ablations.engine.analysis.findings import Effect, Estimate, Interaction
from ablations.engine.analysis.inference import Array, paired_tests, zero_tolerance
from ablations.engine.study.design import Design


@dataclass(frozen=True, kw_only=True)
class SimpleEffect:
    """A simple effect: a level relative to its reference level, at one combination of the other factors' levels."""

    factor: str
    level: str
    reference: str
    at: str
    """Combination of the other factors' levels, such as `depth=56`; empty without other factors."""
    difference: Estimate


def reference_levels(design: Design) -> dict[str, str]:
    """Return each factor with at least two levels and its reference level: the level of the baseline, or else the first."""
    return {name: design.baseline.get(name, levels[0]) for name, levels in design.factors.items() if len(levels) > 1}


def estimate_effects(design: Design, values: Array) -> tuple[Effect, ...]:
    """Return the average effect of every level, as one family for Holm's adjustment.

    A level is left out if no combination of the other factors has both the level and its reference.

    Args:
        design: The design of the study.
        values: Values of completed runs; a row per cell of the design, a column per seed, NaN without a result.
    """
    named, contrasts = [], []
    for factor, reference in reference_levels(design).items():
        rows = _design_rows(design, [factor])
        for level in _other_levels(design, factor):
            both = [(row[level,], row[reference,]) for row in rows.values() if {(level,), (reference,)} <= row.keys()]
            if both:
                named.append((factor, level, reference, len(both)))
                contrasts.append(_mean_per_seed(values[row] - values[reference] for row, reference in both))
    return tuple(
        Effect(factor=factor, level=level, reference=reference, combinations=count, difference=each)
        for (factor, level, reference, count), each in zip(named, _test_family(contrasts, values), strict=True)
    )


def estimate_simple_effects(design: Design, values: Array, factor: str) -> tuple[SimpleEffect, ...]:
    """Return the simple effects of a factor's levels at every combination of the others, as one family for Holm's adjustment."""
    reference = reference_levels(design)[factor]
    named, contrasts = [], []
    for at, row_by_level in _design_rows(design, [factor]).items():
        for level in _other_levels(design, factor):
            if {(level,), (reference,)} <= row_by_level.keys():
                named.append((level, " ".join(at)))
                contrasts.append(values[row_by_level[level,]] - values[row_by_level[reference,]])
    return tuple(
        SimpleEffect(factor=factor, level=level, reference=reference, at=at, difference=each)
        for (level, at), each in zip(named, _test_family(contrasts, values), strict=True)
    )


def estimate_interactions(design: Design, values: Array) -> tuple[Interaction, ...]:
    """Return the interactions of all pairs of factors, as one family for Holm's adjustment.

    An interaction is left out if no combination of the other factors has all four cells that it needs.
    """
    named, contrasts = [], []
    for pair in combinations(reference_levels(design), 2):
        rows = _design_rows(design, pair)
        first, second = (reference_levels(design)[factor] for factor in pair)
        for a, b in product(*(_other_levels(design, factor) for factor in pair)):
            corners = [(a, b), (a, second), (first, b), (first, second)]
            whole = [[row[corner] for corner in corners] for row in rows.values() if set(corners) <= row.keys()]
            if whole:
                named.append((pair, (a, b), (first, second)))
                contrasts.append(_mean_per_seed(values[r] - values[s] - values[t] + values[u] for r, s, t, u in whole))
    return tuple(
        Interaction(factors=pair, levels=levels, references=reference, difference=each)
        for (pair, levels, reference), each in zip(named, _test_family(contrasts, values), strict=True)
    )


def _other_levels(design: Design, factor: str) -> list[str]:
    return [level for level in design.factors[factor] if level != reference_levels(design)[factor]]


def _design_rows(design: Design, factors: Sequence[str]) -> dict[tuple[str, ...], dict[tuple[str, ...], int]]:
    """Return the row number of each cell, by the levels of the other factors, then by the levels of `factors`."""
    others = [name for name in reference_levels(design) if name not in factors]
    rows: dict[tuple[str, ...], dict[tuple[str, ...], int]] = defaultdict(dict)
    for row, cell in enumerate(design.cells):
        at = tuple(f"{name}={cell.levels[name]}" for name in others)
        rows[at][tuple(cell.levels[name] for name in factors)] = row
    return rows


def _mean_per_seed(contrasts: Iterable[Array]) -> Array:
    """Return the mean per seed; NaN if a contrast is missing, since a mean over fewer combinations is another quantity."""
    return np.asarray(np.mean(list(contrasts), axis=0))


def _test_family(contrasts: Sequence[Array], values: Array) -> list[Estimate]:
    return paired_tests(np.reshape(contrasts, (len(contrasts), values.shape[1])), zero_tolerance(values))
