"""Figures: the lines hold the table's numbers, every cell is named and told apart, and drawing warns of nothing."""

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure

from ablations.engine.figures import COLOURS, DASHES, curves_figure, gradients_figure, looks_of, responses_figure, save

CELLS = {"shortcut=none depth=8": 8, "shortcut=none depth=14": 14, "shortcut=A depth=8": 8, "shortcut=A depth=14": 14}
"""Each with its depth."""
Draw = Callable[[pd.DataFrame], Figure]


def made_up(quantity: str, cells: dict[str, int] = CELLS, seeds: int = 3, epochs: tuple[int, ...] = (1, 10)) -> pd.DataFrame:
    """Values that do not fall with the layer, and a projection shortcut in each network."""
    rows = [
        {"cell": cell, "seed": seed, "epoch": epoch, "layer": layer, "name": f"conv{layer}", "quantity": name, "value": value}
        for seed in range(seeds)
        for i, (cell, depth) in enumerate(cells.items())
        for epoch in epochs
        for layer in range(depth)
        for name, value in ((quantity, (1 + i + seed + layer * 7 % 5) / epoch), ("other", 1e6))
    ]
    return pd.DataFrame(rows)


def line(panel: Axes, cell: str) -> dict[float, float]:
    """What is drawn for a cell."""
    (found,) = (each for each in panel.lines if each.get_label() == cell)
    return dict(zip(np.asarray(found.get_xdata()).tolist(), np.asarray(found.get_ydata()).tolist(), strict=True))


def mean(rows: pd.DataFrame, cell: str, quantity: str, epoch: int) -> dict[float, float]:
    """Over seeds, of each layer of the main path."""
    wanted = rows[(rows["cell"] == cell) & (rows["quantity"] == quantity) & (rows["epoch"] == epoch) & (rows["layer"] > 0)]
    layers = sorted(set(wanted["layer"].tolist()))
    return {layer: float(np.mean(wanted["value"][wanted["layer"] == layer])) for layer in layers}


def bands(panel: Axes) -> list[PolyCollection]:
    return [each for each in panel.collections if isinstance(each, PolyCollection)]


def test_responses_are_drawn_by_layer_and_by_size_at_the_last_probed_epoch() -> None:
    rows = made_up("std")
    by_layer, by_size = responses_figure(rows).axes
    for cell in CELLS:
        expected = mean(rows, cell, "std", epoch=10)
        assert line(by_layer, cell) == pytest.approx(expected)
        assert line(by_size, cell) == pytest.approx(dict(enumerate(sorted(expected.values(), reverse=True), start=1)))


def test_gradients_are_drawn_by_layer_and_by_size_in_a_column_for_each_probed_epoch() -> None:
    rows = made_up("gradient_norm")
    first, last, first_by_size, last_by_size = gradients_figure(rows).axes
    assert [first.get_title(loc="left"), last.get_title(loc="left")] == ["epoch 1", "epoch 10"]
    for epoch, by_layer, by_size in ((1, first, first_by_size), (10, last, last_by_size)):
        assert (by_layer.get_yscale(), by_size.get_yscale()) == ("log", "log")
        for cell in CELLS:
            expected = mean(rows, cell, "gradient_norm", epoch)
            assert line(by_layer, cell) == pytest.approx(expected)
            assert line(by_size, cell) == pytest.approx(dict(enumerate(sorted(expected.values(), reverse=True), start=1)))


def test_of_many_probed_epochs_four_are_shown_from_first_to_last() -> None:
    figure = gradients_figure(made_up("gradient_norm", epochs=tuple(range(1, 31))))
    assert [panel.get_title(loc="left") for panel in figure.axes[:4]] == ["epoch 1", "epoch 11", "epoch 20", "epoch 30"]


def test_a_band_spans_the_seeds_and_is_absent_with_one() -> None:
    (band, *_) = bands(responses_figure(made_up("std", epochs=(1,))).axes[0])
    heights = np.asarray(band.get_paths()[0].vertices)
    assert (heights[:, 1].min(), heights[:, 1].max()) == (1, 7)  # of the first cell: seed 0 at its lowest, seed 2 at its highest
    assert not bands(responses_figure(made_up("std", seeds=1)).axes[0])


def test_sorting_is_within_each_seed() -> None:
    values = {(0, 1): 1.0, (0, 2): 5.0, (1, 1): 7.0, (1, 2): 3.0}  # means over seeds by layer: 4 and 4
    rows = [
        {"cell": "depth=8", "seed": seed, "epoch": 1, "layer": layer, "quantity": "std", "value": value}
        for (seed, layer), value in values.items()
    ]
    assert line(responses_figure(pd.DataFrame(rows)).axes[1], "depth=8") == {1: 6.0, 2: 2.0}


@pytest.mark.parametrize(("draw", "quantity"), [(responses_figure, "std"), (gradients_figure, "gradient_norm")])
@pytest.mark.parametrize("count", [1, 2, 30])
def test_a_legend_names_every_cell_and_no_two_look_alike(draw: Draw, quantity: str, count: int) -> None:
    cells = {f"optim.lr={i / 100}": 8 for i in range(1, count + 1)}
    figure = draw(made_up(quantity, cells, seeds=2))
    (legend,) = figure.legends
    assert {text.get_text() for text in legend.get_texts()} == set(cells)
    assert len(set(looks_of(cells).values())) == min(count, len(COLOURS) * len(DASHES))


def test_of_two_factors_one_is_told_by_dashes_the_other_by_colour_and_marker() -> None:
    looks = looks_of(CELLS)
    plain8, plain14, residual8, residual14 = (looks[cell] for cell in CELLS)
    assert plain8.dash == plain14.dash != residual8.dash == residual14.dash
    assert (plain8.colour, plain8.marker) == (residual8.colour, residual8.marker)
    assert plain8.colour != plain14.colour
    assert plain8.marker != plain14.marker


def test_cells_are_in_rising_order_of_levels_whatever_that_of_the_rows() -> None:
    assert list(looks_of(reversed(["depth=8", "depth=20", "depth=110"]))) == ["depth=8", "depth=20", "depth=110"]
    assert list(looks_of(["stages=(2, 2)", "anything"])) == ["stages=(2, 2)", "anything"]


def test_responses_that_differ_by_orders_of_magnitude_get_a_logarithmic_axis() -> None:
    rows = made_up("std")
    assert responses_figure(rows).axes[0].get_yscale() == "linear"
    rows.loc[rows["layer"] == 1, "value"] *= 1e4
    assert responses_figure(rows).axes[0].get_yscale() == "log"


def test_a_cell_without_one_of_the_epochs_is_named_and_left_out_there() -> None:
    rows = made_up("gradient_norm")
    short = "shortcut=A depth=8"
    rows = rows[(rows["cell"] != short) | (rows["epoch"] == 1)]
    figure = gradients_figure(rows)
    assert line(figure.axes[0], short)
    assert not line(figure.axes[1], short)
    assert short in {text.get_text() for text in figure.legends[0].get_texts()}


@pytest.mark.parametrize(("suffix", "start"), [(".png", b"\x89PNG"), (".svg", b"<?xml"), (".pdf", b"%PDF")])
@pytest.mark.parametrize(("draw", "quantity"), [(responses_figure, "std"), (gradients_figure, "gradient_norm")])
def test_a_saved_figure_is_of_the_suffixs_format_and_the_same_each_time(
    tmp_path: Path, draw: Draw, quantity: str, suffix: str, start: bytes
) -> None:
    for name in ("once", "again"):
        save(draw(made_up(quantity)), tmp_path / f"{name}{suffix}")
    once, again = ((tmp_path / f"{name}{suffix}").read_bytes() for name in ("once", "again"))
    assert once.startswith(start)
    assert once == again


def test_a_figure_is_drawn_without_the_state_of_pyplot() -> None:
    responses_figure(made_up("std"))
    assert not pyplot.get_fignums()


def test_curves_are_means_over_seeds_dashed_in_training_with_a_panel_for_each_level_of_the_smaller_factor() -> None:
    cells = [f"shortcut={shortcut} depth={depth}" for shortcut in ("none", "A") for depth in (8, 14, 20)]
    rows = pd.DataFrame(
        {"cell": cell, "seed": seed, "epoch": epoch, "quantity": quantity, "value": i + seed + 10 * epoch + 100 * train}
        for i, cell in enumerate(cells)
        for seed in range(3)
        for epoch in (1, 2)
        for train, quantity in enumerate(("test/error", "train/error"))
    )
    plain, residual = curves_figure(rows).axes
    assert [panel.get_title(loc="left") for panel in (plain, residual)] == ["shortcut=none", "shortcut=A"]
    (legend,) = residual.figure.legends
    assert [each.get_text() for each in legend.get_texts()] == ["depth=8", "depth=14", "depth=20"]
    for i, (panel, depth) in enumerate(itertools.product((plain, residual), (8, 14, 20))):
        assert line(panel, f"depth={depth}") == {1.0: i + 1 + 10, 2.0: i + 1 + 20}
    dashed = [each for each in residual.lines if each.get_linestyle() == "--"]
    assert [np.asarray(each.get_ydata()).tolist() for each in dashed] == [[i + 111, i + 121] for i in (3, 4, 5)]
    assert len(bands(residual)) == 6
