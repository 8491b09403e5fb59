"""The results of a study's analysis as plain data. The terminal, tables, figures and report display them.

Values are those of the study's metric in the final epoch, and differences are in `Metric.difference_unit`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ablations.engine.task.metric import Metric

CONFIDENCE_LEVEL = 0.95
"""Confidence level of every interval. The significance level of every test is 1 - CONFIDENCE_LEVEL."""
MIN_SEEDS_FOR_P_VALUE = 3
"""Fewest seeds (replicates) for which a p-value is given."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean over seeds with its uncertainty. A field is None if there are too few values to estimate it."""

    n: int
    """Number of values: one per seed."""
    mean: float | None = None
    std: float | None = None
    """Sample standard deviation; needs 2 values."""
    se: float | None = None
    """Standard error of the mean, of at least one step of the metric ÷ √n for differences; needs 2 values."""
    low: float | None = None
    """Lower end of the 95 % t confidence interval, within what the metric can be; needs a standard error above zero."""
    high: float | None = None
    """Upper end of the 95 % t confidence interval."""
    p: float | None = None
    """p-value of a two-sided test of mean zero, at the looks taken; differences only; needs 3 values that are not all zero."""
    p_adjusted: float | None = None
    """p-value adjusted for the tests in its family: all of the study's for a comparison, an effect or an interaction."""
    effect_size: float | None = None
    """Standardized mean difference d_z: mean ÷ standard deviation of the differences, with Hedges' small-sample correction.
    None without a p-value, or if the differences do not vary."""
    selected_low: float | None = None
    """Lower end of the interval of a difference that was selected as significant (95 % in the mean over those selected)."""
    selected_high: float | None = None
    """Upper end of that interval."""

    @property
    def significant(self) -> bool:
        """True if the adjusted p-value is below the significance level, 0.05."""
        return self.p_adjusted is not None and self.p_adjusted < 1 - CONFIDENCE_LEVEL


@dataclass(frozen=True, kw_only=True)
class FailureTest:
    """Failures to train with a level or in a cell, beside those of its reference, with an exact test of equal chances to fail."""

    failed: int
    """Number of runs that failed to train: diverged ones, and completed ones whose value shows no training."""
    runs: int
    """Number of runs that completed or diverged."""
    reference_failed: int
    reference_runs: int
    without_value: int
    """Number of the failed runs that have no value, because they diverged, and so are in no difference."""
    p: float
    """Two-sided p-value: Fisher's exact test, stratified by the combinations of other factors' levels."""
    least_p: float
    """Least p-value that so many failures can give."""
    p_adjusted: float | None = None
    """p-value adjusted for all tests of the study; None if not even the most extreme split could be significant."""

    @property
    def significant(self) -> bool:
        """True if the adjusted p-value is below the significance level, 0.05."""
        return self.p_adjusted is not None and self.p_adjusted < 1 - CONFIDENCE_LEVEL


@dataclass(frozen=True, kw_only=True)
class FailedRun:
    """A completed run whose value shows no training."""

    seed: int
    value: float


@dataclass(frozen=True, kw_only=True)
class CellFinding:
    """The results of one cell over its seeds. Runs without a result are counted; they enter no average."""

    label: str
    levels: Mapping[str, str]
    planned: int
    """Number of seeds that the study asks for; `value.n` of them completed."""
    value: Estimate
    """Value of the study's metric in the final epoch."""
    train_value: Estimate
    """Value of the same quantity on training data; without a mean if the runs do not report it."""
    problems: Mapping[str, int]
    """Number of runs that did not complete, by outcome: diverged, oom, failed, stopped, running, missing."""
    reasons: tuple[str, ...]
    """Distinct messages of the runs that did not complete."""
    parameters: float | None
    """Number of parameters. This and all costs below are None if the runs do not report them."""
    flops: float | None
    """Multiply-adds of the forward pass of one example."""
    images_per_second: float | None
    peak_memory_mb: float | None
    """Peak memory of one worker, in MiB."""
    seconds: float | None
    """Training time of a run, in seconds. This and all other costs are means over the completed runs."""
    gpu_hours: float | None
    """GPU-hours of a run; 0 without GPUs."""
    median: float | None = None
    """Median of the values of completed runs."""
    failed_to_train: tuple[FailedRun, ...] = ()
    """Completed runs whose value is near guessing or far from the others. They enter the mean, as they completed."""
    on_pareto_front: bool = False
    """True if the cell is on the Pareto front of multiply-adds and mean value."""
    flags: tuple[str, ...] = ()
    """Conditions that differ between the runs of the cell: `trained with torch 2.14 and 2.15`."""

    @property
    def without_result(self) -> int:
        """Number of runs without a result. A diverged run counts as a result."""
        return self.planned - self.value.n - self.problems.get("diverged", 0)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A contrast between a cell and its baseline, paired by seed."""

    cell: str
    baseline: str
    difference: Estimate
    """Value of the cell minus value of its baseline, over the seeds that both completed."""
    planned: int
    """Number of seeds that the study asks for."""
    failures: FailureTest | None = None
    """Failures to train of the two cells; None if there are none."""
    correlation: tuple[float, float, float] | None = None
    """Correlation of the two cells over seeds, with the ends of its 95 % interval; None for fewer than four pairs."""
    note: str = ""
    """Runs that are missing, and why there is no p-value; empty if nothing is missing."""


@dataclass(frozen=True, kw_only=True)
class Effect:
    """The average effect of a level relative to its reference level: a contrast, averaged per seed over the other factors."""

    factor: str
    level: str
    reference: str
    difference: Estimate
    combinations: int
    """Number of combinations of the other factors' levels in the average: those with enough runs of both levels."""
    of_combinations: int = 0
    """Number of combinations that have both levels in the design; 0 if all are in the average."""
    failures: FailureTest | None = None
    """Failures to train with the two levels, over all combinations; None if there are none."""
    at_chance: float | None = None
    """Mean difference if runs that diverged count as guessing; None without such runs, or if the value of guessing is not known."""
    median: float | None = None
    """Median of the differences over seeds; None unless a completed run failed to train."""
    p_within_margin: float | None = None
    """p-value that the difference is within the study's margin (two one-sided tests, Holm over all effects); None without a margin,
    a test, or with failures."""


@dataclass(frozen=True, kw_only=True)
class SimpleEffect:
    """A simple effect: a level relative to its reference level, at one combination of the other factors' levels."""

    factor: str
    level: str
    reference: str
    at: str
    """Combination of the other factors' levels, such as `depth=56`; empty without other factors."""
    difference: Estimate
    failures: FailureTest | None = None


@dataclass(frozen=True, kw_only=True)
class Interaction:
    """A two-way interaction: how much the effect of one factor's level changes with another factor, paired by seed."""

    factors: tuple[str, str]
    levels: tuple[str, str]
    references: tuple[str, str]
    difference: Estimate
    """Difference of differences: the effect of the second level at the first level, minus its effect at the first reference."""


@dataclass(frozen=True, kw_only=True)
class AnovaTerm:
    """A row of the analysis of variance."""

    term: str
    """`shortcut`, `shortcut × depth`, or `seed`."""
    df: float
    f: float
    partial_eta_squared: float
    """Sum of squares of the term ÷ (sum of squares of the term + residual sum of squares)."""


@dataclass(frozen=True, kw_only=True)
class Anova:
    """A type II analysis of variance of the values, with seeds as blocks, factors, and two-way interactions."""

    terms: tuple[AnovaTerm, ...]
    residual_df: float
    note: str
    """The runs that it uses, and its caveats: unbalanced data, unequal variances."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The verdict on one factor, with the sentences that support it."""

    factor: str
    verdict: str
    """`matters`, `may matter`, `no effect within margin`, `no difference shown` or `cannot be said`."""
    text: str


@dataclass(frozen=True, kw_only=True)
class ChosenTrial:
    """A trial that a search chose. Its score decided the choice and is therefore biased; results come from new runs."""

    level: str
    """Level of the factor `configuration`: `tuned`, or `front-1`, `front-2`, … with a second objective."""
    number: int
    """Number of the trial within its cell, from 0."""
    values: Mapping[str, Any]
    """Values of the searched fields that the trial has."""
    changes: str
    """Values that change during training, by epoch, if population-based training found them; otherwise empty."""
    score: float
    """Value of the search's metric in the last epoch."""
    at_edge: Mapping[str, str]
    """Fields whose value is close to an end of the searched range, with that end: `low` or `high`."""


@dataclass(frozen=True, kw_only=True)
class Importance:
    """The importance of one field for the search's metric, within the space and the trials of one search."""

    field: str
    share: float
    """Fraction of the total importance; the fractions of all fields add up to 1."""
    low: float
    """Lower end of the range of the share over resamples of the trials, from its 2.5 % quantile to its 97.5 % quantile.
    The range is no confidence interval: a share is never negative, so the range of an irrelevant field does not reach 0."""
    high: float
    """Upper end of that range."""
    floor: float
    """Share that an irrelevant field exceeds in 5 % of searches, from permutations of the trials' values."""

    @property
    def above_chance(self) -> bool:
        """True if the share is above its floor."""
        return self.share > self.floor


@dataclass(frozen=True, kw_only=True)
class SearchCellFinding:
    """The search within one combination of levels: its cost and its choice."""

    label: str
    trials: int
    """Number of trials that began."""
    outcomes: Mapping[str, int]
    """Number of trials by outcome: completed, pruned, diverged, oom, failed, stopped, running."""
    epochs: int
    """Epochs trained by all trials."""
    seconds: float
    """Training time of all trials, in seconds."""
    gpu_hours: float
    """GPU-hours of all trials."""
    chosen: tuple[ChosenTrial, ...]
    importances: tuple[Importance, ...]
    """Importance of each field, largest first."""
    no_importances: str
    """Why there are no importances; empty if there are."""


@dataclass(frozen=True, kw_only=True)
class Gain:
    """The gain of tuning in one cell: value of the chosen minus value of the default configuration, paired by seed."""

    cell: str
    level: str
    """Level of the factor `configuration`."""
    difference: Estimate


@dataclass(frozen=True, kw_only=True)
class RankChange:
    """The contrast between two variants before and after both are tuned, paired by seed. The baseline is a variant too."""

    cell: str
    other: str
    """The variant that `cell` is compared with: the baseline if it is one of the two."""
    before: Estimate
    """Value of `cell` minus value of `other`, both with the default configuration."""
    after: Estimate
    """Value of `cell` minus value of `other`, each tuned by its own search."""
    change: Estimate
    """`after` minus `before`, paired by seed."""


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """The verdict on whether the ranking of variants survives tuning."""

    verdict: str
    """`survives`, `changes`, `no change shown`, `reverses`, `no order shown` or `cannot be said yet`, as defined by
    `verdicts.ranking.ranking_verdict`."""
    text: str
    changes: tuple[RankChange, ...]
    """One per pair of variants whose levels of the factors without a baseline are the same."""


@dataclass(frozen=True, kw_only=True)
class SearchFindings:
    """The findings about a search, in addition to the study's own comparisons."""

    metric: Metric
    """Metric that trials are scored by."""
    decimals: int
    """Decimals that suit the scores."""
    cells: tuple[SearchCellFinding, ...]
    """One per cell, in the order of the design."""
    gains: tuple[Gain, ...]
    """Gains of tuning, one family of tests; empty while the search runs."""
    ranking: Ranking | None
    """None while the search runs, without variants to rank, and with a second objective, which has no single winner."""
    notes: tuple[str, ...]
    """Remarks: unequal search times, unchanged choices, values at the end of a range."""


@dataclass(frozen=True, kw_only=True)
class Findings:
    """All findings about a study."""

    metric: Metric
    """Metric by which cells are compared."""
    decimals: int = 2
    """Decimals that suit the values and their differences."""
    cells: tuple[CellFinding, ...]
    """One per cell, in the order of the design."""
    comparisons: tuple[Comparison, ...]
    effects: tuple[Effect, ...]
    interactions: tuple[Interaction, ...]
    anova: Anova | None
    no_anova: str
    """Why there is no analysis of variance; empty if there is one."""
    answers: tuple[Answer, ...]
    """One per factor with at least two levels, in the order of the design."""
    flags: tuple[str, ...]
    """Caveats of the whole study: missing runs, mixed conditions, few seeds."""
    tests: int = 0
    """Number of tests in the study's family."""
    effect_bonferroni: float = 1.0
    """Factor by which a p-value of one effect is adjusted at least: its initial part of the significance level, inverted."""
    search: SearchFindings | None = None
    """Findings about the search; None for a study without one."""

    @property
    def complete(self) -> bool:
        """True if every run has a result and every search has made its choice."""
        chosen = self.search is None or all(cell.chosen for cell in self.search.cells)
        return chosen and not any(cell.without_result for cell in self.cells)
