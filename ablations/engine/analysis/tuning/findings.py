"""The results of the analysis of a search as plain data."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ablations.engine.analysis.statistics.estimate import Estimate
from ablations.engine.task.metric import Metric


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
    """Reason for the absence of importances; empty if there are any."""


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
