"""The summary over data sets: its page, figures, table and JSON say the same, whatever the names."""

import itertools
import json
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from rich.console import Console

from ablations.engine.analysis.datasets.findings import DatasetStudy
from ablations.engine.report.figures.axes import save
from ablations.engine.report.figures.layout import narrow_figures
from ablations.engine.report.findings_json import findings_document
from ablations.engine.report.summary import bundle, figures, terminal
from ablations.engine.report.summary.document import datasets_document, effect_frame
from tests.helpers.json_schemas import problems
from tests.helpers.synthetic_datasets import found, studies
from tests.report.test_figures import inside, visible_texts


def documents(given: Sequence[DatasetStudy]) -> list[dict[str, Any]]:
    return [findings_document(each.evidence, each.findings) for each in given]


def written(given: Sequence[DatasetStudy], folder: Path) -> str:
    bundle.write(found(given), given, documents(given), [f"run{i}" for i in range(len(given))], folder)
    return (folder / bundle.PAGE_PATH).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def seven() -> list[DatasetStudy]:
    return studies(7, spread=2.0)


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 3, 5])
def test_the_document_follows_its_schema(count: int) -> None:
    given = studies(count)
    document = datasets_document(found(given), given, documents(given))
    assert problems("datasets", json.loads(json.dumps(document))) == []
    assert (document["summary"]["ranks"] is None) == (count < 5)
    for each in document["datasets"]:
        assert problems("findings", each["findings"]) == []


@pytest.mark.slow
def test_the_page_has_every_answer_and_loads_nothing(seven: list[DatasetStudy], tmp_path: Path) -> None:
    page = written(seven, tmp_path)
    assert "default-src 'none'" in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    for effect in found(seven).effects:
        assert effect.text.replace("'", "&#39;") in page
    assert "critical difference" in page
    for path in ("effects.csv", "summary.json", "figures/forest.png", "figures/forest.svg", "figures/ranks.png"):
        assert (tmp_path / path).stat().st_size
    assert json.loads((tmp_path / "summary.json").read_text())["schema"] == "ablations-datasets/1"


@pytest.mark.slow
def test_any_name_is_shown_as_text(tmp_path: Path) -> None:
    one, two = studies(2)
    name = "<b>$x$ & \"y\" 'z'"
    page = written([replace(one, name=name), two], tmp_path)
    assert "<b>$x$" not in page
    assert "&lt;b&gt;$x$" in page
    ElementTree.parse(tmp_path / "figures" / "forest.svg")


@pytest.mark.parametrize("narrow", [False, True], ids=["wide", "narrow"])
@pytest.mark.parametrize("count", [2, 7])
def test_texts_of_figures_are_inside_and_do_not_overlap(count: int, seven: list[DatasetStudy], *, narrow: bool) -> None:
    summary = found(seven[:count])
    with narrow_figures() if narrow else nullcontext():
        drawn = figures.summary_figures(summary)
    for figure in drawn.values():
        texts = visible_texts(figure)
        assert all(inside(figure, text) for text in texts)
        boxes = [(text.get_text(), text.get_window_extent().padded(-1)) for text in texts]
        touching = [(one, other) for (one, a), (other, b) in itertools.combinations(boxes, 2) if a.overlaps(b)]
        assert not touching


@pytest.mark.slow
def test_a_figure_is_the_same_file_each_time(tmp_path: Path) -> None:
    summary = found(studies(3))
    for name in ("a.svg", "b.svg"):
        figure = figures.forest_figure(summary)
        assert figure
        save(figure, tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


def test_without_effects_there_is_no_forest() -> None:
    summary = replace(found(studies(2)), effects=())
    assert figures.forest_figure(summary) is None
    assert figures.ranks_figure(summary) is None


def test_captions_hold_the_means_and_the_ranks(seven: list[DatasetStudy]) -> None:
    summary = found(seven)
    assert summary.ranks
    assert f"shortcut none − A: +{summary.effects[0].mean.mean:.2f}" in figures.forest_caption(summary)[1]
    assert "shortcut=none depth=56 6.00" in figures.ranks_caption(summary, summary.ranks)[1]


def test_the_table_of_effects_has_a_row_per_data_set_and_one_for_the_mean(seven: list[DatasetStudy]) -> None:
    frame = effect_frame(found(seven))
    assert len(frame) == 3 * 8
    mean = frame[(frame["level"] == "none") & (frame["dataset"] == "all")]["difference"].item()
    assert mean == pytest.approx(frame[(frame["level"] == "none") & (frame["dataset"] != "all")]["difference"].mean())


def test_the_terminal_names_columns_that_do_not_fit(seven: list[DatasetStudy]) -> None:
    console = Console(width=70, record=True)
    console.print(terminal.summary_view(found(seven)))
    text = console.export_text()
    assert "Not shown in 70 columns" in text
    assert "mean [95 %]" in text
    assert "normalized score, IQM [95 %]" in text
