"""All figures of a study: named and said in words, legible whatever the study is, and the same files each time."""

import itertools
import re
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib import pyplot
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Text

from ablations.engine.analysis.evidence import Evidence
from ablations.engine.analysis.findings import Interaction
from ablations.engine.analysis.statistics.estimate import Estimate
from ablations.engine.report.figures import all_figures, caption
from ablations.engine.report.figures.axes import figure_style, plain_number, save, unit_prefix
from ablations.engine.report.figures.curves import curves_figure
from ablations.engine.report.figures.layout import NARROW_WIDTH_INCHES, WIDTH_INCHES, narrow_figures
from ablations.engine.report.figures.styles import COLORS, GRID, INK, MAX_STYLED_CELLS, MUTED, PAPER
from tests.helpers.synthetic_figures import drawn, few, found, legend, probed
from tests.helpers.synthetic_study import design, evidence, without

NAMES = ["curves", "depth", "differences", "interaction", "cost", "budget", "responses", "gradients"]


def visible_texts(figure: Figure) -> list[Text]:
    with figure_style():
        figure.draw_without_rendering()
    ticks = [
        (axis.get_view_interval(), tick) for panel in figure.axes for axis in (panel.xaxis, panel.yaxis) for tick in axis.majorTicks
    ]
    undrawn = [tick.label1 for ends, tick in ticks if not min(ends) <= tick.get_loc() <= max(ends)]
    found = (text for text in figure.findobj(Text) if isinstance(text, Text) and text.get_visible() and text.get_text().strip())
    return [text for text in found if text not in undrawn]


@pytest.mark.slow
def test_all_figures_of_a_study_are_in_order_and_each_has_its_words() -> None:
    given = probed(evidence())
    depends = Interaction(
        factors=("shortcut", "depth"), levels=("none", "56"), references=("A", "20"), difference=Estimate(n=3, mean=9)
    )
    findings = replace(found(given), interactions=(depends,))
    figures = all_figures(given, findings)
    assert list(figures) == NAMES
    for name, figure in figures.items():
        words = caption(name, given, findings)
        assert words.title
        assert re.search(r"[.]$", words.text)
        assert "3 seeds" in words.text or name == "differences"
        assert re.search(r"\d", words.alt)
        assert figure.get_figwidth() <= 7.2


def test_words_for_those_who_do_not_see_hold_the_main_numbers() -> None:
    given = evidence()
    findings = found(given)
    worst = next(cell for cell in findings.cells if cell.label == "shortcut=none depth=56").value.mean
    assert f"shortcut=none depth=56 {worst:.2f} %" in caption("curves", given, findings).alt
    assert f"{worst:.2f} % at 56" in caption("depth", given, findings).alt
    assert "1 of 4 differences" in caption("differences", given, findings).alt
    assert "shortcut=A depth=56" in caption("cost", given, findings).alt


@pytest.mark.slow
@pytest.mark.parametrize(
    "given",
    [
        evidence(design({"depth": ("20",)}, seeds=1), epochs=1),
        evidence(design(seeds=1)),
        pytest.param(evidence(epochs=1), marks=pytest.mark.nightly),
        pytest.param(
            without(without(without(evidence(), "shortcut=A depth=20/0"), "shortcut=A depth=20/1"), "shortcut=A depth=20/2"),
            marks=pytest.mark.nightly,
        ),
        pytest.param(evidence(truth=lambda cell, seed: np.nan if seed else 5.0), marks=pytest.mark.nightly),
        evidence(truth=lambda cell, seed: np.nan),
        pytest.param(evidence(truth=lambda cell, seed: 0.0), marks=pytest.mark.nightly),
        evidence(design({"a": ("1e999", "nan"), "b": ("", "x")})),
    ],
    ids=[
        "one of all",
        "one seed",
        "one epoch",
        "a cell without runs",
        "one seed known",
        "nothing known",
        "no errors",
        "no numbers",
    ],
)
def test_whatever_is_done_is_drawn(given: Evidence) -> None:
    findings, given = found(given), probed(given, epochs=(1,))
    for name, figure in all_figures(given, findings).items():
        figure.draw_without_rendering()
        assert caption(name, given, findings).alt


def test_nothing_done_draws_nothing() -> None:
    given = evidence(design({"depth": ("20", "56")}, seeds=1))
    for cell in given.design.cells:
        given = without(given, cell.fingerprints[0])
    assert not all_figures(given, found(given))


@pytest.mark.slow
def test_any_text_is_shown_as_it_is_and_whole(tmp_path: Path) -> None:
    hostile = ("$x^2$_a", "<b>&\"'", "_y", "a" * 150, "long words " * 12 + "end", "\x00\n", "中")
    given = probed(evidence(design({"_factor": hostile, "depth": ("8", "14")}, {"_factor": "_y"})), epochs=(1,))
    for name, figure in all_figures(given, found(given)).items():
        save(figure, tmp_path / f"{name}.svg")
        ElementTree.parse(tmp_path / f"{name}.svg")
        texts = visible_texts(figure)
        assert any("_y" in text.get_text() for text in texts), name
        assert any("$x^2$_a" in text.get_text() for text in texts), name
        assert not any(text.get_parse_math() for text in texts), name
        outside = [text.get_text() for text in texts if not inside(figure, text)]
        assert not outside, name


def inside(figure: Figure, text: Text) -> bool:
    box, page = text.get_window_extent(), figure.bbox
    return bool(page.x0 - 1 <= box.x0 and box.x1 <= page.x1 + 1 and page.y0 - 1 <= box.y0 and box.y1 <= page.y1 + 1)


@pytest.mark.slow
@pytest.mark.parametrize("narrow", [False, True], ids=["wide", "narrow"])
@pytest.mark.parametrize("count", [4, 9])
def test_no_two_texts_of_a_figure_overlap(count: int, *, narrow: bool) -> None:
    given = probed(evidence(design({"optim.lr": [f"{i / 100}" for i in range(1, count + 1)], "depth": ("8", "14")})), epochs=(1,))
    with narrow_figures() if narrow else nullcontext():
        figures = all_figures(given, found(given))
    for name, figure in figures.items():
        assert figure.get_figwidth() == (NARROW_WIDTH_INCHES if narrow else WIDTH_INCHES)
        assert not [text.get_text() for text in visible_texts(figure) if not inside(figure, text)], name
        boxes = [(text.get_text(), text.get_window_extent().padded(-1)) for text in visible_texts(figure)]
        touching = [(one, other) for (one, a), (other, b) in itertools.combinations(boxes, 2) if a.overlaps(b)]
        assert not touching, name


def many(cells: int, seeds: int, epochs: int) -> Evidence:
    """A grid of learning rates and weight decays."""
    side = round(cells**0.5)
    factors = {
        "optim.lr": [f"{i / 100}" for i in range(1, side + 1)],
        "optim.weight_decay": [f"{i}e-05" for i in range(1, side + 1)],
    }
    made = design(factors, {"optim.lr": "0.09"}, seeds=seeds)
    places = {cell.label: i for i, cell in enumerate(made.cells)}
    given = evidence(made, lambda cell, _: 5 + places[" ".join(f"{name}={level}" for name, level in cell.items())] / 9, epochs)
    noise = np.random.default_rng(0).normal(0, 1, len(given.curves))
    return Evidence(made, given.runs, given.curves.assign(value=given.curves["value"] + noise), given.probes)


def test_of_many_cells_the_baselines_and_the_best_are_told_apart_and_the_others_grey() -> None:
    given = many(100, 2, 3)
    findings = found(given)
    figure = drawn(curves_figure, given)
    told = [each.get_label() for each in figure.axes[0].lines]
    assert len(told) == MAX_STYLED_CELLS == len(legend(figure))
    labels = [cell.label for cell in given.design.cells]  # their errors rise in this order
    baselines = [label for label in labels if "optim.lr=0.09 " in label]
    assert set(told) == {*baselines, *labels[: MAX_STYLED_CELLS - len(baselines)]}
    (grey,) = (each for each in figure.axes[0].collections if isinstance(each, LineCollection))
    assert len(grey.get_segments()) == 100 - MAX_STYLED_CELLS
    for name in ("curves", "budget", "cost"):
        assert f"{MAX_STYLED_CELLS} of 100 cells" in caption(name, given, findings).text
    assert "50 more" in caption("differences", given, findings).text


def test_long_curves_are_thinned_from_the_first_to_the_last_epoch() -> None:
    figure = drawn(curves_figure, many(36, 2, 900))
    (grey,) = (each for each in figure.axes[0].collections if isinstance(each, LineCollection))
    for places in [np.asarray(each.get_xdata()) for each in figure.axes[0].lines] + [each[:, 0] for each in grey.get_segments()]:
        assert len(places) <= 200
        assert (places[0], places[-1]) == (1, 900)


@pytest.mark.nightly
@pytest.mark.slow
def test_a_study_of_2000_runs_is_drawn_in_seconds_into_small_files(tmp_path: Path) -> None:
    given = many(400, 5, 200)
    findings = found(given)
    began = time.process_time()
    figures = all_figures(given, findings)
    for name, figure in figures.items():
        save(figure, tmp_path / f"{name}.svg")
    assert time.process_time() - began < 15
    assert max(path.stat().st_size for path in tmp_path.iterdir()) < 1.5e6


@pytest.mark.slow
@pytest.mark.parametrize(
    ("suffix", "start"),
    [pytest.param(".png", b"\x89PNG", marks=pytest.mark.nightly), (".svg", b"<?xml")],
)
def test_a_saved_figure_is_of_the_suffixs_format_and_the_same_each_time(tmp_path: Path, suffix: str, start: bytes) -> None:
    given = few(epochs=(1,))
    for attempt in ("once", "again"):
        (tmp_path / attempt).mkdir()
        for name, figure in all_figures(given, found(given)).items():
            if suffix == ".svg" or name == "curves":
                save(figure, tmp_path / attempt / f"{name}{suffix}")
    saved = sorted((tmp_path / "once").iterdir())
    assert saved
    for path in saved:
        assert path.read_bytes().startswith(start)
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes()


def test_an_svg_does_not_depend_on_what_was_written_before(tmp_path: Path) -> None:
    def figure() -> Figure:
        with figure_style():
            made = Figure(figsize=(2, 2))
            made.subplots().scatter(range(50), range(50), rasterized=True)
        return made

    first, second = figure(), figure()
    save(first, tmp_path / "first.png")
    for each, name in ((first, "first"), (second, "second"), (second, "again")):
        save(each, tmp_path / f"{name}.svg")
    written = {(tmp_path / f"{name}.svg").read_bytes() for name in ("first", "second", "again")}
    assert len(written) == 1


@pytest.mark.slow
def test_a_page_can_give_every_colour_of_an_svg_its_own(tmp_path: Path) -> None:
    given = few(epochs=(1,))
    for name, figure in all_figures(given, found(given)).items():
        save(figure, tmp_path / f"{name}.svg")
        text = (tmp_path / f"{name}.svg").read_text()
        used = {colour.lower() for colour in re.findall(r"#[0-9a-fA-F]{6}\b", text)}
        assert used <= {each.lower() for each in (INK, MUTED, GRID, PAPER, *COLORS)}, name
        for background in re.findall(r'id="patch_[12]">\s*<path[^>]*>', text):
            assert "fill: none" in background, name


def luminance(colour: str) -> float:
    """Relative luminance as WCAG 2 defines it."""
    channels = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in to_rgb(colour)]
    return float(np.dot(channels, (0.2126, 0.7152, 0.0722)))


@pytest.mark.parametrize("colour", [colour for colour in COLORS if colour != INK])
@pytest.mark.parametrize("background", ["#ffffff", "#0d1117"])
def test_lines_stand_out_on_light_and_on_dark_pages(colour: str, background: str) -> None:
    low, high = sorted((luminance(colour), luminance(background)))
    assert (high + 0.05) / (low + 0.05) >= 3


@pytest.mark.slow
def test_a_figure_is_drawn_without_the_state_of_pyplot() -> None:
    all_figures(few(), found(few()))
    assert not pyplot.get_fignums()


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (0.05, "0.05"), (-3, "−3"), (2000, "2,000"), (3e-6, "3×10⁻⁶"), (1e-5, "10⁻⁵"), (1e12, "10¹²")]
)
def test_numbers_on_axes_are_plain_text(value: float, text: str) -> None:
    assert plain_number(value) == text


@pytest.mark.parametrize(
    ("largest", "expected"), [(0.5, (1, "")), (999, (1, "")), (1000, (1e3, " (×10³)")), (5e13, (1e12, " (×10¹²)"))]
)
def test_large_numbers_are_told_in_thousands_of_thousands(largest: float, expected: tuple[float, str]) -> None:
    assert unit_prefix(largest) == expected
