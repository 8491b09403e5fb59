"""Figures: the lines hold the evidence's numbers, every cell is named and told apart, and drawing warns of nothing."""

import itertools
import re
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from made_up import design, evidence, without
from made_up_figures import found, probed
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Text

from ablations.engine.curves import budget_figure, curves_figure, gradients_figure, responses_figure
from ablations.engine.drawing import plain, prefixed, save, styled
from ablations.engine.evidence import Evidence
from ablations.engine.figures import all_figures, caption
from ablations.engine.findings import Estimate, Interaction
from ablations.engine.looks import COLOURS, DASHES, GRID, INK, MOST_CELLS, MUTED, PAPER, scheme_of

NAMES = ["curves", "depth", "differences", "interaction", "cost", "budget", "responses", "gradients"]
FEW = {"shortcut": ("none", "A"), "depth": ("8", "14")}
Draw = Callable[[Evidence], Figure | None]


def few(seeds: int = 3, epochs: tuple[int, ...] = (1, 10)) -> Evidence:
    return probed(evidence(design(FEW, seeds=seeds)), epochs)


def drawn(draw: Draw, given: Evidence) -> Figure:
    figure = draw(given)
    assert figure
    return figure


def line(panel: Axes, name: str) -> dict[float, float]:
    """What is drawn for a cell."""
    (made,) = (each for each in panel.lines if each.get_label() == name)
    return dict(zip(np.asarray(made.get_xdata()).tolist(), np.asarray(made.get_ydata()).tolist(), strict=True))


def mean(rows: pd.DataFrame, cell: str, quantity: str, epoch: int) -> dict[float, float]:
    """Over seeds, of each layer of the main path."""
    wanted = rows[(rows["cell"] == cell) & (rows["quantity"] == quantity) & (rows["epoch"] == epoch) & (rows["layer"] > 0)]
    layers = sorted(set(wanted["layer"].tolist()))
    return {layer: float(np.mean(wanted["value"][wanted["layer"] == layer])) for layer in layers}


def bands(panel: Axes) -> list[PolyCollection]:
    return [each for each in panel.collections if isinstance(each, PolyCollection)]


def legend(figure: Figure) -> list[str]:
    return [text.get_text() for made in figure.legends for text in made.get_texts()]


def visible_texts(figure: Figure) -> list[Text]:
    with styled():
        figure.draw_without_rendering()
    ticks = [
        (axis.get_view_interval(), tick) for panel in figure.axes for axis in (panel.xaxis, panel.yaxis) for tick in axis.majorTicks
    ]
    undrawn = [tick.label1 for ends, tick in ticks if not min(ends) <= tick.get_loc() <= max(ends)]
    found = (text for text in figure.findobj(Text) if isinstance(text, Text) and text.get_visible() and text.get_text().strip())
    return [text for text in found if text not in undrawn]


def test_responses_are_drawn_by_layer_and_by_size_at_the_last_probed_epoch() -> None:
    given = few()
    by_layer, by_size = drawn(responses_figure, given).axes
    for cell in given.design.cells:
        expected = mean(given.probes, cell.label, "std", epoch=10)
        assert line(by_layer, cell.label) == pytest.approx(expected)
        assert line(by_size, cell.label) == pytest.approx(dict(enumerate(sorted(expected.values(), reverse=True), start=1)))


def test_gradients_are_drawn_by_layer_and_by_size_in_a_column_for_each_probed_epoch() -> None:
    given = few()
    first, last, first_by_size, last_by_size = drawn(gradients_figure, given).axes
    assert [first.get_title(loc="left"), last.get_title(loc="left")] == ["epoch 1", "epoch 10"]
    for epoch, by_layer, by_size in ((1, first, first_by_size), (10, last, last_by_size)):
        assert (by_layer.get_yscale(), by_size.get_yscale()) == ("log", "log")
        for cell in given.design.cells:
            expected = mean(given.probes, cell.label, "gradient_norm", epoch)
            assert line(by_layer, cell.label) == pytest.approx(expected)
            assert line(by_size, cell.label) == pytest.approx(dict(enumerate(sorted(expected.values(), reverse=True), start=1)))


def test_of_many_probed_epochs_four_are_shown_from_first_to_last() -> None:
    figure = drawn(gradients_figure, few(epochs=tuple(range(1, 31))))
    assert [panel.get_title(loc="left") for panel in figure.axes[:4]] == ["epoch 1", "epoch 11", "epoch 20", "epoch 30"]


def test_a_band_spans_the_seeds_and_is_absent_with_one() -> None:
    (band, *_) = bands(drawn(responses_figure, few(epochs=(1,))).axes[0])
    heights = np.asarray(band.get_paths()[0].vertices)
    assert (heights[:, 1].min(), heights[:, 1].max()) == (1, 7)  # of the first cell: seed 0 at its lowest, seed 2 at its highest
    assert not bands(drawn(responses_figure, few(seeds=1)).axes[0])


def test_sorting_is_within_each_seed() -> None:
    values = {(0, 1): 1.0, (0, 2): 5.0, (1, 1): 7.0, (1, 2): 3.0}  # means over seeds by layer: 4 and 4
    rows = [
        {"cell": "depth=8", "seed": seed, "probe": "responses", "epoch": 1, "layer": layer, "quantity": "std", "value": value}
        for (seed, layer), value in values.items()
    ]
    made = evidence(design({"depth": ("8",)}))
    figure = drawn(responses_figure, Evidence(made.design, made.runs, made.curves, pd.DataFrame(rows)))
    assert line(figure.axes[1], "depth=8") == {1: 6.0, 2: 2.0}


@pytest.mark.parametrize("draw", [curves_figure, budget_figure, responses_figure, gradients_figure])
@pytest.mark.parametrize("count", [1, 2, MOST_CELLS])
def test_a_legend_names_every_cell_and_no_two_look_alike(draw: Draw, count: int) -> None:
    levels = [f"{i / 100}" for i in range(1, count + 1)]
    given = probed(evidence(design({"optim.lr": levels}, seeds=2)))
    assert legend(drawn(draw, given)) == [f"optim.lr={level}" for level in levels]
    told = scheme_of(given).looks.values()
    assert (
        len({(look.colour, look.marker) for look in told}) == len({(look.marker, look.dash, look.colour) for look in told}) == count
    )


def test_of_two_factors_one_is_told_by_dashes_the_other_by_colour_and_marker() -> None:
    plain8, plain14, residual8, residual14 = scheme_of(few()).looks.values()
    assert plain8.dash == plain14.dash != residual8.dash == residual14.dash
    assert (plain8.colour, plain8.marker) == (residual8.colour, residual8.marker)
    assert plain8.colour != plain14.colour
    assert plain8.marker != plain14.marker


def test_cells_are_in_rising_order_of_levels_and_look_the_same_whatever_is_done() -> None:
    given = evidence(design({"depth": ("20", "110", "8")}))
    assert list(scheme_of(given).looks) == ["depth=8", "depth=20", "depth=110"]
    assert scheme_of(without(given, "depth=8/0")).looks == scheme_of(given).looks


def test_responses_that_differ_by_orders_of_magnitude_get_a_logarithmic_axis() -> None:
    given = few()
    assert drawn(responses_figure, given).axes[0].get_yscale() == "linear"
    given.probes.loc[given.probes["layer"] == 1, "value"] *= 1e4
    assert drawn(responses_figure, given).axes[0].get_yscale() == "log"


def test_a_cell_without_one_of_the_epochs_is_named_and_left_out_there() -> None:
    given, short = few(), "shortcut=A depth=8"
    rows = given.probes[(given.probes["cell"] != short) | (given.probes["epoch"] == 1)]
    figure = drawn(gradients_figure, Evidence(given.design, given.runs, given.curves, rows))
    assert line(figure.axes[0], short)
    assert short not in [each.get_label() for each in figure.axes[1].lines]
    assert short in legend(figure)


def test_curves_are_means_over_seeds_dashed_in_training_with_a_panel_for_each_level_of_the_smaller_factor() -> None:
    factors = {"shortcut": ("none", "A"), "depth": ("8", "14", "20")}
    given = evidence(design(factors), epochs=4)
    plain, residual = drawn(curves_figure, given).axes
    assert [panel.get_title(loc="left") for panel in (plain, residual)] == ["shortcut=none", "shortcut=A"]
    assert legend(drawn(curves_figure, given)) == ["depth=8", "depth=14", "depth=20"]
    for panel, (shortcut, depths) in zip(
        (plain, residual), itertools.product(factors["shortcut"], [factors["depth"]]), strict=True
    ):
        dashed = [each for each in panel.lines if each.get_linestyle() == "--"]
        for depth, train in zip(depths, dashed, strict=True):
            cell = f"shortcut={shortcut} depth={depth}"
            means = given.curves[given.curves["cell"] == cell].groupby("epoch")[["train_error", "error"]].mean()
            assert line(panel, cell) == pytest.approx(means["error"].to_dict())
            assert np.asarray(train.get_ydata()).tolist() == pytest.approx(means["train_error"].tolist())
        assert len(bands(panel)) == 6
        assert panel.get_ylim()[0] == 0


@pytest.mark.parametrize(
    ("spec", "places"),
    [
        ({"optim.schedule": "step", "optim.milestones": [0.5, 0.75], "optim.epochs": 8}, [4, 6]),
        ({"optim.schedule": "step", "optim.milestones": [0.5], "optim.iterations": 22, "optim.global_batch_size": 128}, [1]),
        ({"optim.schedule": "cosine", "optim.milestones": [0.5], "optim.epochs": 8}, []),
    ],
)
def test_lines_are_where_the_learning_rate_is_divided(spec: dict[str, Any], places: list[float]) -> None:
    given = evidence(design(FEW, spec=spec), epochs=8)
    panel = drawn(curves_figure, given).axes[0]
    vertical = [np.asarray(each.get_xdata()).tolist() for each in panel.lines if each.get_color() == MUTED]
    assert vertical == [[place, place] for place in places]
    assert ("learning rate is divided" in caption("curves", given, found(given)).text) == bool(places)


def test_no_line_is_where_cells_differ_in_when_the_learning_rate_is_divided() -> None:
    given = evidence(design(FEW, spec={"optim.schedule": "step", "optim.milestones": [0.5]}))
    given.design.cells[0].spec["optim.epochs"] = 99  # type: ignore[index]
    assert not [each for each in drawn(curves_figure, given).axes[0].lines if each.get_color() == MUTED]


def test_the_budget_is_epochs_multiply_adds_of_training_and_seconds_since_its_start() -> None:
    given = evidence(design(FEW, spec={"optim.global_batch_size": 100}), epochs=5)
    by_epoch, by_flops, by_seconds = drawn(budget_figure, given).axes
    for cell in given.design.cells:
        runs = given.runs[given.runs["cell"] == cell.label]
        means = given.curves[given.curves["cell"] == cell.label].groupby("epoch")["error"].mean()
        assert line(by_epoch, cell.label) == pytest.approx(means.to_dict())
        flops = [3 * runs["flops"].iloc[0] * 1400 * epoch / 1e9 for epoch in means.index]  # 14 full batches of 1,437 images
        assert list(line(by_flops, cell.label)) == pytest.approx(flops)
        assert list(line(by_seconds, cell.label)) == pytest.approx([runs["seconds"].mean() * epoch / 5 for epoch in means.index])
        assert list(line(by_flops, cell.label).values()) == pytest.approx(means.tolist())
    assert [panel.get_xlabel() for panel in (by_epoch, by_flops, by_seconds)] == [
        "epoch",
        "multiply-adds of training (×10⁹)",
        "training time, seconds",
    ]
    assert [panel.get_xscale() for panel in (by_epoch, by_flops, by_seconds)] == ["linear"] * 3


def test_budgets_that_span_decades_get_logarithmic_axes() -> None:
    given = evidence(design({"depth": ("8", "110")}))
    assert [panel.get_xscale() for panel in drawn(budget_figure, given).axes] == ["linear", "log", "log"]


def test_all_figures_of_a_study_are_in_order_and_each_has_its_words() -> None:
    given = probed(evidence())
    depends = Interaction(
        factors=("shortcut", "depth"), levels=("none", "56"), against=("A", "20"), difference=Estimate(n=3, mean=9)
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
    worst = next(cell for cell in findings.cells if cell.label == "shortcut=none depth=56").error.mean
    assert f"shortcut=none depth=56 {worst:.2f} %" in caption("curves", given, findings).alt
    assert f"{worst:.2f} % at 56" in caption("depth", given, findings).alt
    assert "1 of 4 differences are certain" in caption("differences", given, findings).alt
    assert "shortcut=A depth=56" in caption("cost", given, findings).alt


@pytest.mark.parametrize(
    "given",
    [
        evidence(design({"depth": ("20",)}, seeds=1), epochs=1),
        evidence(design(seeds=1)),
        evidence(epochs=1),
        without(without(without(evidence(), "shortcut=A depth=20/0"), "shortcut=A depth=20/1"), "shortcut=A depth=20/2"),
        evidence(truth=lambda cell, seed: np.nan if seed else 5.0),
        evidence(truth=lambda cell, seed: np.nan),
        evidence(truth=lambda cell, seed: 0.0),
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


@pytest.mark.parametrize("count", [4, 9])
def test_no_two_texts_of_a_figure_overlap(count: int) -> None:
    given = probed(evidence(design({"optim.lr": [f"{i / 100}" for i in range(1, count + 1)], "depth": ("8", "14")})), epochs=(1,))
    for name, figure in all_figures(given, found(given)).items():
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
    return Evidence(made, given.runs, given.curves.assign(error=given.curves["error"] + noise), given.probes)


def test_of_many_cells_the_baselines_and_the_best_are_told_apart_and_the_others_grey() -> None:
    given = many(100, 2, 3)
    findings = found(given)
    figure = drawn(curves_figure, given)
    told = [each.get_label() for each in figure.axes[0].lines]
    assert len(told) == MOST_CELLS == len(legend(figure))
    labels = [cell.label for cell in given.design.cells]  # their errors rise in this order
    baselines = [label for label in labels if "optim.lr=0.09 " in label]
    assert set(told) == {*baselines, *labels[: MOST_CELLS - len(baselines)]}
    (grey,) = (each for each in figure.axes[0].collections if isinstance(each, LineCollection))
    assert len(grey.get_segments()) == 100 - MOST_CELLS
    for name in ("curves", "budget", "cost"):
        assert f"{MOST_CELLS} of 100 cells" in caption(name, given, findings).text
    assert "50 smaller ones" in caption("differences", given, findings).text


def test_long_curves_are_thinned_from_the_first_to_the_last_epoch() -> None:
    figure = drawn(curves_figure, many(36, 2, 900))
    (grey,) = (each for each in figure.axes[0].collections if isinstance(each, LineCollection))
    for places in [np.asarray(each.get_xdata()) for each in figure.axes[0].lines] + [each[:, 0] for each in grey.get_segments()]:
        assert len(places) <= 200
        assert (places[0], places[-1]) == (1, 900)


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


@pytest.mark.parametrize(("suffix", "start"), [(".png", b"\x89PNG"), (".svg", b"<?xml"), (".pdf", b"%PDF")])
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


def test_a_page_can_give_every_colour_of_an_svg_its_own(tmp_path: Path) -> None:
    given = few(epochs=(1,))
    for name, figure in all_figures(given, found(given)).items():
        save(figure, tmp_path / f"{name}.svg")
        text = (tmp_path / f"{name}.svg").read_text()
        used = {colour.lower() for colour in re.findall(r"#[0-9a-fA-F]{6}\b", text)}
        assert used <= {each.lower() for each in (INK, MUTED, GRID, PAPER, *COLOURS)}, name
        for background in re.findall(r'id="patch_[12]">\s*<path[^>]*>', text):
            assert "fill: none" in background, name


def luminance(colour: str) -> float:
    """Relative luminance as WCAG 2 defines it."""
    channels = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in to_rgb(colour)]
    return float(np.dot(channels, (0.2126, 0.7152, 0.0722)))


@pytest.mark.parametrize("colour", [colour for colour in COLOURS if colour != INK])
@pytest.mark.parametrize("background", ["#ffffff", "#0d1117"])
def test_lines_stand_out_on_light_and_on_dark_pages(colour: str, background: str) -> None:
    low, high = sorted((luminance(colour), luminance(background)))
    assert (high + 0.05) / (low + 0.05) >= 3


def test_a_figure_is_drawn_without_the_state_of_pyplot() -> None:
    all_figures(few(), found(few()))
    assert not pyplot.get_fignums()


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (0.05, "0.05"), (-3, "−3"), (2000, "2,000"), (3e-6, "3×10⁻⁶"), (1e-5, "10⁻⁵"), (1e12, "10¹²")]
)
def test_numbers_on_axes_are_plain_text(value: float, text: str) -> None:
    assert plain(value) == text


@pytest.mark.parametrize(
    ("largest", "expected"), [(0.5, (1, "")), (999, (1, "")), (1000, (1e3, " (×10³)")), (5e13, (1e12, " (×10¹²)"))]
)
def test_large_numbers_are_told_in_thousands_of_thousands(largest: float, expected: tuple[float, str]) -> None:
    assert prefixed(largest) == expected


def test_dashes_and_fillings_go_together() -> None:
    looks = scheme_of(evidence(design({"shortcut": ("none", "A", "B", "C"), "depth": tuple("123456")}))).looks.values()
    assert len({look.dash for look in looks}) == len({look.filling for look in looks}) == len(DASHES)
    assert len({(look.dash, look.filling) for look in looks}) == len(DASHES)
