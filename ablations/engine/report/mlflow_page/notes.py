"""Descriptions of a study's run and of its experiment in MLflow, and the metrics of the study's run."""

from mlflow import MlflowClient
from mlflow.entities import Run as MlflowRun
from mlflow.utils import mlflow_tags

from ablations.engine.analysis import number_format
from ablations.engine.analysis.cost import study_cost
from ablations.engine.analysis.evidence import Evidence
from ablations.engine.analysis.findings import Findings
from ablations.engine.report import tables
from ablations.engine.report.mlflow_page.cells import IMAGE_PATH
from ablations.engine.study.design import Design
from ablations.engine.study.factors import format_level
from ablations.engine.tracking import mlflow_internals
from resnet_core.fields import counted

REPORT_PATH = "report/report.html"
COMPLETED_METRIC = "completed_runs"
"""Metric of a study's run: number of its runs that completed. It decides which answer the experiment shows."""
CHECK_PRESET = "smoke"
"""Preset with generated images. Its answer is shown only if there is no other."""
RECIPE_FIELDS = ("optim.iterations", "optim.epochs", "optim.global_batch_size", "optim.lr", "optim.schedule")
"""Fields that the description names even if they have the study's own values."""
MAX_LISTED_STUDIES = 30
"""Maximum number of other runs of the study that the description of the experiment lists."""
MAX_TABLE_ROWS = 60
"""Maximum number of rows of the table in the description; the report has all cells."""


def study_metrics(evidence: Evidence, findings: Findings) -> dict[str, float]:
    """Return the totals of a study as metrics of its run. The image and the charts of the experiment compare its cells."""
    totals = {COMPLETED_METRIC: float(sum(cell.value.n for cell in findings.cells))}
    totals["planned_runs"] = float(sum(cell.planned for cell in findings.cells))
    if cost := study_cost(evidence):
        known = {"train_seconds": cost.seconds, "gpu_hours": cost.gpu_hours, "gpu_energy_kwh": cost.energy_kwh, "usd": cost.usd}
        totals |= {f"total_{name}": value for name, value in known.items() if value}
    return totals


def description(design: Design, findings: Findings, experiment_id: str, run_id: str, *, charted: int, drawn: bool = False) -> str:
    """Return question, answers, image and table in Markdown, with links to the report and to the view that compares cells.

    MLflow's list of experiments shows the beginning as raw text, so the question has no markup of its own.

    Args:
        drawn: True if the image of the cells is an artifact of the run.
        charted: Number of runs in that view. Runs that another study trained are in the experiment of that study.
    """
    report = mlflow_internals.artifact_page(experiment_id, run_id, REPORT_PATH)
    lines = [tables.escape_markdown(design.question), "", tables.escape_markdown(_scope(design)), ""]
    if findings.search and findings.search.ranking:
        lines.append(f"- {tables.escape_markdown(findings.search.ranking.text)}")
    lines += [f"- {tables.escape_markdown(answer.text)}" for answer in findings.answers]
    lines += [f"- ⚠ {tables.escape_markdown(flag)}" for flag in findings.flags]
    lines += [f"- {tables.escape_markdown(findings.cost)}"] if findings.cost else []
    charts = mlflow_internals.shared_view_page(experiment_id, run_id)
    completed = sum(cell.value.n for cell in findings.cells)
    some = f" ({charted} of {counted(completed, 'run')}; the other runs are in the experiments of the studies that trained them)"
    lines += ["", f"[Report]({report})" + (f" · [Charts of the cells]({charts})" + some * (charted < completed) if charted else "")]
    if drawn and (image := mlflow_internals.artifact_image(run_id, IMAGE_PATH)):
        lines += ["", f"![Cells of the study: mean and 95 % interval]({image})"]
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


def _scope(design: Design) -> str:
    """Return data, preset, seeds and settings of a study in one line."""
    examples = max(cell.train_examples for cell in design.cells)
    sizes = {"training": examples, "test": design.test_examples}
    counts = [counted(number, f"{kind} {design.example}") for kind, number in sizes.items() if number]
    spec = design.cells[0].spec
    recipe = {name: format_level(spec[name]) for name in RECIPE_FIELDS if spec.get(name) is not None and _is_shared(design, name)}
    if "optim.iterations" in recipe:
        recipe.pop("optim.epochs", None)
    parts = [f"Data set {design.dataset}" + (f" ({', '.join(counts)})" if counts else ""), f"preset {design.preset}"]
    parts += [counted(design.seeds, "seed")]
    parts += [", ".join(f"{name}={value}" for name, value in {**recipe, **design.settings}.items())]
    parts += [f"not the study's own: {', '.join(design.settings)}"] if design.settings else []
    return "; ".join(filter(None, parts)) + "."


def _is_shared(design: Design, name: str) -> bool:
    return all(cell.spec.get(name) == design.cells[0].spec[name] for cell in design.cells)


def update_experiment_note(client: MlflowClient, experiment_id: str, run_id: str) -> None:
    """Show in the experiment the answer of the study's run with the most completed runs, with links to its other runs.

    A study has one run per data set and settings. Of equal ones, the one that was reported last is shown; `run_id` is its ID.
    """
    runs = {
        run.info.run_id: run
        for run in client.search_runs([experiment_id], f"tags.`{mlflow_tags.MLFLOW_RUN_NOTE}` LIKE '%'", max_results=1000)
        if mlflow_tags.MLFLOW_PARENT_RUN_ID not in run.data.tags  # a user may describe single trainings
    }
    completed = {each: _completed(client, run) for each, run in runs.items()}

    def rank(each: str) -> tuple[bool, int, bool, int]:
        run = runs[each]
        return run.data.tags.get("preset") != CHECK_PRESET, completed[each], each == run_id, run.info.start_time

    order = sorted(runs, key=rank, reverse=True)
    if not order:
        return
    text = runs[order[0]].data.tags[mlflow_tags.MLFLOW_RUN_NOTE]
    others = [
        f"- [{tables.escape_markdown(str(runs[each].info.run_name))}]({mlflow_internals.run_page(experiment_id, each)}): "
        f"{counted(completed[each], 'completed run')}"
        for each in order[1 : 1 + MAX_LISTED_STUDIES]
    ]
    if others:
        name = tables.escape_markdown(str(runs[order[0]].info.run_name))
        text += f"\n\nThis is {name}. The study was also run with other data or settings:\n\n" + "\n".join(others)
        if len(order) > 1 + MAX_LISTED_STUDIES:
            text += f"\n- and {len(order) - 1 - MAX_LISTED_STUDIES} more"
    client.set_experiment_tag(experiment_id, mlflow_tags.MLFLOW_RUN_NOTE, text)


def _completed(client: MlflowClient, run: MlflowRun) -> int:
    """Return the number of completed runs of a study's run. Earlier versions did not log it; their runs are then counted."""
    if COMPLETED_METRIC in run.data.metrics:
        return int(run.data.metrics[COMPLETED_METRIC])
    where = f"tags.`{mlflow_tags.MLFLOW_PARENT_RUN_ID}` = '{run.info.run_id}' and tags.outcome = 'completed'"
    return len(client.search_runs([run.info.experiment_id], where, max_results=1000))
