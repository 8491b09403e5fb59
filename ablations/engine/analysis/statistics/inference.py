"""Inference over seeds: t intervals, paired tests, and Holm's adjustment."""

import math
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy.special import gammaln, nctdtrinc, stdtr, stdtrit  # the imports of scipy.stats take a second

from ablations.engine.analysis.statistics.estimate import CONFIDENCE_LEVEL, MIN_SEEDS_FOR_P_VALUE, Estimate

Array = npt.NDArray[np.float64]

SIGNIFICANCE_LEVEL = 1 - CONFIDENCE_LEVEL
RELATIVE_TOLERANCE = 1e-11
"""Differences up to this fraction of the largest value count as zero. Rounding errors are about 1e-16 of it."""


@dataclass(frozen=True, kw_only=True)
class Scale:
    """The scale of a study's values, which limits what a test of their differences can resolve."""

    tolerance: float = 0.0
    """Size up to which values differ by rounding only."""
    step: float = 0.0
    """Smallest possible change of a value, such as that of one test image; 0 if values are continuous."""
    share: float = 1.0
    """Fraction of the significance level that the present look at the study may spend."""


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
    return _estimate_rows(rows, Scale(tolerance=zero_tolerance(rows) if tolerance is None else tolerance))


def paired_tests(differences: npt.ArrayLike, tolerance: float | None = None) -> list[Estimate]:
    """Return estimates of paired differences with two-sided tests, adjusted as one family by Holm's method.

    Args:
        differences: A row per difference, a column per seed.
        tolerance: `zero_tolerance` of the values that were subtracted; None to take it from the differences.
    """
    rows = np.asarray(differences, float)
    found = estimate_differences(rows, Scale(tolerance=zero_tolerance(rows) if tolerance is None else tolerance))
    tested = [i for i, each in enumerate(found) if each.p is not None]
    for i, p in zip(tested, holm_adjust([found[i].p or 0.0 for i in tested]), strict=True):
        found[i] = replace(found[i], p_adjusted=float(p))
    return found


def estimate_differences(differences: npt.ArrayLike, scale: Scale, combinations: int = 1) -> list[Estimate]:
    """Return estimates of paired differences with two-sided tests of zero that are not adjusted for their number.

    The test is a paired t test. Differences that vary by less than one step of the metric have a standard deviation that says
    nothing about their true spread, so that the t test counts it as one step; there, the exact sign-flip test decides if its p is
    smaller. It assumes only that a difference and its negative are equally likely without an effect.

    Args:
        differences: A row per difference, a column per seed; NaN without a result.
        scale: Scale of the values that were subtracted.
        combinations: Number of differences that each value is the mean of, which makes its steps and their spread smaller.
    """
    rows = np.asarray(differences, float)
    step, floor = scale.step / combinations, scale.step / math.sqrt(combinations)
    found = _estimate_rows(rows, scale, floor)
    for i, each in enumerate(found):
        if each.n < MIN_SEEDS_FOR_P_VALUE or each.mean is None or each.std is None:
            continue
        if not each.se and not each.mean:
            continue  # no difference in any seed
        known = rows[i][np.isfinite(rows[i])]
        flips = sign_flip_p_value(known, step or abs(each.mean)) if each.std < floor or not each.se else 1.0
        t_p = two_sided_p_value(each.mean / each.se, each.n - 1) if each.se else 1.0
        size = _effect_size(each) if each.std else None
        found[i] = replace(each, p=min(1.0, min(t_p, flips) / scale.share), effect_size=size)
    return found


def estimate_average(parts: npt.ArrayLike, scale: Scale, *, whole: bool = False) -> tuple[Estimate, tuple[int, ...]]:
    """Return the mean over combinations of paired differences, tested, and the rows of the combinations in it.

    With all results, this is the mean per seed, tested over seeds. Where results are missing, it is the mean of the combinations'
    means, each over the seeds that it has. Its variance sums over seeds, since the differences of a seed depend on each other, and
    its degrees of freedom are those of the combination with the fewest seeds, which is cautious. Combinations with fewer than
    three seeds are left out if another one has three.

    Args:
        parts: A row per combination, a column per seed; NaN without a result.
        scale: Scale of the values that were subtracted.
        whole: True if the mean means something with all combinations only. One that has fewer than two seeds then leaves no
            estimate, and the degrees of freedom are those of the median combination.
    """
    rows = np.asarray(parts, float)
    counts = np.isfinite(rows).sum(axis=1)
    enough = counts >= min(MIN_SEEDS_FOR_P_VALUE, max(1, counts.max(initial=0)))
    if whole:
        enough = np.full(len(rows), bool(len(rows)) and bool(counts.min() >= min(2, counts.max())))
    used = tuple(np.flatnonzero(enough).tolist())
    rows, counts = rows[enough], counts[enough]
    if not used:
        return Estimate(n=0), ()
    known = np.isfinite(rows)
    if (known == known[0]).all():
        return estimate_differences(rows.mean(axis=0)[None], scale, len(rows))[0], used
    means = np.where(known, rows, 0).sum(axis=1) / counts
    n = int(np.median(counts) if whole else counts.min())
    mean, std, se = float(means.mean()), None, None
    if n > 1:
        off = np.where(known, rows - means[:, None], 0) * (np.sqrt(counts / (counts - 1)) / counts)[:, None]
        se = math.sqrt(float((off.mean(axis=0) ** 2).sum()))
        se = max(se if se > scale.tolerance else 0.0, scale.step / math.sqrt(len(rows) * n))
        std = se * math.sqrt(n)
    found = _with_interval(Estimate(n=n, mean=mean, std=std, se=se), scale.share)
    if n < MIN_SEEDS_FOR_P_VALUE or not se:
        return found, used
    p = min(1.0, two_sided_p_value(mean / se, n - 1) / scale.share)
    return replace(found, p=p, effect_size=_effect_size(found)), used


def selected_interval(difference: Estimate, fraction: float, share: float) -> Estimate:
    """Return a difference with the interval of one that was selected (false coverage rate; Benjamini and Yekutieli 2005).

    Args:
        difference: A difference with an interval.
        fraction: Fraction of the tested differences that were selected.
        share: `Scale.share` of its test.
    """
    if difference.mean is None or not difference.se:
        return difference
    half = critical_value(SIGNIFICANCE_LEVEL * share * fraction, difference.n - 1) * difference.se
    return replace(difference, selected_low=difference.mean - half, selected_high=difference.mean + half)


def equivalence_p_value(difference: Estimate, margin: float, share: float) -> float | None:
    """Return the p-value of the two one-sided t tests (TOST) that the true difference is within ± margin; None without a test."""
    if difference.mean is None or not difference.se or difference.n < MIN_SEEDS_FOR_P_VALUE:
        return None
    return min(1.0, float(stdtr(difference.n - 1, (abs(difference.mean) - margin) / difference.se)) / share)


def sign_flip_p_value(differences: npt.ArrayLike, step: float) -> float:
    """Return the exact two-sided p-value of the sign-flip test: the share of all choices of signs with so large a sum.

    Args:
        differences: Paired differences.
        step: Differences count in whole multiples of it.
    """
    sizes = np.rint(np.abs(np.asarray(differences, float)) / step).astype(int)
    total = int(sizes.sum())
    ways = np.zeros(2 * total + 1)  # ways[total + s]: share of the choices with sum s
    ways[total] = 1.0
    for size in sizes:
        moved = np.zeros_like(ways)
        moved[size:] += ways[: len(ways) - size]
        moved[: len(ways) - size] += ways[size:]
        ways = moved / 2
    observed = abs(int(np.rint(np.asarray(differences, float) / step).astype(int).sum()))
    sums = np.abs(np.arange(-total, total + 1))
    return float(ways[sums >= observed].sum())


def _estimate_rows(rows: Array, scale: Scale, step: float = 0.0) -> list[Estimate]:
    """Return mean, standard deviation and interval of each row; a standard deviation below one step counts as one step."""
    known = np.isfinite(rows)
    n = known.sum(axis=1)
    mean = np.where(known, rows, 0).sum(axis=1) / np.maximum(n, 1)
    off = np.where(known, rows - mean[:, None], 0)
    varies = np.ptp(off, axis=1) > scale.tolerance
    mean = np.where(abs(mean) <= scale.tolerance, 0, mean)
    std = np.where(varies, np.sqrt((off**2).sum(axis=1) / np.maximum(n - 1, 1)), 0)
    se = np.maximum(std, step) / np.sqrt(np.maximum(n, 1))
    return [
        _with_interval(
            Estimate(
                n=int(n[i]),
                mean=float(mean[i]) if n[i] else None,
                std=float(std[i]) if n[i] > 1 else None,
                se=float(se[i]) if n[i] > 1 else None,
            ),
            scale.share,
        )
        for i in range(len(rows))
    ]


def _with_interval(estimate: Estimate, share: float) -> Estimate:
    if estimate.mean is None or not estimate.se:
        return estimate
    half = critical_value(SIGNIFICANCE_LEVEL * share, estimate.n - 1) * estimate.se
    return replace(estimate, low=estimate.mean - half, high=estimate.mean + half)


def two_sided_p_value(statistic: float, df: int) -> float:
    """Return the two-sided p-value of a t statistic."""
    return float(2 * stdtr(df, -abs(statistic)))  # scipy.stats.t.sf does the same; its checks of arguments take 70 µs


def critical_value(level: float, df: int) -> float:
    """Return the t statistic whose two-sided p-value is `level`."""
    return float(-stdtrit(df, level / 2))


def _effect_size(estimate: Estimate) -> float | None:
    return (
        float(estimate.mean / estimate.std * hedges_correction(estimate.n - 1))
        if estimate.mean is not None and estimate.std
        else None
    )


def effect_size_interval(difference: Estimate) -> tuple[float, float] | None:
    """Return the 95 % interval of the standardized mean difference, from the noncentral t distribution; None without a test."""
    if difference.effect_size is None or difference.mean is None or not difference.std:
        return None
    df, root = difference.n - 1, math.sqrt(difference.n)
    observed = difference.mean / difference.std * root
    low, high = (float(nctdtrinc(df, q, abs(observed))) for q in ((1 + CONFIDENCE_LEVEL) / 2, (1 - CONFIDENCE_LEVEL) / 2))
    if observed < 0:
        low, high = -high, -low
    factor = float(hedges_correction(df)) / root
    return low * factor, high * factor


def shifted_p_value(mean: float, std: float, n: int, threshold: float) -> float:
    """Return the p-value of a two-sided t test that the true mean of n differences is `threshold`; `std` is above zero."""
    return two_sided_p_value((mean - threshold) / (std / math.sqrt(n)), n - 1)


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
