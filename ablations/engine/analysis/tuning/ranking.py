"""Compare the ranking of variants before and after each is tuned by its own search."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations

import numpy as np

from ablations.engine.analysis.number_format import ValueFormat
from ablations.engine.analysis.statistics.estimate import Estimate
from ablations.engine.analysis.statistics.inference import Array, holm_adjust, paired_tests, zero_tolerance
from ablations.engine.analysis.tuning.findings import RankChange, Ranking
from ablations.engine.analysis.verdicts.ranking import ranking_text, ranking_verdict
from ablations.engine.study.design import Design, SearchCell
from ablations.engine.study.plan import CONFIGURATION, DEFAULT, TUNED
from ablations.engine.task.metric import Metric


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
    """Return the differences between all pairs of variants before and after tuning, and a verdict on their ranking.

    The differences of all pairs, before and after, are one family for Holm's adjustment; a pair without a test counts as one with a
    p-value of 1. The changes of these differences are another family.

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
    pairs = _pairs(design)
    if not pairs:
        return None
    differences, changes_of_pairs = [], []
    for cell, other in pairs:
        before, after = (_values(design, values, cell, at) - _values(design, values, other, at) for at in (DEFAULT, TUNED))
        differences += [before, after]
        changes_of_pairs.append(after - before)
    tolerance = zero_tolerance(values)
    found, changed = _one_family(paired_tests(differences, tolerance)), paired_tests(changes_of_pairs, tolerance)
    changes = tuple(
        RankChange(cell=cell.label, other=other.label, before=found[2 * i], after=found[2 * i + 1], change=changed[i])
        for i, (cell, other) in enumerate(pairs)
    )
    verdict = ranking_verdict(changes)
    best = _best_variants(design, values, formats.metric)
    return Ranking(verdict=verdict, text=ranking_text(verdict, changes, best, values.shape[1], formats), changes=changes)


def _groups(design: Design) -> list[list[SearchCell]]:
    """Return the variants to rank together, the baseline first: they have the same levels of the factors without a baseline."""
    assert design.search
    fixed = {name: level for name, level in design.baseline.items() if name != CONFIGURATION}
    groups: dict[tuple[tuple[str, str], ...], list[SearchCell]] = {}
    for cell in design.search.cells if fixed else ():
        groups.setdefault(tuple((name, level) for name, level in cell.levels.items() if name not in fixed), []).append(cell)
    return [sorted(group, key=lambda cell: any(cell.levels[name] != fixed[name] for name in fixed)) for group in groups.values()]


def _pairs(design: Design) -> list[tuple[SearchCell, SearchCell]]:
    """Return all pairs of variants, those with a baseline first."""
    return [(cell, other) for group in _groups(design) for other, cell in combinations(group, 2)]


def _best_variants(design: Design, values: Array, metric: Metric) -> list[tuple[str, str]]:
    """Return the variants with the best mean before and after tuning, for each group of variants that have all runs of a seed."""
    found = []
    for group in _groups(design):
        best = []
        for at in (DEFAULT, TUNED):
            of_group = np.array([_values(design, values, cell, at) for cell in group])
            common = np.isfinite(of_group).all(axis=0)
            if common.any():
                means = metric.minimized(of_group[:, common].mean(axis=1))
                best.append(group[int(np.argmin(means))].label)
        if len(best) == 2:
            found.append((best[0], best[1]))
    return found


def _values(design: Design, values: Array, cell: SearchCell, level: str) -> Array:
    row = design_row(design, cell, level)
    return np.full(values.shape[1], np.nan) if row is None else values[row]


def _one_family(found: Sequence[Estimate]) -> list[Estimate]:
    """Return the tests with p-values that are adjusted for all of them, including those that could not be made."""
    adjusted = holm_adjust([1.0 if each.p is None else each.p for each in found])
    return [each if each.p is None else replace(each, p_adjusted=float(p)) for each, p in zip(found, adjusted, strict=True)]
