"""Results of a study's runs as arrays."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from ablations.engine.analysis.evidence import Evidence
from ablations.engine.analysis.statistics.inference import Array


class RunTable(NamedTuple):
    """The results of the runs; a row per cell of the design, a column per seed."""

    values: Array
    """Values of the study's metric; NaN for a run that did not complete."""
    train_values: Array
    """Values on training data; NaN for a run that did not complete or does not report them."""
    outcomes: Sequence[Sequence[str]]
    """Outcome of each run; NaN beyond the seeds of a cell that has fewer than others."""


def make_run_table(evidence: Evidence) -> RunTable:
    """Return the results of all runs of a study."""
    cells = [cell.label for cell in evidence.design.cells]
    seeds = range(max(len(cell.fingerprints) for cell in evidence.design.cells))
    runs = evidence.runs.set_index(["cell", "seed"])
    runs = runs.reindex(pd.MultiIndex.from_product([cells, seeds]))
    completed = (runs["outcome"] == "completed").to_numpy()
    shape = len(cells), len(seeds)
    columns = (runs[name].to_numpy(float) for name in ("value", "train_value"))
    values, train_values = (np.where(completed & np.isfinite(column), column, np.nan) for column in columns)
    return RunTable(values.reshape(shape), train_values.reshape(shape), runs["outcome"].to_numpy(object).reshape(shape).tolist())
