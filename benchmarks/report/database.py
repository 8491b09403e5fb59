"""An MLflow database that holds a large finished study, written past MLflow: through it, this would take an hour."""

import random
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Param
from mlflow.store.tracking.dbmodels.models import SqlLatestMetric, SqlMetric, SqlParam, SqlRun, SqlTag
from sqlalchemy import Connection, create_engine, insert

from ablations.engine.study.design import Design, DesignCell
from ablations.engine.tracking import run_queries

STEP = ("train/loss", "train/error", "test/loss", "test/error", "lr", "images_per_second", "epoch_seconds", "peak_memory_mb")
ROWS = 50_000


def fill(client: MlflowClient, design: Design, shared: Mapping[str, Any], epochs: int, *, artifacts: Path) -> str:
    """Adds the study, all runs completed, and its run with the fields that they share; returns its id."""
    known = client.get_experiment_by_name(design.study)
    experiment_id = known.experiment_id if known else client.create_experiment(design.study, artifacts.as_uri())
    parent = client.create_run(experiment_id, tags={"study": design.study, "preset": design.preset, run_queries.DESIGN_TAG: "1"})
    client.log_text(parent.info.run_id, design.to_json(), run_queries.DESIGN_ARTIFACT)
    client.log_batch(parent.info.run_id, params=[Param(name, str(value)) for name, value in shared.items()])
    engine = create_engine(client.tracking_uri)
    with engine.begin() as connection:
        if engine.dialect.name == "sqlite":
            connection.exec_driver_sql("PRAGMA synchronous = OFF")
        runs = [(uuid.uuid4().hex, cell, seed) for cell in design.cells for seed in range(len(cell.fingerprints))]
        now = int(time.time() * 1000)
        _insert(connection, SqlRun, (_run(run_id, experiment_id, now) for run_id, _, _ in runs))
        _insert(connection, SqlTag, (row for run in runs for row in _tags(design, parent.info.run_id, *run)))
        _insert(connection, SqlParam, (row for run in runs for row in _params(*run)))
        _insert(connection, SqlMetric, (row for run in runs for row in _metrics(*run, epochs, now)))
        _insert(connection, SqlLatestMetric, (row for run in runs for row in _metrics(*run, epochs, now, last=True)))
    engine.dispose()
    client.set_terminated(parent.info.run_id)
    return str(parent.info.run_id)


def _insert(connection: Connection, table: Any, rows: Iterable[dict[str, Any]]) -> None:
    for some in _batches(rows):
        connection.execute(insert(table.__table__), some)


def _batches(rows: Iterable[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    rows = iter(rows)
    while some := list(islice(rows, ROWS)):
        yield some


def _run(run_id: str, experiment_id: str, now: int) -> dict[str, Any]:
    row: dict[str, Any] = {
        "run_uuid": run_id,
        "name": run_id[:8],
        "source_type": "UNKNOWN",
        "source_name": "",
        "entry_point_name": "",
    }
    row |= {"user_id": "", "status": "FINISHED", "start_time": now, "end_time": now, "deleted_time": None, "source_version": ""}
    return {**row, "lifecycle_stage": "active", "artifact_uri": "", "experiment_id": int(experiment_id)}


def _tags(design: Design, parent: str, run_id: str, cell: DesignCell, seed: int) -> Iterator[dict[str, Any]]:
    tags = {"study": design.study, "cell": cell.label, "seed": str(seed), "fingerprint": cell.fingerprints[seed]}
    tags |= {"training_version": design.training_version, "code_version": design.code_version}
    tags |= {"data_version": cell.data_version, "mlflow.parentRunId": parent}
    tags |= {"outcome": "completed", "message": "", "attempts": "1", "generation": "1", "world_size": "1", "device": "CPU"}
    tags |= {"torch": "2.14.1", "python": "3.11.7", "git.commit": "0" * 40, "git.dirty": "false"}
    return ({"key": key, "value": value, "run_uuid": run_id} for key, value in tags.items())


def _params(run_id: str, cell: DesignCell, seed: int) -> Iterator[dict[str, Any]]:
    values = {**cell.spec, "seed": seed}
    return ({"key": key, "value": str(value), "run_uuid": run_id} for key, value in values.items())


def _metrics(run_id: str, cell: DesignCell, seed: int, epochs: int, now: int, *, last: bool = False) -> Iterator[dict[str, Any]]:
    draw = random.Random(f"{cell.label} {seed}")
    depth, error = int(cell.spec["model.depth"]), 5 + draw.random()
    for epoch in range(1, epochs + 1):
        current = error + 80 * (1 - epoch / epochs) + draw.random()
        values = dict(
            zip(STEP, (current / 40, current / 2, current / 30, current, 0.1, 1e5 / depth, 0.05 * depth, 200), strict=True)
        )
        if epoch == epochs:
            values |= {"parameters": 14_000 * depth, "flops": 130_000 * depth, "train_seconds": 10 * depth, "gpu_hours": 0}
        for key, value in values.items() if epoch == epochs or not last else ():
            row = {"key": key, "value": value, "timestamp": now + epoch, "step": epoch, "is_nan": False, "run_uuid": run_id}
            yield row
