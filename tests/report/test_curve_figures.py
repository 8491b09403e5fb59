"""Curves: the lines hold the evidence's numbers, and every cell is named and told apart."""

import itertools
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure

from ablations.engine.analysis.evidence import Evidence
from ablations.engine.report.figures import caption
from ablations.engine.report.figures.curves import budget_figure, curves_figure, gradients_figure, responses_figure
from ablations.engine.report.figures.layout import narrow_figures
from ablations.engine.report.figures.styles import DASHES, MAX_STYLED_CELLS, MUTED, make_style_map
from tests.helpers.synthetic_figures import FEW, drawn, few, found, legend, probed
from tests.helpers.synthetic_study import design, evidence, without

Draw = Callable[[Evidence], Figure | None]


def line(panel: Axes, name: str) -> dict[float, float]:
    """Marks that are drawn for a cell."""
    (made,) = (each for each in panel.lines if each.get_label() == name)
    return dict(zip(np.asarray(made.get_xdata()).tolist(), np.asarray(made.get_ydata()).tolist(), strict=True))


def mean(rows: pd.DataFrame, cell: str, quantity: str, epoch: int) -> dict[float, float]:
    """Over seeds, of each layer of the main path."""
    wanted = rows[(rows["cell"] == cell) & (rows["quantity"] == quantity) & (rows["epoch"] == epoch) & (rows["layer"] > 0)]
    layers = sorted(set(wanted["layer"].tolist()))
    return {layer: float(np.mean(wanted["value"][wanted["layer"] == layer])) for layer in layers}


def bands(panel: Axes) -> list[PolyCollection]:
    return [each for each in panel.collections if isinstance(each, PolyCollection)]


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


@pytest.mark.slow
@pytest.mark.parametrize("draw", [curves_figure, budget_figure, responses_figure, gradients_figure])
@pytest.mark.parametrize("count", [1, 2, MAX_STYLED_CELLS])
def test_a_legend_names_every_cell_and_no_two_look_alike(draw: Draw, count: int) -> None:
    levels = [f"{i / 100}" for i in range(1, count + 1)]
    given = probed(evidence(design({"optim.lr": levels}, seeds=2)))
    assert legend(drawn(draw, given)) == [f"optim.lr={level}" for level in levels]
    told = make_style_map(given).styles.values()
    assert (
        len({(look.color, look.marker) for look in told}) == len({(look.marker, look.dash, look.color) for look in told}) == count
    )


def test_of_two_factors_one_is_told_by_dashes_the_other_by_colour_and_marker() -> None:
    plain8, plain14, residual8, residual14 = make_style_map(few()).styles.values()
    assert plain8.dash == plain14.dash != residual8.dash == residual14.dash
    assert (plain8.color, plain8.marker) == (residual8.color, residual8.marker)
    assert plain8.color != plain14.color
    assert plain8.marker != plain14.marker


def test_cells_are_in_rising_order_of_levels_and_look_the_same_whatever_is_done() -> None:
    given = evidence(design({"depth": ("20", "110", "8")}))
    assert list(make_style_map(given).styles) == ["depth=8", "depth=20", "depth=110"]
    assert make_style_map(without(given, "depth=8/0")).styles == make_style_map(given).styles


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
            means = given.curves[given.curves["cell"] == cell].groupby("epoch")[["train_value", "value"]].mean()
            assert line(panel, cell) == pytest.approx(means["value"].to_dict())
            assert np.asarray(train.get_ydata()).tolist() == pytest.approx(means["train_value"].tolist())
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
        means = given.curves[given.curves["cell"] == cell.label].groupby("epoch")["value"].mean()
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


@pytest.mark.parametrize("narrow", [False, True])
def test_the_label_of_curves_breaks_between_the_kinds_of_lines(*, narrow: bool) -> None:
    with narrow_figures() if narrow else nullcontext():
        label = drawn(curves_figure, evidence()).axes[0].get_ylabel()
    assert "\n" in label
    assert "dashed: train," in label
    assert "solid: test)" in label


def test_budgets_that_span_decades_get_logarithmic_axes() -> None:
    given = evidence(design({"depth": ("8", "110")}))
    assert [panel.get_xscale() for panel in drawn(budget_figure, given).axes] == ["linear", "log", "log"]


def test_dashes_and_fillings_go_together() -> None:
    looks = make_style_map(evidence(design({"shortcut": ("none", "A", "B", "C"), "depth": tuple("123456")}))).styles.values()
    assert len({look.dash for look in looks}) == len({look.fill for look in looks}) == len(DASHES)
    assert len({(look.dash, look.fill) for look in looks}) == len(DASHES)


@pytest.mark.parametrize("epochs", [1, 2, 3, 10, 200])
@pytest.mark.parametrize("draw", [curves_figure, budget_figure])
def test_epochs_are_numbered_in_whole_numbers(draw: Draw, epochs: int) -> None:
    spec = {"optim.schedule": "step", "optim.milestones": [0.25], "optim.epochs": epochs}  # within an epoch
    panel = drawn(draw, evidence(design({"depth": ("8", "14")}, spec=spec), epochs=epochs)).axes[0]
    low, high = panel.get_xlim()
    ticks = [tick for tick in panel.get_xticks() if low <= tick <= high]
    assert ticks
    assert all(tick == round(tick) for tick in ticks)
    assert [panel.xaxis.get_major_formatter()(tick) for tick in ticks] == [f"{tick:.0f}" for tick in ticks]


def test_three_factors_have_a_panel_for_each_pair_of_levels_with_a_line_per_level_of_the_third() -> None:
    factors = {"shortcut": ("none", "A", "B"), "depth": ("8", "14"), "model.norm": ("batch", "group")}
    given = evidence(design(factors), epochs=2)
    figure = drawn(curves_figure, given)
    titles = [panel.get_title(loc="left") for panel in figure.axes]
    assert titles == [f"model.norm={norm} depth={depth}" for norm in ("batch", "group") for depth in ("8", "14")]
    for panel in figure.axes:
        assert len([each for each in panel.lines if each.get_linestyle() == "-"]) == 3
    assert legend(figure) == ["shortcut=none", "shortcut=A", "shortcut=B"]
    told = make_style_map(given).styles.values()
    assert len({(look.color, look.marker, look.dash) for look in told}) == 12
    assert len({look.color for look in told}) == 3
