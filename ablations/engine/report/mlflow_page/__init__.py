"""The study in MLflow's own interface: metrics, image and description of its run, and a view of its experiment with its cells."""

import time

from mlflow import MlflowClient
from mlflow.entities import Metric
from mlflow.utils import mlflow_tags

from ablations.engine.analysis.evidence import Evidence
from ablations.engine.analysis.findings import Findings
from ablations.engine.report.mlflow_page.cells import log_cells_image, name_cells, view_tag
from ablations.engine.report.mlflow_page.notes import (
    COMPLETED_METRIC,
    REPORT_PATH,
    description,
    study_metrics,
    update_experiment_note,
)

__all__ = ["COMPLETED_METRIC", "REPORT_PATH", "description", "study_metrics", "update_experiment_note", "write_overview"]


def write_overview(client: MlflowClient, run_id: str, evidence: Evidence, findings: Findings) -> None:
    """Log the study's metrics and the image of its cells, and set the description of its run and of its experiment."""
    design = evidence.design
    experiment_id = client.get_run(run_id).info.experiment_id
    now = int(time.time() * 1000)
    drawn = log_cells_image(client, run_id, evidence, findings)
    client.log_batch(run_id, metrics=[Metric(name, value, now, 0) for name, value in study_metrics(evidence, findings).items()])
    charted = name_cells(client, run_id, evidence)
    view = view_tag(evidence, run_id)
    text = description(design, findings, experiment_id, run_id, charted=charted if view else 0, drawn=drawn)
    client.set_tag(run_id, mlflow_tags.MLFLOW_RUN_NOTE, text)
    update_experiment_note(client, experiment_id, run_id)
    client.set_experiment_tag(experiment_id, mlflow_tags.MLFLOW_EXPERIMENT_PRIMARY_METRIC_NAME, design.metric.name)
    greater_is_better = str(design.metric.better == "higher")
    client.set_experiment_tag(experiment_id, mlflow_tags.MLFLOW_EXPERIMENT_PRIMARY_METRIC_GREATER_IS_BETTER, greater_is_better)
    for name, value in (view or {}).items():
        client.set_experiment_tag(experiment_id, name, value)
