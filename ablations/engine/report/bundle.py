"""A report with its tables and figures, written to a folder or published to MLflow."""

import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from mlflow import MlflowClient

from ablations.engine.analysis.evidence import Evidence
from ablations.engine.analysis.findings import Findings
from ablations.engine.environment import signals
from ablations.engine.report import mlflow_page
from ablations.engine.report.mlflow_page import REPORT_PATH
from ablations.engine.tracking.study_run import REPORT_TAG, WHOLE


def publish(
    client: MlflowClient,
    run_id: str,
    evidence: Evidence,
    findings: Findings,
    *,
    running: str = "",
    part: str = "",
    permit: Callable[[], object] = lambda: None,
) -> None:
    """Makes report, tables and figures and logs them to the study's run, with a description that leads there.

    Args:
        running: how far the study is, where it is not at its end: `12 of 24 runs`.
        part: a name, where this is of a part of the study only: it goes beside the study's own report, to `parts/<name>`.
        permit: is called before each step that writes to MLflow, and ends it all with an error.
    """
    with tempfile.TemporaryDirectory() as folder:
        write(evidence, findings, Path(folder), running=running)
        for file in sorted(path for path in Path(folder).rglob("*") if path.is_file()):
            permit()
            where = Path("parts", part) if part else Path()
            below = (where / file.parent.relative_to(folder)).as_posix()
            client.log_artifact(run_id, str(file), None if below == "." else below)
    if not part:
        permit()
        mlflow_page.write_overview(client, run_id, evidence, findings)
        permit()
        client.set_tag(run_id, REPORT_TAG, running or WHOLE)


def write(evidence: Evidence, findings: Findings, folder: Path, *, running: str = "") -> None:
    """`report/report.html`, `table.csv`, `.md`, `.tex`, `figures/*.png` and `.svg`, and of a search `search/optuna.journal`."""
    with signals.deferred_signals():
        from ablations.engine.report import (  # matplotlib and jinja2: not for plans and lookups
            figures,
            html,
            paper_comparison,
            tables,
        )

    for name in ("figures", "report"):
        (folder / name).mkdir()
    pictures = []
    for name, figure in figures.all_figures(evidence, findings).items():
        for suffix in (".png", ".svg"):
            figures.save(figure, (folder / "figures" / name).with_suffix(suffix))
        caption = figures.caption(name, evidence, findings)
        svg = (folder / "figures" / f"{name}.svg").read_text(encoding="utf-8")
        pictures.append(html.ReportFigure(name=name, title=caption.title, text=caption.text, alt=caption.alt, svg=svg))
    made = {"csv": tables.csv, "md": tables.markdown, "tex": tables.latex}
    for suffix, table in made.items():
        (folder / f"table.{suffix}").write_text(table(findings), encoding="utf-8")
    page = html.render(
        evidence,
        findings,
        pictures,
        published=paper_comparison.compare_with_published(evidence, findings),
        written_at=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        running=running,
    )
    (folder / REPORT_PATH).write_text(page, encoding="utf-8")
    if evidence.design.search:
        from ablations.engine.report import optuna_journal

        (folder / "search").mkdir()
        optuna_journal.export(evidence, folder / "search" / optuna_journal.FILE_NAME)
