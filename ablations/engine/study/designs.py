"""Designs: which combinations of the factors' levels a study trains, and which effects these tell apart.

A combination is a tuple of levels in the order of the factors, and the baseline consists of the reference levels.
"""

import itertools
import math
from collections.abc import Collection, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from ablations.engine.study.factors import Level, format_level
from resnet_core.fields import counted, reject

FACTORIAL, ONE_AT_A_TIME, LADDER, SCREENING, SCREENING_III = DESIGNS = (
    "factorial",
    "one-at-a-time",
    "ladder",
    "screening",
    "screening-iii",
)
"""Designs of a study: all combinations; the baseline and each other level by itself; levels added one after another; and two-level
fractional factorial designs of resolution IV and III."""
RESOLUTIONS = {SCREENING: 4, SCREENING_III: 3}
"""Resolution of each screening. With IV, main effects are not aliased with two-way interactions; with III, they are."""
MAX_SCREENING_FACTORS = 15
"""Largest number of factors of a screening. It takes 16 combinations with resolution III, 32 with IV."""
GENERATORS = {
    3: {3: "ab", 7: "abc ab ac bc", 15: "abc bcd acd abd abcd ab ac ad bc bd cd"},
    4: {
        4: "abc",
        5: "abcd",
        8: "abc bcd acd abd",
        10: "abcd abce abde acde bcde",
        15: "abc bcd cde acd ade bde abe abd bce ace abcde",
    },
}
"""Generators of the factors beyond the first ones (a, b, …) by resolution and by largest number of factors; the first so many are
used. All have minimum aberration (NIST/SEMATECH e-Handbook, table 5.3.3.4.7; Chen, Sun and Wu 1993, tables 1 to 3)."""


def check_design(option: str, kind: object) -> None:
    """Raise ConfigError for an unknown design."""
    if kind not in DESIGNS:
        raise reject(option, kind, f"accepted: {', '.join(DESIGNS)}")


def combinations(kind: str, factors: Mapping[str, Sequence[Level]], baseline: Mapping[str, Level]) -> tuple[tuple[Level, ...], ...]:
    """Return the combinations of levels of a design, in the order in which results are shown.

    Args:
        kind: one of `DESIGNS`.
        factors: levels of each factor.
        baseline: reference level of every factor that has several levels; not used by a factorial design.

    Raises:
        ConfigError: the factors do not allow the design.
    """
    if kind == FACTORIAL:
        return tuple(itertools.product(*factors.values()))
    varied = [name for name, levels in factors.items() if len(levels) > 1]
    if len(varied) < 2:
        has = f"the study has {counted(len(varied), 'factor')} with several levels"
        raise reject("design", kind, f"{has}; accepted: two such factors or more, or the design {FACTORIAL}")
    start = {name: baseline.get(name, levels[0]) for name, levels in factors.items()}
    if kind in RESOLUTIONS:
        return _screening(kind, factors, start, varied)
    found = [dict(start)]
    for name in varied:
        for level in factors[name]:
            if level != start[name]:
                found.append({**(found[-1] if kind == LADDER else start), name: level})
    return tuple(tuple(levels.values()) for levels in found)


def _screening(
    kind: str, factors: Mapping[str, Sequence[Level]], start: Mapping[str, Level], varied: Sequence[str]
) -> tuple[tuple[Level, ...], ...]:
    resolution = RESOLUTIONS[kind]
    for name in varied:
        if len(factors[name]) != 2:
            levels = ", ".join(map(format_level, factors[name]))
            raise reject("design", kind, f"{name} has {len(factors[name])} levels ({levels}); accepted: two of each factor")
    if not resolution <= len(varied) <= MAX_SCREENING_FACTORS:
        accepted = f"accepted: {resolution} to {MAX_SCREENING_FACTORS}"
        raise reject("design", kind, f"the study has {len(varied)} factors with two levels; {accepted}")
    signs = fraction(len(varied), resolution)
    # Of the fractions that differ in the signs of their generators only, the one that has the baseline: it is then a cell.
    signs = signs * -signs[0]
    found = []
    for row in signs.tolist():
        changed = {name: other_level(factors[name], start[name]) for name, sign in zip(varied, row, strict=True) if sign > 0}
        found.append(tuple({**start, **changed}.values()))
    return tuple(found)


def fraction(factors: int, resolution: int) -> npt.NDArray[np.int_]:
    """Return a fractional factorial design: 1 and -1, a row per combination, a column per factor. The first row is the lowest."""
    generators = next(words.split() for most, words in GENERATORS[resolution].items() if factors <= most)
    base = max(max(map(ord, word)) for word in generators) - ord("a") + 1
    full = np.array(list(itertools.product((-1, 1), repeat=base)))
    columns = [full[:, [ord(letter) - ord("a") for letter in word]].prod(axis=1) for word in generators]
    return np.column_stack([full, *columns])[:, :factors]


def other_level(levels: Sequence[Level], reference: Level) -> Level:
    """Return the level of a factor with two levels that is not the reference."""
    (other,) = (level for level in levels if level != reference)
    return other


def check_combinations(kind: str, trained: Collection[object], refused: Sequence[tuple[object, str]]) -> None:
    """Raise ConfigError if a design that needs all of its combinations has some that cannot be trained.

    A screening without one of its cells no longer separates the main effects, and a ladder has a step of two changes. Other designs
    only lose the comparisons of that cell.

    Args:
        kind: one of `DESIGNS`.
        trained: combinations that can be trained.
        refused: combinations that cannot, each with the reason.
    """
    if refused and kind in (LADDER, *RESOLUTIONS):
        cell, reason = refused[0]
        total = len(trained) + len(refused)
        why = f"needs each of its {total} combinations, and {cell} cannot be trained: {reason}"
        raise reject("design", kind, f"{why}; accepted: other levels")


def resolution(signs: npt.NDArray[np.int_]) -> int:
    """Return the resolution of a two-level design: the smallest number of factors whose product is constant.

    Args:
        signs: 1 and -1, a row per combination, a column per factor.

    Returns:
        The resolution; the number of factors plus one for a full factorial design, in which no product is constant.
    """
    factors: int = signs.shape[1]
    for length in range(1, factors + 1):
        for columns in itertools.combinations(range(factors), length):
            if abs(int(signs[:, columns].prod(axis=1).sum())) == len(signs):
                return length
    return factors + 1


def alias_groups(signs: npt.NDArray[np.int_], names: Sequence[str]) -> list[tuple[list[str], npt.NDArray[np.int_]]]:
    """Return the main effects and two-way interactions of a two-level design, grouped by what it cannot tell apart.

    Args:
        signs: 1 and -1, a row per combination, a column per factor.
        names: names of the factors.

    Returns:
        For each group, the names of its effects (`norm`, `squeeze × stem`, or `−squeeze × stem` for one that is subtracted), and
        the signs of the contrast that estimates their sum. Main effects come first. A constant product is no effect.
    """
    columns = [(name, signs[:, i]) for i, name in enumerate(names)]
    pairs = itertools.combinations(range(len(names)), 2)
    columns += [(f"{names[i]} × {names[j]}", signs[:, i] * signs[:, j]) for i, j in pairs]
    groups: list[tuple[list[str], npt.NDArray[np.int_]]] = []
    for text, column in columns:
        if abs(column.sum()) == len(column):
            continue
        for known, contrast in groups:
            agreement = int((contrast * column).sum())
            if abs(agreement) == len(column):
                known.append(text if agreement > 0 else f"−{text}")
                break
        else:
            groups.append(([text], column))
    return groups


def size(kind: str, factors: Mapping[str, Sequence[Level]]) -> int:
    """Return the number of combinations of a design, without making those of a factorial one, which may exceed any memory.

    Raises:
        ConfigError: the factors do not allow the design.
    """
    if kind == FACTORIAL:
        return math.prod(map(len, factors.values()))
    return len(combinations(kind, factors, {}))
