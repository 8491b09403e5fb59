"""Numbers over seeds: t intervals, paired t tests, Holm's correction, analysis of variance, and what n seeds can detect."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.optimize import brentq
from scipy.special import gammaln
from scipy.stats import chi2, norm, t
from threadpoolctl import threadpool_limits

from ablations.engine.analysis.findings import CONFIDENCE_LEVEL, MIN_SEEDS_FOR_P_VALUE, Anova, AnovaTerm, Estimate

Array = npt.NDArray[np.float64]

ZERO_TOLERANCE_POINTS = 1e-9
"""Points that count as no difference: rounding makes 1e-14 of one, a single image of a million 1e-4."""
MAX_ANOVA_COEFFICIENTS = 1000
"""Coefficients of an analysis of variance, at most: they take 4 seconds."""


def estimate_means(values: npt.ArrayLike) -> list[Estimate]:
    """Mean, standard deviation and t interval of each row; columns are seeds, NaN where a seed has no value."""
    rows = np.asarray(values, float)
    known = np.isfinite(rows)
    n = known.sum(axis=1)
    mean = np.where(known, rows, 0).sum(axis=1) / np.maximum(n, 1)
    off = np.where(known, rows - mean[:, None], 0)
    spread = np.ptp(off, axis=1) > ZERO_TOLERANCE_POINTS
    std = np.where(spread, np.sqrt((off**2).sum(axis=1) / np.maximum(n - 1, 1)), 0)
    half = t.isf((1 - CONFIDENCE_LEVEL) / 2, np.maximum(n - 1, 1)) * std / np.sqrt(np.maximum(n, 1))
    return [
        Estimate(
            n=int(n[i]),
            mean=float(mean[i]) if n[i] else None,
            std=float(std[i]) if n[i] > 1 else None,
            low=float(mean[i] - half[i]) if spread[i] else None,
            high=float(mean[i] + half[i]) if spread[i] else None,
        )
        for i in range(len(rows))
    ]


def paired_tests(differences: npt.ArrayLike) -> list[Estimate]:
    """The same of paired differences, with two-sided t tests and effect sizes; all rows are one family for Holm's correction."""
    found = estimate_means(differences)
    tested = [i for i, each in enumerate(found) if each.low is not None and each.n >= MIN_SEEDS_FOR_P_VALUE]
    if tested:
        n, mean, std = np.array([(found[i].n, found[i].mean, found[i].std) for i in tested], float).T
        p = 2 * t.sf(abs(mean) / (std / np.sqrt(n)), n - 1)
        corrected = holm_adjust(p)
        effect = mean / std * hedges_correction(n - 1)
        for k, i in enumerate(tested):
            found[i] = replace(found[i], p=float(p[k]), p_adjusted=float(corrected[k]), effect_size=float(effect[k]))
    return found


def holm_adjust(p: npt.ArrayLike) -> Array:
    """p-values of a family, corrected for their number (Holm 1979)."""
    values = np.asarray(p, float)  # not by statsmodels' multipletests: it collects garbage, a quarter of a second a call
    order = np.argsort(values)
    corrected = np.empty_like(values)
    corrected[order] = np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1)).clip(max=1)
    return corrected


def hedges_correction(df: npt.ArrayLike) -> Array:
    """What takes the bias from a mean ÷ std, the std with so many degrees of freedom (Hedges 1981, equation 6e)."""
    half = np.asarray(df, float) / 2
    return np.asarray(np.exp(gammaln(half) - gammaln(half - 0.5)) / np.sqrt(half))


def fit_anova(errors: Sequence[float], seeds: Sequence[int], levels: Mapping[str, Sequence[int]], note: str = "") -> Anova | str:
    """Type II analysis of variance: seeds as blocks, factors, and their two-way interactions; each combination has a run.

    Args:
        errors: of each run that completed.
        seeds: of each run.
        levels: of each run, by factor, as numbers: names of factors and levels may hold anything, formulas may not.
        note: what the analysis is to be read with.

    Returns:
        The analysis, or why there is none.
    """
    factors = {f"C(f{i})": name for i, name in enumerate(levels)}
    terms = {"C(seed)": "seed", **factors}
    terms |= {f"{a}:{b}": f"{factors[a]} × {factors[b]}" for a, b in combinations(factors, 2)}
    free = [len(set(of_runs)) - 1 for of_runs in levels.values()]
    coefficients = len(set(seeds)) + sum(free) + sum(a * b for a, b in combinations(free, 2))
    if len(set(seeds)) < MIN_SEEDS_FOR_P_VALUE:
        return f"fewer than {MIN_SEEDS_FOR_P_VALUE} seeds"
    if np.ptp(errors) <= ZERO_TOLERANCE_POINTS:
        return "all errors are equal"
    if coefficients >= len(errors):
        return f"{len(errors)} runs and {coefficients} coefficients leave nothing to judge the terms by"
    if coefficients > MAX_ANOVA_COEFFICIENTS:
        return f"{coefficients} coefficients are too many"
    numbers = {f"f{i}": of_runs for i, of_runs in enumerate(levels.values())}
    return _fit_type_ii(pd.DataFrame({"error": errors, "seed": seeds, **numbers}), terms, note)


def _fit_type_ii(runs: pd.DataFrame, terms: Mapping[str, str], note: str) -> Anova | str:
    # These take a second to import, and nothing else needs them.
    from statsmodels.formula.api import ols
    from statsmodels.stats.anova import anova_lm

    # Beside busy processes the threads of linear algebra wait for each other: 20 s instead of 1 s for 400 coefficients.
    with threadpool_limits(1):
        model = ols(f"error ~ {' + '.join(terms)}", runs)
        if np.linalg.matrix_rank(model.exog.T @ model.exog, hermitian=True) < model.exog.shape[1]:
            return "too few runs completed to tell cells from seeds"
        fit = model.fit(method="qr")  # the default takes 20 times as long
        if np.sqrt(fit.mse_resid) <= ZERO_TOLERANCE_POINTS:
            return "the terms explain every error exactly"
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


def smallest_detectable(std: float, n: int, comparisons: int = 1, power: float = 0.8) -> float | None:
    """The smallest true mean difference that a paired t test over n seeds finds with such a power, two-sided.

    Args:
        std: of the differences, in points.
        n: seeds.
        comparisons: among which the 5 % are divided: the bound of Holm's correction for its smallest p.
        power: share of studies that find it.

    Returns:
        Points of error; None for fewer than 3 seeds, which give no p.
    """
    if n < MIN_SEEDS_FOR_P_VALUE:
        return None
    critical = float(t.isf((1 - CONFIDENCE_LEVEL) / comparisons / 2, n - 1))
    # The power as a mean over standard deviations that n seeds may show: SciPy's noncentral t gives NaN for a third of such values.
    shown = np.sqrt(chi2.ppf((np.arange(10_000) + 0.5) / 10_000, n - 1) / (n - 1))

    def missing(shift: float) -> float:
        return power - float(np.mean(norm.cdf(shift - critical * shown) + norm.cdf(-shift - critical * shown)))

    shift = float(brentq(missing, 0, 10 * (critical + 1)))
    return shift * std / math.sqrt(n)
