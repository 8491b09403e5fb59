"""Inference over seeds: t intervals, paired t tests, Holm's adjustment, and analysis of variance."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.special import gammaln
from scipy.stats import t
from threadpoolctl import threadpool_limits

from ablations.engine.analysis.findings import CONFIDENCE_LEVEL, MIN_SEEDS_FOR_P_VALUE, Anova, AnovaTerm, Estimate

Array = npt.NDArray[np.float64]

RELATIVE_TOLERANCE = 1e-11
"""Differences up to this fraction of the largest value count as zero. Rounding errors are about 1e-16 of it."""
MAX_ANOVA_COEFFICIENTS = 1000
"""Largest number of coefficients in an analysis of variance; a fit of that size takes 4 seconds."""


def zero_tolerance(values: npt.ArrayLike) -> float:
    """Return the size up to which differences between these values are rounding errors. NaN means that there is no value."""
    sizes = np.abs(np.asarray(values, float))
    return RELATIVE_TOLERANCE * float(sizes.max(initial=0, where=np.isfinite(sizes)))


def estimate_means(values: npt.ArrayLike, tolerance: float | None = None) -> list[Estimate]:
    """Return mean, standard deviation and t interval of each row.

    Args:
        values: A row per quantity, a column per seed. NaN means that a seed has no value.
        tolerance: Size up to which values differ by rounding only; None to take it from the values. Differences need that of the
            values they are made of. A mean within it, of values that do not vary, is exactly 0.
    """
    rows = np.asarray(values, float)
    tolerance = zero_tolerance(rows) if tolerance is None else tolerance
    known = np.isfinite(rows)
    n = known.sum(axis=1)
    mean = np.where(known, rows, 0).sum(axis=1) / np.maximum(n, 1)
    off = np.where(known, rows - mean[:, None], 0)
    varies = np.ptp(off, axis=1) > tolerance
    mean = np.where(~varies & (abs(mean) <= tolerance), 0, mean)
    std = np.where(varies, np.sqrt((off**2).sum(axis=1) / np.maximum(n - 1, 1)), 0)
    half = t.isf((1 - CONFIDENCE_LEVEL) / 2, np.maximum(n - 1, 1)) * std / np.sqrt(np.maximum(n, 1))
    return [
        Estimate(
            n=int(n[i]),
            mean=float(mean[i]) if n[i] else None,
            std=float(std[i]) if n[i] > 1 else None,
            low=float(mean[i] - half[i]) if varies[i] else None,
            high=float(mean[i] + half[i]) if varies[i] else None,
        )
        for i in range(len(rows))
    ]


def paired_tests(differences: npt.ArrayLike, tolerance: float | None = None) -> list[Estimate]:
    """Return estimates of paired differences with two-sided t tests and effect sizes.

    All rows form one family for Holm's adjustment.

    Args:
        differences: A row per difference, a column per seed.
        tolerance: `zero_tolerance` of the values that were subtracted; None to take it from the differences.
    """
    found = estimate_means(differences, tolerance)
    tested = [i for i, each in enumerate(found) if each.low is not None and each.n >= MIN_SEEDS_FOR_P_VALUE]
    if tested:
        n, mean, std = np.array([(found[i].n, found[i].mean, found[i].std) for i in tested], float).T
        p = 2 * t.sf(abs(mean) / (std / np.sqrt(n)), n - 1)
        corrected = holm_adjust(p)
        effect = mean / std * hedges_correction(n - 1)
        for k, i in enumerate(tested):
            found[i] = replace(found[i], p=float(p[k]), p_adjusted=float(corrected[k]), effect_size=float(effect[k]))
    return found


def shifted_p_value(mean: float, std: float, n: int, threshold: float) -> float:
    """Return the p-value of a two-sided t test that the true mean of n differences is `threshold`; `std` is above zero."""
    return float(2 * t.sf(abs(mean - threshold) / (std / math.sqrt(n)), n - 1))


def holm_adjust(p: npt.ArrayLike) -> Array:
    """Return the adjusted p-values of a family of tests (Holm 1979)."""
    values = np.asarray(p, float)  # statsmodels' multipletests runs the garbage collector, which takes 0.25 s per call
    order = np.argsort(values)
    corrected = np.empty_like(values)
    corrected[order] = np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1)).clip(max=1)
    return corrected


def hedges_correction(df: npt.ArrayLike) -> Array:
    """Return the factor that removes the small-sample bias of mean ÷ standard deviation (Hedges 1981, equation 6e).

    Args:
        df: Degrees of freedom of the standard deviation.
    """
    half = np.asarray(df, float) / 2
    return np.asarray(np.exp(gammaln(half) - gammaln(half - 0.5)) / np.sqrt(half))


def fit_anova(values: Sequence[float], seeds: Sequence[int], levels: Mapping[str, Sequence[int]], note: str = "") -> Anova | str:
    """Fit a type II analysis of variance with seeds as blocks, factors, and two-way interactions.

    Args:
        values: Value of each completed run. Every combination of levels has at least one run.
        seeds: Seed of each run.
        levels: Level of each run as a number, by factor. Numbers, because names of levels may hold characters that a formula
            cannot.
        note: Caveats of the analysis.

    Returns:
        The analysis, or the reason why there is none.
    """
    factors = {f"C(f{i})": name for i, name in enumerate(levels)}
    terms = {"C(seed)": "seed", **factors}
    terms |= {f"{a}:{b}": f"{factors[a]} × {factors[b]}" for a, b in combinations(factors, 2)}
    free = [len(set(of_runs)) - 1 for of_runs in levels.values()]
    coefficients = len(set(seeds)) + sum(free) + sum(a * b for a, b in combinations(free, 2))
    if len(set(seeds)) < MIN_SEEDS_FOR_P_VALUE:
        return f"it needs {MIN_SEEDS_FOR_P_VALUE} seeds, and the study has {len(set(seeds))}"
    if np.ptp(values) <= zero_tolerance(values):
        return "all runs have the same value"
    if coefficients >= len(values):
        return f"{len(values)} runs leave no residual degrees of freedom for {coefficients} coefficients"
    if coefficients > MAX_ANOVA_COEFFICIENTS:
        return f"it would need {coefficients:,} coefficients, and at most {MAX_ANOVA_COEFFICIENTS:,} are fitted"
    numbers = {f"f{i}": of_runs for i, of_runs in enumerate(levels.values())}
    return _fit_type_ii(pd.DataFrame({"value": values, "seed": seeds, **numbers}), terms, note)


def _fit_type_ii(runs: pd.DataFrame, terms: Mapping[str, str], note: str) -> Anova | str:
    # Imported here because the import takes a second, and no other function needs these names.
    from statsmodels.formula.api import ols
    from statsmodels.stats.anova import anova_lm

    # On a busy machine, the threads of the linear algebra library wait for each other: 20 s instead of 1 s for 400 coefficients.
    with threadpool_limits(1):
        model = ols(f"value ~ {' + '.join(terms)}", runs)
        if np.linalg.matrix_rank(model.exog.T @ model.exog, hermitian=True) < model.exog.shape[1]:
            return "too few runs completed to separate the effects of cells from those of seeds"
        fit = model.fit(method="qr")  # the default method takes 20 times as long
        if np.sqrt(fit.mse_resid) <= zero_tolerance(runs["value"]):
            return "the residual variance is zero: factors and seeds explain every value exactly"
        table = anova_lm(fit, typ=2)
    residual = table.loc["Residual", "sum_sq"]
    lines = [
        AnovaTerm(
            term=name,
            df=float(table.loc[code, "df"]),
            f=float(table.loc[code, "F"]),
            p=float(table.loc[code, "PR(>F)"]),
            partial_eta_squared=float(table.loc[code, "sum_sq"] / (table.loc[code, "sum_sq"] + residual)),
        )
        for code, name in terms.items()
    ]
    return Anova(terms=tuple(lines), residual_df=float(fit.df_resid), note=note)
