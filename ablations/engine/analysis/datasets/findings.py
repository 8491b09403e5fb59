"""Findings over several data sets as plain data. The terminal, the page, its figures and its JSON display them."""

from collections.abc import Mapping
from dataclasses import dataclass

from ablations.engine.analysis.evidence import Evidence
from ablations.engine.analysis.findings import Effect, Findings
from ablations.engine.analysis.statistics.estimate import CONFIDENCE_LEVEL, Estimate
from ablations.engine.task.metric import Metric

COMMON, DIFFERS, NOT_SHOWN, UNTESTED = (
    "common effect",
    "differs between data sets",
    "no common effect shown",
    "cannot be said",
)
"""Verdicts on an effect over several data sets."""


@dataclass(frozen=True)
class DatasetStudy:
    """The study on one data set."""

    name: str
    """Name of the data set, as in `Study.datasets`."""
    evidence: Evidence
    findings: Findings


@dataclass(frozen=True, kw_only=True)
class Heterogeneity:
    """Differences of the true effects between these data sets."""

    q: float
    """Cochran's Q: squared distances of the effects from their weighted mean, in units of their variances over seeds."""
    df: int
    i_squared: float
    """Share of the variance of the effects that seeds do not explain, in percent."""
    tau: float
    """Standard deviation of the true effects (Paule and Mandel), in `Metric.difference_unit`."""
    pair: tuple[str, str]
    """The two data sets whose effects differ most clearly."""
    p: float
    """p-value that the true effects are equal: Welch's t tests of all pairs of data sets, adjusted for their number."""
    p_adjusted: float | None = None

    @property
    def significant(self) -> bool:
        """True if the effects are shown to differ."""
        return self.p_adjusted is not None and self.p_adjusted < 1 - CONFIDENCE_LEVEL


@dataclass(frozen=True, kw_only=True)
class EffectOverDatasets:
    """The average effect of a level relative to its reference level, on each data set and over all of them."""

    factor: str
    level: str
    reference: str
    by_dataset: Mapping[str, Effect]
    """Effect by name of the data set, where the study on it has an estimate."""
    without_estimate: Mapping[str, Effect]
    """Effect by name of the data set, where the study on it has no estimate, because runs diverged or have no result."""
    mean: Estimate
    """Unweighted mean of the effects. Its `n` is the number of data sets, and its interval is over them."""
    prediction: tuple[float, float] | None
    """95 % prediction interval of the true effect on one more data set; None for fewer than three."""
    heterogeneity: Heterogeneity | None
    """None for fewer than two effects with a standard error."""
    weighted: Estimate | None
    """Weighted mean of the random-effects model (Paule and Mandel) with Hartung and Knapp's interval, for comparison with other
    software: with estimated weights, it is too narrow for few seeds."""
    verdict: str = UNTESTED
    """`common effect`, `differs between data sets`, `no common effect shown` or `cannot be said`."""
    text: str = ""


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """Mean ranks of the cells over data sets."""

    mean_ranks: Mapping[str, float]
    """Mean rank by cell, the best first; 1 is the best on every data set."""
    statistic: float
    """Friedman's chi-squared."""
    p: float
    p_adjusted: float
    critical_difference: float
    """Nemenyi's critical difference: mean ranks that are farther apart differ, if Friedman's test is significant."""
    groups: tuple[tuple[str, ...], ...]
    """Largest sets of cells whose ranks are not shown to differ, each with at least two cells."""
    left_out: tuple[str, ...] = ()
    """Cells without a value on one of the data sets."""
    text: str = ""

    @property
    def significant(self) -> bool:
        """True if the ranks are shown to differ."""
        return self.p_adjusted < 1 - CONFIDENCE_LEVEL


@dataclass(frozen=True, kw_only=True)
class CellScore:
    """Interquartile mean of a cell's normalized scores over the runs of all data sets."""

    cell: str
    iqm: float
    """0 is guessing, 1 is the best possible value."""
    low: float
    """Lower end of the 95 % interval: bootstrap, stratified by data set."""
    high: float
    runs: int


@dataclass(frozen=True, kw_only=True)
class DatasetsFindings:
    """All findings about a study on several data sets."""

    study: str
    question: str
    metric: Metric
    decimals: int
    datasets: tuple[str, ...]
    """Names of the data sets, in the order of the study."""
    effects: tuple[EffectOverDatasets, ...]
    ranks: Ranks | None
    """None for fewer than five data sets or three cells."""
    scores: tuple[CellScore, ...]
    """Scores by cell, the best first; empty for fewer than five data sets."""
    no_scores: str
    """Reason for the absence of ranks and scores; empty if there are any."""
    tests: int
    """Number of tests in the summary's family."""
    complete: bool
    """True if every run on every data set has a result."""
    flags: tuple[str, ...]
