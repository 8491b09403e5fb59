"""What a study asked for and what its runs gave: plain data, from which statistics, figures and reports are made.

Nothing here knows MLflow, Ray or torch: a report is rebuilt from it on any machine.
"""

from dataclasses import dataclass

import pandas as pd

from ablations.engine.study.design import Design

RESULT_METRICS = {
    "train_error": "train/error",
    "parameters": "parameters",
    "flops": "flops",
    "images_per_second": "images_per_second",
    "peak_memory_mb": "peak_memory_mb",
    "seconds": "train_seconds",
    "gpu_hours": "gpu_hours",
}
"""Columns of `Evidence.runs` and the metrics that they are the last values of; `error` is that of the scored images."""
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
"""Columns of `Evidence.runs` that say under what a run was trained; empty where that is not known."""
CURVE_COLUMNS = ("train_error", "error", "epoch_seconds")
"""Columns of `Evidence.curves` with values of an epoch."""


@dataclass(frozen=True)
class Evidence:
    """A study's design and what its runs gave, as tidy tables."""

    design: Design
    runs: pd.DataFrame
    """A row for every run of the design: `cell` (label), `seed`, `fingerprint`, `run_id` (empty: none), `outcome` (`completed`,
    `diverged`, `oom`, `failed`, `stopped`, `running` or `missing`), `message`, `attempts`, `error` and the columns of `RESULTS`
    (NaN where there is none; final epoch of completed runs), those of `CONDITIONS`, and other metrics under their own names
    (`test/ten_crop_error`)."""
    curves: pd.DataFrame
    """A row for every epoch of completed runs: `cell`, `seed`, `epoch` (from 1), and the columns of `CURVES`: errors in percent,
    seconds of the epoch."""
    probes: pd.DataFrame
    """The columns of `resnet_core.training.probes.Row`, with `cell` and `seed`; no rows where nothing was probed."""
    trials: pd.DataFrame | None = None
    """Of a search, a row for each trial: `cell` (label of a `SearchCell`), `number` (from 0, within the cell), `run_id`, `outcome`
    (`completed`, `pruned`, `diverged`, `oom`, `failed`, `stopped`, `running`), `epochs` and `seconds` (of training so far, without
    those of a trial that it branched from), `error` and `loss` (validation, of its last epoch), `gpu_hours`, `flops` (NaN where not
    known), `changes` (a population's `optim.changes` as text, else empty), `attempts`, and the searched fields' values under their
    dotted names."""
    trial_curves: pd.DataFrame | None = None
    """A row for each epoch of each trial: `cell`, `number`, `epoch` (from 1), `error` (validation)."""
