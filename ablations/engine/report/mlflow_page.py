"""What MLflow's own pages say of a study: metrics and description of its run, and a view of its experiment that compares cells."""

import hashlib
import json
import re
import time

from mlflow import MlflowClient
from mlflow.entities import Metric
from mlflow.utils import mlflow_tags

from ablations.engine.analysis import number_format
from ablations.engine.analysis.evidence import Evidence
from ablations.engine.analysis.findings import Findings
from ablations.engine.report import tables
from ablations.engine.study.design import Design

MAX_METRICS_PER_REQUEST = 1000
REPORT = "report/report.html"
MAX_SHOWN = 100
"""Runs of a view that are named one by one: their names go into a tag."""
MAX_METRIC_LABEL = 200
"""Characters of a cell's label in a metric's name: of a longer one the end is replaced by its hash."""
TABLE_ROWS = 60
"""Of a description's table, at most: the report has all."""


def describe(client: MlflowClient, run_id: str, evidence: Evidence, findings: Findings) -> None:
    """Writes metrics per cell, and the answer as the description of the study's run and of its experiment."""
    design = evidence.design
    experiment_id = client.get_run(run_id).info.experiment_id
    now = int(time.time() * 1000)
    metrics = [Metric(name, value, now, 0) for name, value in cell_metrics(findings).items()]
    for start in range(0, len(metrics), MAX_METRICS_PER_REQUEST):
        client.log_batch(run_id, metrics=metrics[start : start + MAX_METRICS_PER_REQUEST])
    state = view(evidence, run_id)
    here = len(client.search_runs([experiment_id], str(state["searchFilter"]), max_results=MAX_SHOWN))
    text = description(design, findings, experiment_id, run_id, charted=here)
    client.set_tag(run_id, mlflow_tags.MLFLOW_RUN_NOTE, text)
    client.set_experiment_tag(experiment_id, mlflow_tags.MLFLOW_RUN_NOTE, text)
    client.set_experiment_tag(experiment_id, mlflow_tags.MLFLOW_EXPERIMENT_PRIMARY_METRIC_NAME, f"{design.evaluation_split}/error")
    client.set_experiment_tag(experiment_id, mlflow_tags.MLFLOW_EXPERIMENT_PRIMARY_METRIC_GREATER_IS_BETTER, "False")
    client.set_experiment_tag(experiment_id, f"mlflow.sharedViewState.{run_id}", json.dumps(state))


def cell_metrics(findings: Findings) -> dict[str, float]:
    """Findings as MLflow metrics: `test_error_mean/shortcut A depth 20`, `difference_mean/shortcut B depth 20`, …"""
    metrics: dict[str, float | None] = {}
    for cell in findings.cells:
        values = {"mean": cell.error.mean, "std": cell.error.std, "n": float(cell.error.n)}
        metrics |= {f"{findings.evaluation_split}_error_{name}/{_metric(cell.label)}": value for name, value in values.items()}
    for comparison in findings.comparisons:
        difference = comparison.difference
        values = {"mean": difference.mean, "low": difference.low, "high": difference.high, "p_corrected": difference.corrected}
        metrics |= {f"difference_{name}/{_metric(comparison.cell)}": value for name, value in values.items()}
    return {name: value for name, value in metrics.items() if value is not None}


def _metric(label: str) -> str:
    """MLflow takes letters, digits, _ - . and spaces in names, not the = and + of a cell, and 250 characters in all."""
    name = re.sub(r"[^\w\-. ]", "", re.sub("[=,]", " ", label))
    if len(name) <= MAX_METRIC_LABEL:
        return name
    return f"{name[: MAX_METRIC_LABEL - 9]} {hashlib.sha256(label.encode()).hexdigest()[:8]}"


def description(design: Design, findings: Findings, experiment_id: str, run_id: str, *, charted: int) -> str:
    """Question, answer and table in Markdown, with links to the report and to the view that compares cells.

    Args:
        charted: how many runs that view has. Those that another study trained are in its experiment.
    """
    report = f"#/experiments/{experiment_id}/runs/{run_id}/artifacts/{REPORT}"
    lines = [f"**{tables.in_markdown(design.question)}**", ""]
    if findings.search and findings.search.ranking:
        lines.append(f"- {tables.in_markdown(findings.search.ranking.text)}")
    lines += [f"- {tables.in_markdown(answer.text)}" for answer in findings.answers]
    lines += [f"- ⚠ {tables.in_markdown(flag)}" for flag in findings.flags]
    charts = f"#/experiments/{experiment_id}/runs?viewStateShareKey={run_id}&compareRunsMode=CHART"
    completed = sum(cell.error.n for cell in findings.cells)
    some = f" ({charted} of {completed} runs; the others are in the experiments of the studies that trained them)"
    lines += ["", f"[Report]({report})" + (f" · [charts of cells]({charts})" + some * (charted < completed) if charted else "")]
    lines += ["", f"| cell | {findings.evaluation_split} error % | n |", "| --- | ---: | ---: |"]
    for cell in findings.cells[:TABLE_ROWS]:
        lines.append(f"| {tables.in_markdown(cell.label)} | {number_format.mean_std(cell.error)} | {tables.of_planned(cell)} |")
    return "\n".join(lines)


def view(evidence: Evidence, run_id: str) -> dict[str, object]:
    """State of MLflow's runs page: the study's runs by cell, columns that matter, charts of the mean over each cell's seeds.

    It is the page's own format, of MLflow 3.17, stored as when somebody there shares a view.
    """
    evaluation_split, runs = evidence.design.evaluation_split, evidence.runs
    ids = runs["run_id"][runs["outcome"] == "completed"]
    children = f"tags.`{mlflow_tags.MLFLOW_PARENT_RUN_ID}` = '{run_id}' and tags.outcome = 'completed'"
    named = ", ".join(f"'{each}'" for each in ids)
    scored = f"{evaluation_split}/error"
    charts = [_chart("line", scored), _chart("line", "train/error"), _chart("line", f"{evaluation_split}/loss")]
    charts += [_chart("bar", scored), _chart("bar", "train_seconds"), _chart("bar", "parameters")]
    columns = ["tags.`cell`", "tags.`seed`", f"metrics.`{scored}`", "metrics.`train/error`", "metrics.`parameters`"]
    columns += ["metrics.`flops`", "metrics.`train_seconds`", "tags.`outcome`", "tags.`device`"]
    return {
        "searchFilter": f"attributes.run_id IN ({named})" if 0 < len(ids) <= MAX_SHOWN else children,
        "orderByKey": "tags.`cell`",
        "orderByAsc": True,
        "selectedColumns": columns,
        "groupBy": {"aggregateFunction": "average", "groupByKeys": [{"mode": "tag", "groupByData": "cell"}]},
        "runsHiddenMode": "SHOW_ALL",
        "useGroupedValuesInCharts": True,
        "compareRunCharts": charts,
        "compareRunSections": [{"uuid": "study", "name": "Cells", "display": True, "isReordered": True}],
    }


def _chart(kind: str, metric: str) -> dict[str, object]:
    chart: dict[str, object] = {"uuid": f"{kind}-{metric}", "type": kind.upper(), "metricKey": metric}
    chart |= {"metricSectionId": "study", "deleted": False, "isGenerated": False, "runsCountToCompare": 100}
    if kind == "line":
        chart |= {"selectedMetricKeys": [metric], "xAxisKey": "step", "xAxisScaleType": "linear", "scaleType": "linear"}
        chart |= {"lineSmoothness": 0, "useGlobalXaxisKey": True, "useGlobalLineSmoothing": True, "range": {}}
    return chart
