"""Evidence of a study: its runs, curves, probes and trials, read from MLflow."""

import logging
import math
import tempfile
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import numpy.typing as npt
import pandas as pd
from mlflow import MlflowClient

from ablations.engine.analysis.evidence import CONDITION_COLUMNS, COST_METRICS, CURVE_COLUMNS, Evidence
from ablations.engine.analysis.seed_path import with_path
from ablations.engine.study.design import Design
from ablations.engine.task.metric import Metric
from ablations.engine.task.predictions import Predictions
from ablations.engine.tracking import looks, run_queries, search_trials
from ablations.engine.tracking.holder import may_be_alive
from ablations.engine.tracking.run_queries import RunRecord

logger = logging.getLogger(__name__)

READERS = 4
"""Number of threads that read predictions. Those of 160 runs take 0.6 s from a folder and 5 s over HTTP; more threads gain
nothing."""
MAX_CACHED = 1024
"""Maximum number of runs whose predictions stay in memory, for the next report of a study that still runs."""


def gather(client: MlflowClient, design: Design, study_run_id: str = "", *, details: bool = True, part: bool = False) -> Evidence:
    """Return the runs and trials of a design that MLflow has.

    Args:
        client: MLflow client.
        design: the design, whose planned seeds are those of the study's own run, if that has recorded them.
        study_run_id: ID of the study's own run, which has the earlier looks; empty for none.
        details: read curves, probes and predictions of runs as well.
        part: the design is a part of a study, whose runs are all read. Of an adaptive study, only those on its path are read.
    """
    tags = client.get_run(study_run_id).data.tags if study_run_id else {}
    design = replace(design, planned_seeds=int(tags.get(looks.PLANNED_SEEDS_TAG, design.planned_seeds)))
    earlier = tuple(seeds for seeds in looks.recorded_looks(tags) if seeds != design.seeds)
    wanted = {fingerprint: cell.data_version for cell in design.cells for fingerprint in cell.fingerprints}
    records = run_queries.find_by_fingerprint(client, wanted)
    of_run = [
        (cell.label, seed, fingerprint, records.get(fingerprint))
        for cell in design.cells
        for seed, fingerprint in enumerate(cell.fingerprints)
    ]
    outcome = partial(RunRecord.outcome_in, study_run_id=study_run_id, is_running=not study_run_id or may_be_alive(tags))
    runs = pd.DataFrame(_row(design, *run, outcome) for run in of_run)
    found = Evidence(design, runs, pd.DataFrame(columns=["cell", "seed"]), pd.DataFrame(columns=["probe"]), looks=earlier)
    if design.seed_looks and not part:
        found = with_path(found)
        design, needed = found.design, {*found.runs["fingerprint"]}
        of_run = [run for run in of_run if run[2] in needed]
    completed = {record.run_id: (cell, seed) for cell, seed, _, record in of_run if details and record and record.completed}
    by = run_queries.training_version_filter(design.training_version, design.code_version)
    trials, trial_curves = (
        search_trials.trial_tables(search_trials.read_trials(client, design.search, by), design.search, outcome)
        if design.search
        else (None, None)
    )
    curves, probes = _curves(client, completed, design.metric), _probes(client, completed, design)
    correct = _correct(client, [record for *_, record in of_run if record and record.run_id in completed], design)
    return replace(found, curves=curves, probes=probes, trials=trials, trial_curves=trial_curves, correct=correct)


def _row(
    design: Design, cell: str, seed: int, fingerprint: str, record: RunRecord | None, outcome: Callable[[RunRecord], str]
) -> dict[str, Any]:
    """Return a row of `Evidence.runs`."""
    row: dict[str, Any] = {"cell": cell, "seed": seed, "fingerprint": fingerprint, "outcome": "missing"}
    row |= {"run_id": "", "message": "", "attempts": 0, **dict.fromkeys(CONDITION_COLUMNS, "")}
    row |= dict.fromkeys(("value", "train_value", *COST_METRICS), math.nan)
    if record:
        names = _value_columns(design.metric) | {metric: name for name, metric in COST_METRICS.items()}
        row |= {name: record.tags.get(name, "") for name in CONDITION_COLUMNS} | {"precision": record.params.get("precision", "")}
        row |= {"run_id": record.run_id, "outcome": outcome(record), "attempts": int(record.tags.get("attempts", 0))}
        row |= {"message": "" if record.status == "RUNNING" else record.tags.get("message", "")}
        if record.completed:
            own = {name: name if name not in row else f"metric.{name}" for name in record.metrics}
            row |= {names.get(name, own[name]): value for name, value in record.metrics.items()}
    return row


def _value_columns(metric: Metric) -> dict[str, str]:
    """Return the columns of the study's metric by the names that MLflow has."""
    return {metric.training_name: "train_value", metric.name: "value"}


def _curves(client: MlflowClient, completed: Mapping[str, tuple[str, int]], metric: Metric) -> pd.DataFrame:
    """Return `Evidence.curves` of completed runs, given as cell and seed by run ID."""
    names = _value_columns(metric) | {"epoch_seconds": "epoch_seconds"}
    long = run_queries.metric_histories(client, list(completed), list(names))
    curves = long.pivot(index=["run_id", "epoch"], columns="metric", values="value").rename(columns=names).reset_index()
    cells = pd.DataFrame([(run_id, *of_run) for run_id, of_run in completed.items()], columns=["run_id", "cell", "seed"])
    wide = cells.merge(curves, on="run_id").drop(columns="run_id").sort_values(["cell", "seed", "epoch"], ignore_index=True)
    return wide.reindex(columns=["cell", "seed", "epoch", *CURVE_COLUMNS])


def _probes(client: MlflowClient, completed: Mapping[str, tuple[str, int]], design: Design) -> pd.DataFrame:
    """Return `Evidence.probes`."""
    probed = {cell.label for cell in design.cells if cell.spec.get("probes")}
    frames = []
    with tempfile.TemporaryDirectory() as folder:
        for run_id, (cell, seed) in completed.items():
            if cell in probed:
                try:
                    path = client.download_artifacts(run_id, run_queries.PROBES_ARTIFACT, folder)
                except Exception as error:  # a store's own library may raise anything; other results do not depend on it
                    logger.warning("the probes of %s seed=%s cannot be read: %s", cell, seed, str(error).partition("\n")[0])
                    continue
                frames.append(pd.read_csv(path).assign(cell=cell, seed=seed))
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=["probe"])


def _correct(client: MlflowClient, completed: Iterable[RunRecord], design: Design) -> dict[str, npt.NDArray[np.bool_]]:
    """Return `Evidence.correct`. Predictions that cannot be read are left out with a warning, since no other result needs them."""
    stored = [record for record in completed if run_queries.PREDICTIONS_TAG in record.tags]
    with ThreadPoolExecutor(READERS) as pool:
        read = list(pool.map(partial(_read_correct, client.tracking_uri, design.test_examples), stored))
    if reasons := [found for found in read if isinstance(found, str)]:
        logger.warning("the predictions of %s of %s runs cannot be read: %s", len(reasons), len(stored), reasons[0])
    return {record.tags["fingerprint"]: found for record, found in zip(stored, read, strict=True) if not isinstance(found, str)}


def _read_correct(tracking_uri: str, examples: int, record: RunRecord) -> npt.NDArray[np.bool_] | str:
    """Return which test examples a run has predicted correctly, or the reason why that is not known."""
    try:
        found = _download_correct(tracking_uri, f"{record.artifact_uri}/{record.tags[run_queries.PREDICTIONS_TAG]}")
    except Exception as error:  # a store's own library may raise anything
        return str(error).partition("\n")[0]
    if examples and len(found) != examples:
        return f"{len(found)} predictions for {examples} test examples"
    return found


@lru_cache(MAX_CACHED)
def _download_correct(tracking_uri: str, address: str) -> npt.NDArray[np.bool_]:
    with tempfile.TemporaryDirectory() as folder:
        path = mlflow.artifacts.download_artifacts(artifact_uri=address, dst_path=folder, tracking_uri=tracking_uri)
        found = Predictions.from_bytes(Path(path).read_bytes()).correct
    found.flags.writeable = False  # shared by all evidence of this process
    return found
