"""Ranks of cells over data sets, and interquartile means of their normalized scores."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
from scipy.stats import friedmanchisquare, rankdata, studentized_range, trim_mean

from ablations.engine.analysis.datasets.findings import CellScore, DatasetStudy, Ranks
from ablations.engine.analysis.statistics.inference import SIGNIFICANCE_LEVEL
from ablations.engine.task.metric import PERCENT, Metric

Array = npt.NDArray[np.float64]
MIN_DATASETS, MIN_RANKED_CELLS = 5, 3
"""Fewest data sets for ranks and scores, and fewest cells for Friedman's test."""
TRIMMED_SHARE = 0.25
"""Share of the runs that an interquartile mean leaves out at each end."""
RESAMPLES = 2000
"""Number of bootstrap samples of an interval."""
BOOTSTRAP_SEED = 0
"""Seed of the bootstrap, fixed so that the same runs give the same interval."""


def run_values(study: DatasetStudy, *, common_seeds: bool = False) -> dict[str, Array]:
    """Return the values of each cell's runs. A run that diverged counts as guessing; one without a result is left out.

    Args:
        study: the study on one data set.
        common_seeds: leave out seeds that some cell does not have, as in an adaptive study.
    """
    runs, chance = study.evidence.runs, study.evidence.design.chance
    if common_seeds:
        runs = runs[runs["seed"] < min(len(cell.fingerprints) for cell in study.evidence.design.cells)]
    values = runs["value"].to_numpy(float).copy()
    values[(runs["outcome"] == "diverged").to_numpy()] = math.nan if chance is None else chance
    cells = runs["cell"].to_numpy(object)
    uncounted = set(cells[((runs["outcome"] == "diverged").to_numpy()) & ~np.isfinite(values)])
    found = {}
    for cell in dict.fromkeys(cells):
        of_cell = values[cells == cell]
        if cell not in uncounted and np.isfinite(of_cell).any():
            found[str(cell)] = of_cell[np.isfinite(of_cell)]
    return found


def rank_cells(values: Sequence[Mapping[str, Array]], metric: Metric, share: float = 1.0) -> Ranks | None:
    """Return mean ranks with Friedman's test and Nemenyi's critical difference; None for too few data sets or cells.

    The p-value is not adjusted yet, and `groups` is empty until it is: see `grouped`.

    Args:
        values: values of the runs by cell, for each data set.
        metric: metric of the values, which says which rank is the best.
        share: fraction of the significance level that the present look at the studies may spend.
    """
    everywhere = [cell for cell in values[0] if all(cell in each for each in values)]
    if len(values) < MIN_DATASETS or len(everywhere) < MIN_RANKED_CELLS:
        return None
    means = np.array([[metric.minimized(each[cell].mean()) for cell in everywhere] for each in values])
    if not np.ptp(means, axis=1).any():
        return None
    ranks = rankdata(means, axis=1).mean(axis=0)
    statistic, p = friedmanchisquare(*means.T)
    count, datasets = len(everywhere), len(values)
    width = math.sqrt(count * (count + 1) / (6 * datasets))
    critical = float(studentized_range.isf(SIGNIFICANCE_LEVEL * share, count, np.inf)) / math.sqrt(2) * width
    order = np.argsort(ranks, kind="stable")
    every = dict.fromkeys(cell for each in values for cell in each)
    return Ranks(
        mean_ranks={everywhere[i]: float(ranks[i]) for i in order},
        statistic=float(statistic),
        p=min(1.0, float(p) / share),
        p_adjusted=1.0,
        critical_difference=critical,
        groups=(),
        left_out=tuple(cell for cell in every if cell not in everywhere),
    )


def grouped(ranks: Ranks) -> Ranks:
    """Return ranks, whose p-value is adjusted, with the sets of cells that are not shown to differ.

    Without a significant test of Friedman, that is all of them.
    """
    cells = list(ranks.mean_ranks)
    if not ranks.significant:
        return replace(ranks, groups=(tuple(cells),))
    groups: list[tuple[str, ...]] = []
    for i, cell in enumerate(cells):
        near = [other for other in cells[i:] if ranks.mean_ranks[other] - ranks.mean_ranks[cell] < ranks.critical_difference]
        if len(near) > 1 and not (groups and set(near) <= set(groups[-1])):
            groups.append(tuple(near))
    return replace(ranks, groups=tuple(groups))


def normalized_scores(study: DatasetStudy) -> dict[str, Array] | None:
    """Return the scores of each cell's runs: 0 for guessing, 1 for the best possible value.

    None if the value of guessing or the best possible one is not known.
    """
    design = study.evidence.design
    if design.metric.unit != PERCENT or design.chance is None:
        return None
    low, high = design.metric.bounds
    best = low if design.metric.better == "lower" else high
    if design.chance == best:
        return None
    # Cells with more runs on some data sets than on others would be means of different mixtures of data sets.
    found = run_values(study, common_seeds=True)
    return {cell: (values - design.chance) / (best - design.chance) for cell, values in found.items()}


def score_cells(scores: Sequence[Mapping[str, Array]]) -> tuple[CellScore, ...]:
    """Return the interquartile mean of each cell that has runs on all data sets, the best first.

    As in rliable (Agarwal et al. 2021): the mean of the middle half of all runs of all data sets, with a percentile interval of
    the bootstrap that resamples the runs of each data set.
    """
    everywhere = [cell for cell in scores[0] if all(cell in each for each in scores)]
    found = []
    for cell in everywhere:
        of_datasets = [each[cell] for each in scores]
        low, high = np.quantile(_resampled_means(of_datasets), (SIGNIFICANCE_LEVEL / 2, 1 - SIGNIFICANCE_LEVEL / 2))
        together = np.concatenate(of_datasets)
        iqm = float(trim_mean(together, TRIMMED_SHARE))
        found.append(CellScore(cell=cell, iqm=iqm, low=float(low), high=float(high), runs=len(together)))
    return tuple(sorted(found, key=lambda each: -each.iqm))


def _resampled_means(of_datasets: Sequence[Array]) -> Array:
    """Return the interquartile means of bootstrap samples, each with as many runs of each data set as there are."""
    random = np.random.default_rng(BOOTSTRAP_SEED)
    drawn = [values[random.integers(0, len(values), (RESAMPLES, len(values)))] for values in of_datasets]
    return np.asarray(trim_mean(np.concatenate(drawn, axis=1), TRIMMED_SHARE, axis=1), float)
