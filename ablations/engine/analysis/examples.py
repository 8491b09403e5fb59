"""Results per test example: intervals over seeds and test examples, a test of a single seed, and which examples changed.

Statistics over seeds alone describe further seeds on the same test examples. Those of this module also describe other test examples
of the same kind: seeds and examples are crossed random factors, since every run is tested on every example.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy.stats import binomtest, norm, t

from ablations.engine.analysis.evidence import Evidence
from ablations.engine.analysis.findings import Findings
from ablations.engine.analysis.statistics.estimate import CONFIDENCE_LEVEL, Estimate
from ablations.engine.analysis.statistics.inference import holm_adjust, zero_tolerance
from ablations.engine.study.design import Design

Wrong = npt.NDArray[np.bool_]
"""True for each test example that is predicted wrongly (seeds, examples)."""


@dataclass(frozen=True, kw_only=True)
class CrossedEstimate:
    """A mean over seeds and test examples, in percent or points, with an interval that covers further seeds and other examples."""

    seeds: int
    examples: int
    mean: float
    low: float | None = None
    """Lower end of the 95 % interval; needs 2 seeds and results that differ."""
    high: float | None = None
    """Upper end of the 95 % interval."""


@dataclass(frozen=True, kw_only=True)
class McNemarTest:
    """The exact McNemar test of two networks on the same examples. It says nothing about other seeds."""

    worse: int
    """Number of examples that only the baseline predicts correctly."""
    better: int
    """Number of examples that only the cell predicts correctly."""
    p: float
    """Two-sided exact p-value that both networks err equally often."""
    p_adjusted: float
    """p-value adjusted for the number of such tests in the study (Holm)."""


@dataclass(frozen=True, kw_only=True)
class ChangedExamples:
    """The test examples that are wrong in most seeds of one cell and right in most seeds of the other, by position from 0."""

    worse: tuple[int, ...]
    """Wrong in most seeds of the cell, right in most seeds of its baseline."""
    better: tuple[int, ...]
    """Right in most seeds of the cell, wrong in most seeds of its baseline."""


@dataclass(frozen=True, kw_only=True)
class CellExamples:
    """The error of one cell over seeds and test examples."""

    cell: str
    value: CrossedEstimate


@dataclass(frozen=True, kw_only=True)
class ComparisonExamples:
    """A cell and its baseline on the same test examples, over the seeds whose predictions both have."""

    cell: str
    baseline: str
    difference: CrossedEstimate
    """Error of the cell minus error of its baseline, paired by seed and example."""
    changed: ChangedExamples
    mcnemar: McNemarTest | None
    """Test of the networks of the only seed; None with more seeds."""


@dataclass(frozen=True, kw_only=True)
class ExampleFindings:
    """The findings about seeds and test examples. Cells without predictions are absent."""

    examples: int
    cells: tuple[CellExamples, ...]
    comparisons: tuple[ComparisonExamples, ...]


def scope_sentence(design: Design) -> str:
    """Return what the intervals of a study's report refer to, and the size of one test example where it is known."""
    count = design.test_examples
    if not count:
        return "Intervals are over seeds, with this recipe and machine."
    example = design.example
    these = " ".join(filter(None, ("these" if count > 1 else "this", f"{count:,}", design.metric.split, example)))
    step = f"1 {example} = {design.step:.2g} {design.metric.difference_unit}"
    return f"Intervals are over seeds, on {these}{'s' * (count > 1)}, with this recipe and machine; {step}."


def analyze_examples(evidence: Evidence, findings: Findings) -> ExampleFindings | None:
    """Return the findings about seeds and test examples; None if no run has predictions.

    Runs with another number of predictions than most cannot be compared and are left out.

    Args:
        evidence: Runs of the study, with `correct`.
        findings: Findings over seeds alone, than whose intervals those of the result are never narrower.
    """
    sizes = [len(correct) for correct in evidence.correct.values()]
    if not sizes:
        return None
    examples = max(sizes, key=sizes.count)
    wrong = {name: ~correct for name, correct in evidence.correct.items() if len(correct) == examples}
    design, (low, high) = evidence.design, evidence.design.metric.bounds
    by_cell = {cell.label: _by_seed(cell.fingerprints, wrong) for cell in design.cells}
    cells = [
        CellExamples(cell=cell.label, value=crossed_estimate(100.0 * np.array([*of_cell.values()]), (low, high), cell.value))
        for cell in findings.cells
        if (of_cell := by_cell[cell.label])
    ]
    over_seeds = {each.cell: each for each in findings.comparisons}
    comparisons = []
    for cell in design.cells:
        baseline = design.baseline_label(cell)
        if baseline is None:
            continue
        given, both = over_seeds.get(cell.label), by_cell[cell.label].keys() & by_cell[baseline].keys()
        if seeds := sorted(seed for seed in both if given is None or seed < given.planned):
            pair = (np.array([by_cell[label][seed] for seed in seeds]) for label in (cell.label, baseline))
            bounds, difference = (low - high, high - low), given.difference if given else None
            comparisons.append(_compare(cell.label, baseline, *pair, bounds=bounds, over_seeds=difference))
    return ExampleFindings(examples=examples, cells=tuple(cells), comparisons=_with_adjusted_p(comparisons))


def crossed_estimate(
    values: npt.NDArray[np.floating], bounds: tuple[float, float], over_seeds: Estimate | None = None
) -> CrossedEstimate:
    """Return the mean of values over seeds and test examples, with an interval for further seeds and other examples.

    The variance of the mean has a part from seeds, which includes that of single predictions, and a part from examples. Mean
    squares estimate both, as in a random-effects analysis of variance with two crossed factors. Each part has an interval: a t
    interval for seeds, and for examples Wilson's, for as many independent examples as would have this variance. Each side of the
    result has the length √(seeds² + examples²) of theirs (Zou and Donner 2008), so that the result is never narrower than the
    interval over seeds alone.

    Args:
        values: One value per seed and example (seeds, examples).
        bounds: Least and largest possible mean.
        over_seeds: Estimate over seeds alone, whose interval may be wider than a t interval, as after several looks.
    """
    seeds, examples = values.shape
    of_seeds, of_examples, mean = values.mean(axis=1), values.mean(axis=0), float(values.mean())
    estimate = CrossedEstimate(seeds=seeds, examples=examples, mean=mean)
    if seeds < 2 or examples < 2:
        return estimate
    residuals = values - of_seeds[:, None] - of_examples + mean
    residual = float((residuals**2).sum()) / ((seeds - 1) * (examples - 1))
    from_seeds = float(of_seeds.var(ddof=1)) / seeds
    from_examples = max(0.0, float(of_examples.var(ddof=1)) / examples - residual / (seeds * examples))
    below = above = float(t.isf((1 - CONFIDENCE_LEVEL) / 2, seeds - 1)) * math.sqrt(from_seeds)
    if over_seeds and over_seeds.mean is not None and over_seeds.low is not None and over_seeds.high is not None:
        below, above = max(below, over_seeds.mean - over_seeds.low), max(above, over_seeds.high - over_seeds.mean)
    low, high = _wilson_interval(mean, from_examples, bounds)
    below, above = math.hypot(below, mean - low), math.hypot(above, high - mean)
    if below + above <= zero_tolerance(values):
        return estimate
    return replace(estimate, low=max(mean - below, bounds[0]), high=min(mean + above, bounds[1]))


def _wilson_interval(mean: float, variance: float, bounds: tuple[float, float]) -> tuple[float, float]:
    """Return Wilson's score interval of a mean within bounds, for the number of examples that gives its variance.

    Unlike mean ± 1.96 standard errors, it allows for a variance that is larger where the mean is farther from a bound.
    """
    (least, largest), z = bounds, float(norm.isf((1 - CONFIDENCE_LEVEL) / 2))
    share = (mean - least) / (largest - least)
    spread = share * (1 - share)
    if variance == 0 or spread <= 0:
        return mean, mean
    shrinkage = z**2 * variance / (largest - least) ** 2 / spread  # z² ÷ number of examples
    center = (share + shrinkage / 2) / (1 + shrinkage)
    half = math.sqrt(shrinkage * spread + shrinkage**2 / 4) / (1 + shrinkage)
    return least + (center - half) * (largest - least), least + (center + half) * (largest - least)


def mcnemar_test(wrong: npt.NDArray[np.bool_], of_baseline: npt.NDArray[np.bool_]) -> McNemarTest:
    """Return the exact McNemar test of two networks, given which examples each predicts wrongly (examples,)."""
    worse, better = int(np.sum(wrong & ~of_baseline)), int(np.sum(~wrong & of_baseline))
    p = float(binomtest(worse, worse + better).pvalue) if worse + better else 1.0
    return McNemarTest(worse=worse, better=better, p=p, p_adjusted=p)


def changed_examples(wrong: Wrong, of_baseline: Wrong) -> ChangedExamples:
    """Return the examples that are wrong in most seeds of one cell and right in most seeds of the other.

    An example that is wrong in exactly half of the seeds is neither.
    """
    share, of_other = wrong.mean(axis=0), of_baseline.mean(axis=0)
    worse, better = (share > 0.5) & (of_other < 0.5), (share < 0.5) & (of_other > 0.5)
    return ChangedExamples(worse=tuple(np.flatnonzero(worse).tolist()), better=tuple(np.flatnonzero(better).tolist()))


def _by_seed(fingerprints: Sequence[str], wrong: Mapping[str, npt.NDArray[np.bool_]]) -> dict[int, npt.NDArray[np.bool_]]:
    return {seed: wrong[fingerprint] for seed, fingerprint in enumerate(fingerprints) if fingerprint in wrong}


def _compare(
    cell: str, baseline: str, wrong: Wrong, of_baseline: Wrong, *, bounds: tuple[float, float], over_seeds: Estimate | None
) -> ComparisonExamples:
    return ComparisonExamples(
        cell=cell,
        baseline=baseline,
        difference=crossed_estimate(100.0 * (wrong.astype(float) - of_baseline), bounds, over_seeds),
        changed=changed_examples(wrong, of_baseline),
        mcnemar=mcnemar_test(wrong[0], of_baseline[0]) if len(wrong) == 1 else None,
    )


def _with_adjusted_p(comparisons: Sequence[ComparisonExamples]) -> tuple[ComparisonExamples, ...]:
    """Return comparisons with Holm's adjustment of the p-values of single seeds."""
    adjusted = iter(holm_adjust([each.mcnemar.p for each in comparisons if each.mcnemar]).tolist())
    return tuple(
        replace(each, mcnemar=replace(each.mcnemar, p_adjusted=next(adjusted))) if each.mcnemar else each for each in comparisons
    )
