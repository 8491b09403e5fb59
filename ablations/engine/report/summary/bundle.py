"""Write the page of a summary with its figures and tables to a folder."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ablations.engine.analysis.datasets.findings import DatasetsFindings, DatasetStudy
from ablations.engine.environment import signals
from ablations.engine.report.summary.document import FILE_NAME, datasets_document, effect_frame

if TYPE_CHECKING:
    from ablations.engine.report.page.files import MlflowPlace

PAGE_PATH = "report/summary.html"


def write(
    found: DatasetsFindings,
    studies: Sequence[DatasetStudy],
    documents: Sequence[Mapping[str, Any]],
    run_ids: Sequence[str],
    folder: Path,
    place: "MlflowPlace | None" = None,
) -> None:
    """Write `report/summary.html`, `effects.csv`, `summary.json` and `figures/*.{png,svg}`.

    Args:
        found: findings over the data sets.
        studies: the study on each data set.
        documents: their findings as JSON values.
        run_ids: IDs of the studies' own runs in MLflow.
        folder: an empty folder.
        place: place of the page in MLflow; None for a page in a folder.
    """
    with signals.deferred_signals():  # imported here: plans and queries need no matplotlib and jinja2
        from ablations.engine.report import data_frames, findings_json
        from ablations.engine.report.figures.axes import save, svg_text
        from ablations.engine.report.figures.layout import narrow_figures
        from ablations.engine.report.page.figures import ReportFigure
        from ablations.engine.report.summary import figures, page

    for name in ("figures", "report"):
        (folder / name).mkdir()
    drawn = figures.summary_figures(found)
    with narrow_figures():
        narrow = {name: svg_text(figure) for name, figure in figures.summary_figures(found).items()}
    captions = {"forest": ("Effects by data set", *figures.forest_caption(found))}
    if found.ranks:
        captions["ranks"] = ("Ranks of cells", *figures.ranks_caption(found, found.ranks))
    shown = []
    for name, figure in drawn.items():
        for suffix in (".png", ".svg"):
            save(figure, (folder / "figures" / name).with_suffix(suffix))
        title, text, alt = captions[name]
        svg = (folder / "figures" / f"{name}.svg").read_text(encoding="utf-8")
        shown.append(ReportFigure(name=name, title=title, text=text, alt=alt, svg=svg, narrow_svg=narrow[name]))
    (folder / "effects.csv").write_text(data_frames.to_csv(effect_frame(found)), encoding="utf-8")
    document = datasets_document(found, studies, documents)
    (folder / FILE_NAME).write_text(findings_json.to_json(document), encoding="utf-8")
    written_at = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    text = page.render(found, studies, shown, run_ids=run_ids, written_at=written_at, place=place)
    (folder / PAGE_PATH).write_text(text, encoding="utf-8")
