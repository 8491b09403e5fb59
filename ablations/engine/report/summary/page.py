"""The page of a study's summary over data sets: one self-contained file in the style of the report."""

from collections.abc import Sequence
from typing import Any

from ablations.engine.analysis.datasets import findings as verdicts
from ablations.engine.analysis.datasets.findings import DatasetsFindings, DatasetStudy
from ablations.engine.analysis.datasets.scores import MIN_DATASETS, RESAMPLES
from ablations.engine.analysis.datasets.sentences import scope_sentence
from ablations.engine.analysis.findings import CellFinding
from ablations.engine.analysis.number_format import ValueFormat
from ablations.engine.report import data_frames
from ablations.engine.report.html import template_environment
from ablations.engine.report.page.figures import ReportFigure
from ablations.engine.report.page.files import MlflowPlace, TextFile, links
from ablations.engine.report.summary.document import effect_frame

SYMBOLS = {verdicts.COMMON: "●", verdicts.DIFFERS: "◐", verdicts.NOT_SHOWN: "○", verdicts.UNTESTED: "?"}
"""Symbols of the verdicts, so that a verdict does not depend on color alone."""
FILES = ("effects.csv", "summary.json", "figures")
"""Files and folders one folder above the page."""
CLASSES = {verdicts.COMMON: "matters", verdicts.DIFFERS: "may", verdicts.NOT_SHOWN: "no", verdicts.UNTESTED: "cannot"}
"""Style classes of the verdicts, which are those of the report."""


def render(
    found: DatasetsFindings,
    studies: Sequence[DatasetStudy],
    figures: Sequence[ReportFigure],
    *,
    run_ids: Sequence[str],
    written_at: str,
    place: MlflowPlace | None = None,
) -> str:
    """Return the page as HTML.

    Args:
        found: findings over the data sets.
        studies: the study on each data set.
        figures: figures of the page.
        run_ids: IDs of the studies' own runs in MLflow.
        written_at: time of writing, as the page shows it.
        place: place of the page in MLflow; None for a page in a folder.
    """
    csv = data_frames.to_csv(effect_frame(found))
    return (
        template_environment(ValueFormat(found.metric, found.decimals))
        .get_template("summary.html.j2")
        .render(
            found=found,
            studies=list(zip(studies, run_ids, strict=True)),
            figures=figures,
            written_at=written_at,
            metric=found.metric,
            planned=sum(cell.planned for each in studies for cell in each.findings.cells),
            completed=sum(cell.value.n for each in studies for cell in each.findings.cells),
            cells=_cells(studies),
            symbols=SYMBOLS,
            classes=CLASSES,
            scope=scope_sentence(found.datasets),
            min_datasets=MIN_DATASETS,
            resamples=RESAMPLES,
            downloads=[TextFile(name=f"{found.study}-effects.csv", about="CSV with every digit", text=csv)],
            links=links(FILES, place),
        )
    )


def _cells(studies: Sequence[DatasetStudy]) -> list[dict[str, Any]]:
    """Return a row per cell with its results on each data set, None where a data set lacks the cell."""
    of_datasets = [{cell.label: cell for cell in each.findings.cells} for each in studies]
    labels = dict.fromkeys(label for each in of_datasets for label in each)
    found: list[dict[str, Any]] = []
    for label in labels:
        results: list[CellFinding | None] = [each.get(label) for each in of_datasets]
        found.append({"label": label, "results": results})
    return found
