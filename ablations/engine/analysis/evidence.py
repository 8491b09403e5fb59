"""The evidence of a study: its design and the results of its runs, as plain data for statistics, figures and reports.

This module does not use MLflow, Ray or torch, so a report can be rebuilt from the evidence on any machine.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pandas as pd

from ablations.engine.analysis.findings import SeedPath
from ablations.engine.study.design import Design

COST_METRICS = {
    "parameters": "parameters",
    "flops": "flops",
    "images_per_second": "images_per_second",
    "peak_memory_mb": "peak_memory_mb",
    "seconds": "train_seconds",
    "gpu_hours": "gpu_hours",
}
"""Columns of `Evidence.runs`, and the metrics whose last values they hold. A training need not report any of them."""
CONDITION_COLUMNS = (
    "code_version",
    "data_version",
    "world_size",
    "precision",
    "device",
    "torch",
    "python",
    "git.commit",
    "git.dirty",
    "git.changed",
)
"""Columns of `Evidence.runs` with the conditions of a training; an empty string means unknown."""
FAILED_OUTCOMES = ("diverged", "oom", "failed")
"""Outcomes of a training that ended without a result that counts."""
CURVE_COLUMNS = ("train_value", "value", "epoch_seconds")
"""Columns of `Evidence.curves` with one value per epoch."""


@dataclass(frozen=True)
class Evidence:
    """The design of a study and the results of its runs, as tidy tables."""

    design: Design
    runs: pd.DataFrame
    """A row per run of the design: `cell` (label), `seed`, `fingerprint`, `run_id` (empty without an MLflow run), `outcome`
    (`completed`, `diverged`, `oom`, `failed`, `stopped`, `interrupted`, `running` or `missing`), `message`, `attempts`, `value`
    (of the design's metric), `train_value` (the same quantity on training data, NaN if it is not reported) and the columns of
    `COST_METRICS` (final epoch of completed runs, otherwise NaN), the columns of `CONDITION_COLUMNS`, and further metrics under
    their own names, such as `test/loss`, or `metric.seed` for one with the name of another column."""
    curves: pd.DataFrame
    """A row per epoch of a completed run: `cell`, `seed`, `epoch` (from 1), and the columns of `CURVE_COLUMNS`: the metric on
    training data, the metric itself, and the duration of the epoch in seconds. A column is NaN if it is not reported."""
    probes: pd.DataFrame
    """The columns of `resnet_core.training.probes.Row` with `cell` and `seed`; empty if nothing was probed."""
    trials: pd.DataFrame | None = None
    """A row per trial of a search: `cell` (label of a `SearchCell`), `number` (from 0 within the cell), `run_id`, `outcome`
    (`completed`, `pruned`, `diverged`, `oom`, `failed`, `stopped`, `interrupted`, `running`), `epochs` and `seconds` (training so
    far, without the epochs of a trial that this one branched from), `value` (of the search's metric, last epoch), `gpu_hours`,
    `flops` (NaN if unknown), `changes` (`optim.changes` of population-based training as text, otherwise empty), `attempts`, and
    the values of the searched fields under their dotted names. None without a search."""
    trial_curves: pd.DataFrame | None = None
    """A row per epoch of a trial: `cell`, `number`, `epoch` (from 1), `value` (of the search's metric). None without a search."""
    looks: tuple[int, ...] = ()
    """Numbers of seeds at which a complete answer to the study was shown before, ascending."""
    correct: Mapping[str, npt.NDArray[np.bool_]] = field(default_factory=dict)
    """Correctness of the final epoch's prediction of each test example, in the order of the test set, by fingerprint. Runs whose
    predictions are not stored are absent."""
    path: SeedPath | None = None
    """Path of an adaptive study, whose design and runs are those that the path needs; see `seed_path.with_path`. None for a fixed
    number of seeds, and for a part of a study."""


def with_device_memory(runs: pd.DataFrame) -> pd.DataFrame:
    """Return `Evidence.runs` with the peak memory of runs on a GPU only.

    On a CPU, the peak memory is that of the process with all its libraries, which says little about the network.
    """
    return runs.assign(peak_memory_mb=runs["peak_memory_mb"].where(runs["gpu_hours"] > 0))
