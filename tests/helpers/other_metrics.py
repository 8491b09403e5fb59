"""Synthetic evidence of studies whose metric is not an error in percent, made from evidence whose metric is."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from ablations.engine.analysis.evidence import COST_METRICS, Evidence
from ablations.engine.task.metric import Metric

LOSS = Metric("valid/loss", "nats")
ACCURACY = Metric("valid/accuracy", "%", better="higher")
SCORE = Metric("score", better="higher")
CONVERSIONS: dict[Metric, Callable[[Any], Any]] = {
    LOSS: lambda error: error / 1000,
    ACCURACY: lambda error: 100 - error,
    SCORE: lambda error: -20 * error,
}
"""Value of each metric for an error in percent. A smaller error is a better value."""


def in_metric(given: Evidence, metric: Metric, *, bare: bool = False) -> Evidence:
    """Return the evidence of a task with another metric, in which each value is as good or bad as the error that it replaces.

    Args:
        bare: whether runs report the metric only: neither costs nor the metric on training data.
    """
    convert = CONVERSIONS[metric]

    def converted(table: pd.DataFrame | None) -> Any:
        if table is None:
            return None
        table = table.assign(**{name: convert(table[name]) for name in ("value", "train_value") if name in table})
        unknown = {"train_value", "epoch_seconds", *COST_METRICS} if bare else set()
        return table.assign(**dict.fromkeys(unknown & {*table}, np.nan))

    design = replace(given.design, metric=metric, task="chars")
    if bare:
        design = replace(design, cells=tuple(replace(cell, train_examples=0) for cell in design.cells))
    if design.search:
        design = replace(design, search=replace(design.search, metric=metric))
    trials = None if given.trials is None else given.trials.assign(value=convert(given.trials["value"]))
    curves = None if given.trial_curves is None else given.trial_curves.assign(value=convert(given.trial_curves["value"]))
    return Evidence(design, converted(given.runs), converted(given.curves), given.probes, trials, curves)
