"""The results of a study's analysis as plain data. The terminal, tables, figures and report display them.

Values are those of the study's metric in the final epoch, and differences are in `Metric.difference_unit`.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from ablations.engine.analysis.statistics.estimate import Estimate, FailureTest
from ablations.engine.analysis.tuning.findings import SearchFindings
from ablations.engine.task.metric import Metric


@dataclass(frozen=True, kw_only=True)
class FailedRun:
    """A completed run whose value shows no training, or is far from the others."""

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
    """Number of runs that did not complete, by outcome: diverged, oom, failed, stopped, interrupted, running, missing."""
    reasons: tuple[str, ...]
    """Distinct messages of the runs that did not complete."""
    parameters: float | None
    """Number of parameters. This and all costs below are None if the runs do not report them."""
    flops: float | None
    """Multiply-adds of the forward pass of one example."""
    images_per_second: float | None
    """Speed of training in the final epoch."""
    peak_memory_mb: float | None
    """Peak memory of one worker on its GPU in the final epoch, in MiB; None on a CPU."""
    seconds: float | None
    """Training time of a run, in seconds. This and all other costs are means over the completed runs."""
    gpu_hours: float | None
    """GPU-hours of a run; 0 without GPUs."""
    median: float | None = None
    """Median of the values of completed runs."""
    failed_to_train: tuple[FailedRun, ...] = ()
    """Completed runs whose value is near that of guessing, or far from the others. They enter the mean, as they completed."""
    outlying: tuple[FailedRun, ...] = ()
    """Completed runs that are far worse than the others of the cell, though they may have trained."""
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
    """Number of seeds of the difference, if all their runs complete: those that the study asks for, or those of the look that is
    shown."""
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
    """Number of combinations of the other factors' levels, if not all of them are in the average; otherwise 0."""
    place: str = ""
    """The only combination in the average, such as `depth=20`, if the design has others."""
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
    without_value: int = 0
    """Number of runs of its cells that diverged, and so are not in the difference."""


@dataclass(frozen=True, kw_only=True)
class AliasedEffect:
    """A contrast of a screening with the effects that it estimates the sum of."""

    terms: tuple[str, ...]
    """Names of these effects: a factor and interactions, such as `norm` and `squeeze × stem`, up to two-way interactions."""
    difference: Estimate
    """Mean of the cells on the contrast's upper side minus mean of the others."""


@dataclass(frozen=True, kw_only=True)
class Screening:
    """The contrasts of a two-level fractional factorial design, and which effects it cannot tell apart."""

    resolution: int
    """Length of the shortest word of the defining relation: with 4, main effects are not aliased with two-way interactions."""
    full_cells: int
    """Number of cells of the full factorial design."""
    contrasts: tuple[AliasedEffect, ...]
    """One per degree of freedom: main effects in the order of the factors, then two-way interactions."""


@dataclass(frozen=True, kw_only=True)
class Rung:
    """A cell of a ladder: the cell below with one more change."""

    cell: str
    change: str
    """Change from the rung below, such as `norm=group`; empty for the first rung."""
    value: Estimate
    """Value of the study's metric."""
    step: Estimate | None
    """Difference to the rung below, paired by seed; None for the first rung."""


@dataclass(frozen=True, kw_only=True)
class Ladder:
    """Changes that are made one after another, each compared with the cell before it."""

    rungs: tuple[Rung, ...]
    total: Estimate
    """Difference between the last rung and the first, paired by seed."""
    text: str = ""
    """The total in a sentence."""


@dataclass(frozen=True, kw_only=True)
class LookAtSeeds:
    """A look of an adaptive study: what was decided with so many seeds."""

    seeds: int
    """Number of seeds of the cells that were still open."""
    cells: int
    """Number of cells that were trained with so many seeds."""
    decided: tuple[tuple[str, str], ...]
    """Comparisons that this look decided, such as `shortcut=B instead of A`, each with `effect`, `within margin` or `hopeless`."""
    open: tuple[str, ...]
    """Comparisons that get more seeds."""


@dataclass(frozen=True, kw_only=True)
class SeedPath:
    """The path of an adaptive study: its looks up to the present one."""

    looks: tuple[LookAtSeeds, ...]
    runs: int
    """Number of runs that the path needs so far."""
    fixed_runs: int
    """Number of runs of the same study with the largest number of seeds in every cell."""
    finished: bool
    """True if no comparison is open or the seeds are used up."""


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
    """Reason for the absence of an analysis of variance; empty if there is one."""
    answers: tuple[Answer, ...]
    """One per factor with at least two levels, in the order of the design."""
    flags: tuple[str, ...]
    """Caveats of the whole study: missing runs, mixed conditions, few seeds."""
    tests: int = 0
    """Number of tests in the study's family."""
    effect_bonferroni: float = 1.0
    """Factor by which a p-value of one effect is adjusted at least: its initial part of the significance level, inverted."""
    screening: Screening | None = None
    """Contrasts of a screening; None for another design."""
    ladder: Ladder | None = None
    """Rungs of a ladder; None for another design."""
    path: SeedPath | None = None
    """Path of an adaptive study; None for a study with a fixed number of seeds."""
    search: SearchFindings | None = None
    """Findings about the search; None for a study without one."""
    cost: str = ""
    """Sentence about the cost of the study; empty if the times in the table say it all."""

    @property
    def complete(self) -> bool:
        """True if every run has a result and every search has made its choice."""
        chosen = self.search is None or all(cell.chosen for cell in self.search.cells)
        return chosen and not any(cell.without_result for cell in self.cells)
