"""The cells of a study on MLflow's pages: their short names, an image that compares them, and a view of the experiment."""

import tempfile
from pathlib import Path, PurePosixPath
from typing import Any

from matplotlib.figure import Figure
from mlflow import MlflowClient
from mlflow.utils import mlflow_tags

from ablations.engine.analysis.evidence import COST_METRICS, Evidence
from ablations.engine.analysis.findings import CellFinding, Findings
from ablations.engine.analysis.number_format import ValueFormat
from ablations.engine.report.figures.axes import figure_style, save
from ablations.engine.report.figures.styles import INK, MUTED
from ablations.engine.study.design import Design
from ablations.engine.tracking import mlflow_internals
from ablations.engine.tracking.run_queries import search_runs

MAX_RUNS_IN_FILTER = 100
"""Maximum number of runs that the filter of the view lists by ID: MLflow limits the length of the tag that stores the filter."""
MAX_NAME_CHARACTERS = 40
"""Maximum length of a short name, in characters. Names of a study with a longer one are the labels of the cells."""
MAX_CELLS_IN_IMAGE = 40
IMAGE_PATH, IMAGE_DPI = "figures/cells.png", 130
"""Artifact with the image, and its resolution: MLflow shows an image in a description at its own size."""


def short_names(design: Design) -> dict[str, str]:
    """Return a name for each cell that fits on an axis, by the cell's label: its levels without the names of factors, `C·56`.

    A level that says nothing by itself, such as True or None, keeps the name of its factor. The names are the labels if two cells
    would have the same one, or if one is too long.
    """
    # All factors, also those with one level here: the same run keeps its name in a part of the study.
    names = {cell.label: "·".join(_short_level(*each) for each in cell.levels.items()) for cell in design.cells}
    distinct = len(set(names.values())) == len(names) and all(names.values())
    if distinct and max(map(len, names.values())) <= MAX_NAME_CHARACTERS:
        return names
    return {cell.label: cell.label for cell in design.cells}


def _short_level(factor: str, level: str) -> str:
    word = factor.rpartition(".")[2]
    match level:
        case "True":
            return word
        case "False":
            return f"no {word}"
        case "None":
            return f"{word}=None"
    return level


def log_cells_image(client: MlflowClient, run_id: str, evidence: Evidence, findings: Findings) -> bool:
    """Log an image that compares all cells on one scale; return False if there is no result to show yet."""
    if not any(cell.value.n for cell in findings.cells):
        return False
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, PurePosixPath(IMAGE_PATH).name)
        save(cells_figure(evidence, findings), file, IMAGE_DPI)
        client.log_artifact(run_id, str(file), str(PurePosixPath(IMAGE_PATH).parent))
    return True


def cells_figure(evidence: Evidence, findings: Findings) -> Figure:
    """Draw the mean of each cell with its 95 % confidence interval, the value of each run, and both in numbers."""
    names, formats = short_names(evidence.design), ValueFormat.of(findings)
    cells = findings.cells[:MAX_CELLS_IN_IMAGE]
    values = evidence.runs[evidence.runs["outcome"] == "completed"].groupby("cell")["value"].apply(list).to_dict()
    with figure_style():
        figure = Figure(figsize=(5.4, 0.75 + 0.25 * len(cells)))
        panel = figure.subplots()
        for row, cell in enumerate(cells):
            _draw_cell(panel, row, cell, values.get(cell.label, []), formats)
        panel.set_ylim(len(cells) - 0.4, -0.6)
        panel.set_yticks(range(len(cells)), [names[cell.label] for cell in cells])
        panel.tick_params(axis="both", length=0, labelsize=9)
        panel.grid(axis="y", visible=False)
        unit = f", {findings.metric.unit}" if findings.metric.unit else ""
        rest = f"; {len(findings.cells) - len(cells)} more in the report" if len(findings.cells) > len(cells) else ""
        panel.set_xlabel(f"{findings.metric.label}{unit}: mean, 95 % interval, runs (gray){rest}", fontsize=8)
    return figure


def _draw_cell(panel: Any, row: int, cell: CellFinding, values: list[float], formats: ValueFormat) -> None:
    panel.plot(values, [row + 0.22] * len(values), "o", color=MUTED, alpha=0.6, markersize=3.5, markeredgewidth=0)
    estimate = cell.value
    if estimate.mean is None:
        text = "no result"
    else:
        text = formats.mean_std(estimate)
        if estimate.low is not None and estimate.high is not None:
            panel.plot([estimate.low, estimate.high], [row, row], color=INK, linewidth=1.6, solid_capstyle="butt")
        panel.plot([estimate.mean], [row], "o", color=INK, markersize=5)
    panel.text(1.02, row, text, transform=panel.get_yaxis_transform(), verticalalignment="center_baseline", fontsize=9)


def names_tag(design: Design) -> str:
    """Return the name of the tag with a run's cell. A run that two studies share has one for each of them."""
    return f"cell of {design.study}"


def name_cells(client: MlflowClient, run_id: str, evidence: Evidence) -> int:
    """Tag the completed runs with the short names of their cells; return the number of those in the study's own experiment."""
    names, tag, runs = short_names(evidence.design), names_tag(evidence.design), evidence.runs
    of_run = dict(zip(runs["run_id"], runs["cell"], strict=True))
    experiment_id, count = client.get_run(run_id).info.experiment_id, 0
    for run in search_runs(client, view_filter(evidence, run_id)):
        name = names.get(of_run.get(run.info.run_id, ""))
        if name and run.info.experiment_id == experiment_id:
            count += 1
            if run.data.tags.get(tag) != name:
                client.set_tag(run.info.run_id, tag, name)
    return count


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
    tag = names_tag(evidence.design)
    columns = [f"tags.`{tag}`", "tags.`seed`", *(f"metrics.`{name}`" for name in shown), "tags.`outcome`", "tags.`device`"]
    return mlflow_internals.shared_view_tag(
        run_id,
        search_filter=view_filter(evidence, run_id),
        columns=columns,
        group_by_tag=tag,
        title="Cells",
        lines=[metric.name, *trained, *loss],
        bars=[metric.name, *(name for name in ("train_seconds", "parameters") if name in costs)],
    )
