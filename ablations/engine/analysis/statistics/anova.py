"""Analysis of variance: how much of the variance factors, interactions and seeds explain. A description, not a test."""

import math
from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np
import pandas as pd
from scipy.stats import chi2
from threadpoolctl import threadpool_limits

from ablations.engine.analysis.findings import Anova, AnovaTerm
from ablations.engine.analysis.statistics.estimate import MIN_SEEDS_FOR_P_VALUE
from ablations.engine.analysis.statistics.inference import SIGNIFICANCE_LEVEL, Array, zero_tolerance

MAX_ANOVA_COEFFICIENTS = 1000
"""Largest number of coefficients in an analysis of variance; a fit of that size takes 4 seconds."""


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
            partial_eta_squared=float(table.loc[code, "sum_sq"] / (table.loc[code, "sum_sq"] + residual)),
        )
        for code, name in terms.items()
    ]
    return Anova(terms=tuple(lines), residual_df=float(fit.df_resid), note=note)


def spreads_differ(values: Array, step: float) -> bool:
    """Return whether the standard deviations of cells differ, by Bartlett's test at 5 %; it assumes normal values.

    Args:
        values: A row per cell, a column per seed, NaN without a result.
        step: Smallest possible change of a value; a smaller standard deviation counts as one step.
    """
    rows = [row[np.isfinite(row)] for row in values]
    counts = np.array([len(row) for row in rows])
    variances = np.array([max(np.var(row, ddof=1), step**2 / 12) if len(row) > 1 else np.nan for row in rows])
    used = np.isfinite(variances) & (variances > zero_tolerance(values) ** 2)
    df, variances = counts[used] - 1, variances[used]
    if len(variances) < 2:
        return False
    pooled = float((df * variances).sum() / df.sum())
    statistic = df.sum() * math.log(pooled) - float((df * np.log(variances)).sum())
    correction = 1 + ((1 / df).sum() - 1 / df.sum()) / (3 * (len(df) - 1))
    return bool(chi2.sf(statistic / correction, len(df) - 1) < SIGNIFICANCE_LEVEL)
