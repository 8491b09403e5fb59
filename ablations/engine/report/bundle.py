"""Write a report with its tables and figures to a folder, or publish it to MLflow."""

import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import RunTag

from ablations.engine.analysis.evidence import Evidence
from ablations.engine.analysis.findings import Findings
from ablations.engine.environment import signals
from ablations.engine.report import mlflow_page
from ablations.engine.report.mlflow_page import REPORT_PATH
from ablations.engine.report.page.files import MlflowPlace
from ablations.engine.tracking.run_queries import DESIGN_TAG, REPORT_TAG, SUMMARY_TAG, WHOLE


def publish(
    client: MlflowClient,
    run_id: str,
    evidence: Evidence,
    findings: Findings,
    *,
    progress: str = "",
    part: str = "",
    permit: Callable[[], object] = lambda: None,
) -> None:
    """Log report, tables and figures to the study's MLflow run, with a description that links to them.

    Args:
        progress: The progress of a study that still runs, such as `12 of 24 runs`; empty for a finished study.
        part: The name of a part of the study. Its report goes to `parts/<name>`, beside the report of the whole study, and the
            description does not change.
        permit: Called before each write to MLflow. An exception that it raises stops the publication.
    """
    with tempfile.TemporaryDirectory() as folder:
        where = Path("parts", part) if part else Path()
        experiment_id = client.get_run(run_id).info.experiment_id
        place = MlflowPlace(tracking_uri=client.tracking_uri, experiment_id=experiment_id, run_id=run_id, folder=where.as_posix())
        write(evidence, findings, Path(folder), progress=progress, place=place)
        for file in sorted(path for path in Path(folder).rglob("*") if path.is_file()):
            permit()
            artifact_path = (where / file.parent.relative_to(folder)).as_posix()
            client.log_artifact(run_id, str(file), None if artifact_path == "." else artifact_path)
    if not part:
        permit()
        mlflow_page.write_overview(client, run_id, evidence, findings)
        permit()
        from ablations.engine.report import findings_json  # imported with the rest of the report

        digest = client.get_run(run_id).data.tags.get(DESIGN_TAG, "")
        tags = {SUMMARY_TAG: findings_json.summary(evidence, findings, digest), REPORT_TAG: progress or WHOLE}
        client.log_batch(run_id, tags=[RunTag(name, value) for name, value in tags.items()])


def write(evidence: Evidence, findings: Findings, folder: Path, *, progress: str = "", place: MlflowPlace | None = None) -> None:
    """Write the report, its tables and its figures.

    These are `report/report.html`, `table.{csv,md,tex}`, `{runs,curves}.csv`, `findings.json`, `figures/*.{png,svg}` and
    `search/optuna.journal` for a search.

    Args:
        folder: An empty folder.
        progress: The progress of a study that still runs; empty for a finished study.
        place: Place of the report in MLflow; None for a report in a folder.
    """
    with signals.deferred_signals():
        from ablations.engine.report import (  # imported here: plans and queries need no matplotlib and jinja2
            data_frames,
            figures,
            findings_json,
            html,
            paper_comparison,
            tables,
        )
        from ablations.engine.report.page.figures import ReportFigure

    for name in ("figures", "report"):
        (folder / name).mkdir()
    report_figures, narrow = [], figures.narrow_svgs(evidence, findings)
    for name, figure in figures.all_figures(evidence, findings).items():
        for suffix in (".png", ".svg"):
            figures.save(figure, (folder / "figures" / name).with_suffix(suffix))
        caption = figures.caption(name, evidence, findings)
        svg = (folder / "figures" / f"{name}.svg").read_text(encoding="utf-8")
        texts = {"title": caption.title, "text": caption.text, "alt": caption.alt}
        report_figures.append(ReportFigure(name=name, **texts, svg=svg, narrow_svg=narrow.get(name, "")))
    made = {"csv": tables.csv, "md": tables.markdown, "tex": tables.latex}
    for suffix, table in made.items():
        (folder / f"table.{suffix}").write_text(table(findings), encoding="utf-8")
    frames = {"runs": data_frames.run_frame(evidence), "curves": data_frames.curve_frame(evidence)}
    for name, frame in frames.items():
        (folder / f"{name}.csv").write_text(data_frames.to_csv(frame), encoding="utf-8")
    document = findings_json.findings_document(evidence, findings)
    (folder / findings_json.FILE_NAME).write_text(findings_json.to_json(document), encoding="utf-8")
    page = html.render(
        evidence,
        findings,
        report_figures,
        published=paper_comparison.compare_with_published(evidence, findings),
        written_at=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        progress=progress,
        place=place,
    )
    (folder / REPORT_PATH).write_text(page, encoding="utf-8")
    if evidence.design.search:
        from ablations.engine.report import optuna_journal

        (folder / "search").mkdir()
        optuna_journal.export(evidence, folder / "search" / optuna_journal.FILE_NAME)
