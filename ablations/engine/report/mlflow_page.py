"""The study in MLflow's own interface: metrics and description of its run, and a view of its experiment that compares cells."""

import hashlib
import re
import time

from mlflow import MlflowClient
from mlflow.entities import Metric
from mlflow.utils import mlflow_tags

from ablations.engine.analysis import number_format
from ablations.engine.analysis.evidence import COST_METRICS, Evidence
from ablations.engine.analysis.findings import Findings
from ablations.engine.report import tables
from ablations.engine.study.design import Design
from ablations.engine.tracking import mlflow_internals
from resnet_core.fields import counted

MAX_METRICS_PER_REQUEST = 1000
REPORT_PATH = "report/report.html"
MAX_RUNS_IN_FILTER = 100
"""Maximum number of runs that the filter of the view lists by ID: MLflow limits the length of the tag that stores the filter."""
MAX_METRIC_LABEL_CHARACTERS = 200
"""Maximum length of a cell's label in a metric name, in characters; the end of a longer label is replaced by a hash."""
MAX_TABLE_ROWS = 60
"""Maximum number of rows of the table in the description; the report has all cells."""


def write_overview(client: MlflowClient, run_id: str, evidence: Evidence, findings: Findings) -> None:
    """Log metrics per cell, and set the description of the study's run and of its experiment."""
    design = evidence.design
    experiment_id = client.get_run(run_id).info.experiment_id
    now = int(time.time() * 1000)
    metrics = [Metric(name, value, now, 0) for name, value in cell_metrics(findings).items()]
    for start in range(0, len(metrics), MAX_METRICS_PER_REQUEST):
        client.log_batch(run_id, metrics=metrics[start : start + MAX_METRICS_PER_REQUEST])
    shown = view_filter(evidence, run_id)
    view = view_tag(evidence, run_id)
    charted = len(client.search_runs([experiment_id], shown, max_results=MAX_RUNS_IN_FILTER)) if view else 0
    text = description(design, findings, experiment_id, run_id, charted=charted)
    client.set_tag(run_id, mlflow_tags.MLFLOW_RUN_NOTE, text)
    client.set_experiment_tag(experiment_id, mlflow_tags.MLFLOW_RUN_NOTE, text)
    client.set_experiment_tag(experiment_id, mlflow_tags.MLFLOW_EXPERIMENT_PRIMARY_METRIC_NAME, design.metric.name)
    greater_is_better = str(design.metric.better == "higher")
    client.set_experiment_tag(experiment_id, mlflow_tags.MLFLOW_EXPERIMENT_PRIMARY_METRIC_GREATER_IS_BETTER, greater_is_better)
    for name, value in (view or {}).items():
        client.set_experiment_tag(experiment_id, name, value)


def cell_metrics(findings: Findings) -> dict[str, float]:
    """Return findings as MLflow metrics: `test_error_mean/shortcut A depth 20`, `difference_mean/shortcut B depth 20`, …"""
    metrics: dict[str, float | None] = {}
    for cell in findings.cells:
        values = {"mean": cell.value.mean, "std": cell.value.std, "n": float(cell.value.n)}
        metrics |= {f"{findings.metric.key}_{name}/{_metric_suffix(cell.label)}": value for name, value in values.items()}
    for comparison in findings.comparisons:
        difference = comparison.difference
        values = {"mean": difference.mean, "low": difference.low, "high": difference.high, "p_corrected": difference.p_adjusted}
        metrics |= {f"difference_{name}/{_metric_suffix(comparison.cell)}": value for name, value in values.items()}
    return {name: value for name, value in metrics.items() if value is not None}


def _metric_suffix(label: str) -> str:
    """Return a cell's label as part of a metric name.

    MLflow allows letters, digits, `_`, `-`, `.` and spaces in names, but not the `=` and `+` of a label, and 250 characters in all.
    """
    name = re.sub(r"[^\w\-. ]", "", re.sub("[=,]", " ", label))
    if len(name) <= MAX_METRIC_LABEL_CHARACTERS:
        return name
    return f"{name[: MAX_METRIC_LABEL_CHARACTERS - 9]} {hashlib.sha256(label.encode()).hexdigest()[:8]}"


def description(design: Design, findings: Findings, experiment_id: str, run_id: str, *, charted: int) -> str:
    """Return question, answers and table in Markdown, with links to the report and to the view that compares cells.

    Args:
        charted: Number of runs in that view. Runs that another study trained are in the experiment of that study.
    """
    report = mlflow_internals.artifact_page(experiment_id, run_id, REPORT_PATH)
    lines = [f"**{tables.escape_markdown(design.question)}**", ""]
    if findings.search and findings.search.ranking:
        lines.append(f"- {tables.escape_markdown(findings.search.ranking.text)}")
    lines += [f"- {tables.escape_markdown(answer.text)}" for answer in findings.answers]
    lines += [f"- ⚠ {tables.escape_markdown(flag)}" for flag in findings.flags]
    charts = mlflow_internals.shared_view_page(experiment_id, run_id)
    completed = sum(cell.value.n for cell in findings.cells)
    some = f" ({charted} of {counted(completed, 'run')}; the other runs are in the experiments of the studies that trained them)"
    lines += ["", f"[Report]({report})" + (f" · [Charts of the cells]({charts})" + some * (charted < completed) if charted else "")]
    formats, unit = number_format.ValueFormat.of(findings), findings.metric.unit
    heading = tables.escape_markdown(f"{findings.metric.label}{', ' * bool(unit)}{unit}")
    lines += ["", f"| cell | {heading} (mean ± std) | completed runs |", "| --- | ---: | ---: |"]
    for cell in findings.cells[:MAX_TABLE_ROWS]:
        lines.append(
            f"| {tables.escape_markdown(cell.label)} | {formats.mean_std(cell.value)} | {tables.completed_of_planned(cell)} |"
        )
    if len(findings.cells) > MAX_TABLE_ROWS:
        lines += ["", f"The report lists {counted(len(findings.cells) - MAX_TABLE_ROWS, 'more cell')}."]
    return "\n".join(lines)


def view_filter(evidence: Evidence, run_id: str) -> str:
    """Return the MLflow filter for the study's completed runs, for the view that compares cells."""
    runs = evidence.runs
    ids = runs["run_id"][runs["outcome"] == "completed"]
    if 0 < len(ids) <= MAX_RUNS_IN_FILTER:
        return "attributes.run_id IN ({})".format(", ".join(f"'{each}'" for each in ids))
    return f"tags.`{mlflow_tags.MLFLOW_PARENT_RUN_ID}` = '{run_id}' and tags.outcome = 'completed'"


def view_tag(evidence: Evidence, run_id: str) -> dict[str, str] | None:
    """Return the experiment tag of a view that averages each cell's runs over its seeds; None if this MLflow has no such views."""
    runs, metric = evidence.runs, evidence.design.metric
    costs = [COST_METRICS[column] for column in ("parameters", "flops", "seconds") if runs[column].notna().any()]
    trained = [metric.training_name] if runs["train_value"].notna().any() else []
    loss = [name for name in [f"{metric.split}/loss"] if name in runs]
    shown = [metric.name, *trained, *costs]
    columns = ["tags.`cell`", "tags.`seed`", *(f"metrics.`{name}`" for name in shown), "tags.`outcome`", "tags.`device`"]
    return mlflow_internals.shared_view_tag(
        run_id,
        search_filter=view_filter(evidence, run_id),
        columns=columns,
        group_by_tag="cell",
        title="Cells",
        lines=[metric.name, *trained, *loss],
        bars=[metric.name, *(name for name in ("train_seconds", "parameters") if name in costs)],
    )
