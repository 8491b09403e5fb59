"""What the analysis of a study finds, as plain data: `analysis` makes it, terminal, tables, figures and report show it.

Errors and differences are in percentage points of the scored images' error in the final epoch.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

CONFIDENCE_LEVEL = 0.95
"""Of every interval; 1 - LEVEL of every test."""
MIN_SEEDS_FOR_P_VALUE = 3
"""Fewer replicates give no p."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean over seeds and how far it may be off. None: too few values to say."""

    n: int
    mean: float | None = None
    std: float | None = None
    """Sample standard deviation; from 2 values on."""
    low: float | None = None
    """Lower end of the 95 % t interval; from 2 values on that are not all equal."""
    high: float | None = None
    p: float | None = None
    """Two-sided t test of mean zero; from 3 values on that are not all equal. Only differences have one."""
    p_adjusted: float | None = None
    """p, corrected for the number of comparisons (Holm)."""
    effect_size: float | None = None
    """Standardised mean difference: mean ÷ std of the differences, corrected for few seeds (Hedges); where there is a p."""

    @property
    def significant(self) -> bool:
        """Whether it differs from zero, the number of comparisons considered."""
        return self.p_adjusted is not None and self.p_adjusted < 1 - CONFIDENCE_LEVEL


@dataclass(frozen=True, kw_only=True)
class CellFinding:
    """One cell over its seeds. Runs without a result are counted, never averaged and never dropped."""

    label: str
    levels: Mapping[str, str]
    planned: int
    """Seeds that the study asks for; `error.n` of them completed."""
    error: Estimate
    train_error: Estimate
    problems: Mapping[str, int]
    """Runs that did not complete, by outcome: diverged, oom, failed, stopped, running, missing."""
    reasons: tuple[str, ...]
    """What they said, each once."""
    parameters: float | None
    flops: float | None
    """Multiply-adds of one image's forward pass."""
    images_per_second: float | None
    peak_memory_mb: float | None
    seconds: float | None
    """Training time of a run; like the other costs the mean over completed runs."""
    gpu_hours: float | None
    """Of one run; 0 without GPUs."""
    on_pareto_front: bool = False
    """Whether no other cell has both fewer multiply-adds and a lower error, or equals it in one and beats it in the other."""
    flags: tuple[str, ...] = ()
    """What its numbers cannot be compared without: `trained with torch 2.14 and 2.15`."""

    @property
    def without_result(self) -> int:
        """Runs that the study still owes: a diverged run is a result."""
        return self.planned - self.error.n - self.problems.get("diverged", 0)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A cell against its baseline, seed by seed."""

    cell: str
    baseline: str
    difference: Estimate
    """Error of the cell minus that of the baseline, over seeds that both completed."""
    planned: int
    """Seeds that the study asks for."""
    note: str = ""
    """Why there is no p, or what is missing."""


@dataclass(frozen=True, kw_only=True)
class Effect:
    """A level of a factor against its reference level, in each seed averaged over combinations of the other factors."""

    factor: str
    level: str
    reference: str
    difference: Estimate
    combinations: int
    """How many combinations of the other factors' levels: those in which both levels exist."""


@dataclass(frozen=True, kw_only=True)
class Interaction:
    """How far the effect of one factor's level depends on another factor: a difference of differences, seed by seed."""

    factors: tuple[str, str]
    levels: tuple[str, str]
    references: tuple[str, str]
    difference: Estimate
    """(error at both levels - error at first level, second's reference) - (the same at the first's reference)."""


@dataclass(frozen=True, kw_only=True)
class AnovaTerm:
    """A line of the analysis of variance."""

    term: str
    """`shortcut`, `shortcut × depth`, or `seed`."""
    df: float
    f: float
    p: float
    partial_eta_squared: float
    """Partial η²: its sum of squares ÷ (that and the residual's)."""


@dataclass(frozen=True, kw_only=True)
class Anova:
    """Type II analysis of variance of the error, seeds as blocks, factors and their two-way interactions."""

    terms: tuple[AnovaTerm, ...]
    residual_df: float
    note: str
    """What it was made from, and what to mind: `complete: 24 runs`, `unbalanced: …`, spreads that differ between cells."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """Whether a factor matters, in plain words that claim no more than the intervals do."""

    factor: str
    verdict: str
    """`matters`, `may matter`, `no effect shown`, `cannot be said yet`."""
    text: str


@dataclass(frozen=True, kw_only=True)
class ChosenTrial:
    """What a search chose. Its score chose it, so it is no result: that is what the study's own runs give."""

    level: str
    """Of the factor `configuration`: `tuned`, or `front-1`, … with a second objective."""
    number: int
    values: Mapping[str, Any]
    """Of the fields that were searched and that it has."""
    changes: str
    """From which epoch on which value is another, where a population found it; else empty."""
    score: float
    """Validation error in its last epoch, in percent."""
    at_edge: Mapping[str, str]
    """Fields whose value is close to an end of the range searched: `low` or `high`."""


@dataclass(frozen=True, kw_only=True)
class Importance:
    """How much of what moved the error within the space searched was one field. Of this search only."""

    field: str
    share: float
    """Of all fields' importances; they add up to 1."""
    low: float
    """Ends of the 95 % percentile interval over resampled trials."""
    high: float


@dataclass(frozen=True, kw_only=True)
class SearchCellFinding:
    """The search within one combination of levels: what it took and what it chose."""

    label: str
    trials: int
    """That it began; `outcomes` says what came of them."""
    outcomes: Mapping[str, int]
    """By word: completed, pruned, diverged, oom, failed, stopped, running."""
    epochs: int
    seconds: float
    gpu_hours: float
    """Of all its trials."""
    chosen: tuple[ChosenTrial, ...]
    importances: tuple[Importance, ...]
    """The largest first."""
    no_importances: str
    """Why there are none; empty if there are."""


@dataclass(frozen=True, kw_only=True)
class Gain:
    """What tuning gave a cell: test errors of the tuned configuration minus those of the default, seed by seed."""

    cell: str
    level: str
    """Of the factor `configuration`."""
    difference: Estimate


@dataclass(frozen=True, kw_only=True)
class RankChange:
    """A variant against the baseline before and after both were tuned, seed by seed."""

    cell: str
    baseline: str
    before: Estimate
    """Error of the variant minus that of the baseline, both with the default configuration."""
    after: Estimate
    """The same, each tuned by a search of its own."""
    change: Estimate
    """after - before in each seed."""


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """Whether the order of variants is the same once each is tuned."""

    verdict: str
    """`survives`, `changes`, `no change shown`, `reverses`, `no order shown`, `cannot be said yet`: see `ranking.verdict_of`."""
    text: str
    changes: tuple[RankChange, ...]


@dataclass(frozen=True, kw_only=True)
class SearchFindings:
    """What there is to say of a search besides the study's own comparisons."""

    cells: tuple[SearchCellFinding, ...]
    """In the design's order."""
    gains: tuple[Gain, ...]
    """One family of tests; empty while it searches."""
    ranking: Ranking | None
    """None while it searches, without variants to rank, and with a second objective: a front is no winner."""
    notes: tuple[str, ...]
    """For information: searches that took unequal time, or chose nothing new."""


@dataclass(frozen=True, kw_only=True)
class Findings:
    """All that the analysis has to say about a study."""

    evaluation_split: str
    cells: tuple[CellFinding, ...]
    """In the design's order."""
    comparisons: tuple[Comparison, ...]
    effects: tuple[Effect, ...]
    interactions: tuple[Interaction, ...]
    anova: Anova | None
    no_anova: str
    """Why there is no analysis of variance; empty if there is one."""
    answers: tuple[Answer, ...]
    """One for each factor with two levels or more, in the design's order."""
    flags: tuple[str, ...]
    """What the whole study is to be read with: incomplete, mixed conditions, few seeds."""
    search: SearchFindings | None = None
    """Where configurations were searched for."""

    @property
    def complete(self) -> bool:
        """Whether every run has a result, and every search has chosen."""
        chosen = self.search is None or all(cell.chosen for cell in self.search.cells)
        return chosen and not any(cell.without_result for cell in self.cells)
