"""Figures of a study, from tidy tables: one line per cell, a band over its seeds, legible in grey print and to all eyes.

Tables have a row per value, with `cell` (its label), `seed`, and the columns of `resnet_core.probes.Row`.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's palette, which differs for all kinds of colour vision; without its yellow, which fades on white."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES = ("-", (0, (4, 1.5)), (0, (1, 1.2)), (0, (5, 1.5, 1, 1.5)))
STYLE: Any = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "axes.edgecolor": "#444444",
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.xmargin": 0.02,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
    "lines.linewidth": 1.2,
    "lines.markersize": 3,
    "legend.frameon": False,
    "legend.handlelength": 3.2,  # long enough to tell dashes
    "figure.constrained_layout.use": True,
    "savefig.dpi": 200,
    "svg.hashsalt": "resnet-ablations",  # the same figure is the same file
}
PANEL_INCHES = (3.3, 2.3)
MARKS = 10
"""Markers of a line, about: one at each of 110 layers would hide it."""
EPOCHS = 4
"""Panels next to each other, at most."""
LOG_FROM = 20
"""Responses are drawn on a logarithmic axis where the largest is so many times the median: before training has settled."""


class Look(NamedTuple):
    """How a cell is drawn, in every panel and figure of a study."""

    colour: str
    marker: str
    dash: Any


def responses_figure(rows: pd.DataFrame) -> Figure:
    """Figure 7 of He et al. 2015: standard deviations of layer responses, by layer and sorted, at each cell's last probed epoch.

    Lines are means over seeds, bands go from the lowest to the highest seed. Sorting is within each seed.
    """
    rows = _main_path(rows, "std")
    rows = rows[rows["epoch"] == rows.groupby("cell")["epoch"].transform("max")]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(2 * PANEL_INCHES[0], 2 * PANEL_INCHES[1]))
        by_layer, by_size = figure.subplots(2, 1, sharey=True)
        _draw_both(by_layer, by_size, rows, looks_of(rows["cell"].unique()))
        for panel in (by_layer, by_size):
            panel.set_ylabel("std of layer response")
        if rows["value"].max() > LOG_FROM * rows["value"].median():
            by_layer.set_yscale("log")
        else:
            by_layer.set_ylim(bottom=0)
        _legend(figure, by_layer)
    return figure


def gradients_figure(rows: pd.DataFrame) -> Figure:
    """Norms of layers' gradients, by layer and sorted, a column for each probed epoch: of many, four from first to last.

    Lines are means over seeds, bands go from the lowest to the highest seed. Sorting is within each seed.
    """
    rows = _main_path(rows, "gradient_norm")
    epochs = _few(sorted(rows["epoch"].unique()))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(max(2, len(epochs)) * PANEL_INCHES[0], 2 * PANEL_INCHES[1]))
        panels = figure.subplots(2, len(epochs), sharey=True, squeeze=False)
        looks = looks_of(rows["cell"].unique())
        for (by_layer, by_size), epoch in zip(panels.T, epochs, strict=True):
            _draw_both(by_layer, by_size, rows[rows["epoch"] == epoch], looks)
            by_layer.set_title(f"epoch {epoch}")
            by_layer.set_yscale("log")
        for panel in panels[:, 0]:
            panel.set_ylabel("norm of gradient")
        _legend(figure, panels[0, 0])
    return figure


def curves_figure(rows: pd.DataFrame) -> Figure:
    """Learning curves as in figures 4 and 6 of He et al. 2015: error by epoch, dashed in training, solid on the scored images.

    Of two factors, the one with fewer levels has a panel for each. Lines are means over seeds, bands go from the lowest to the
    highest seed.

    Args:
        rows: `cell`, `seed`, `epoch`, `quantity` (`train/error` and `test/error` or `validation/error`), `value` in percent.
    """
    looks = looks_of(rows["cell"].unique())
    groups = [[cell for cell in looks if looks[cell].dash == dash] for dash in dict.fromkeys(look.dash for look in looks.values())]
    scored = max(rows["quantity"].unique(), key=lambda name: not name.startswith("train/"))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(max(1.5, len(groups)) * PANEL_INCHES[0], 1.2 * PANEL_INCHES[1]))
        panels = figure.subplots(1, len(groups), sharey=True, squeeze=False)[0]
        for panel, cells in zip(panels, groups, strict=True):
            common = _common(cells, looks) if len(groups) > 1 else ""
            panel.set_title(common)
            for cell in cells:
                for quantity, dash in (("train/error", DASHES[1]), (scored, DASHES[0])):
                    of_cell = rows[(rows["cell"] == cell) & (rows["quantity"] == quantity)]
                    seeds = of_cell.pivot_table(index="epoch", columns="seed", values="value")
                    # What the title says is not repeated; a leading underscore keeps a line out of the legend.
                    label = " ".join(level for level in cell.split() if level not in common.split())
                    _line(panel, seeds, label if quantity == scored else "_", looks[cell]._replace(dash=dash, marker=""), 0)
            panel.set_xlabel("epoch")
        panels[0].set_ylabel(f"error % (dashed: train, solid: {scored.removesuffix('/error')})")
        panels[0].set_ylim(bottom=0)
        _legend(figure, *panels)
    return figure


def save(figure: Figure, path: Path) -> None:
    """Writes a PNG, SVG or PDF, as the suffix says; the same figure gives the same bytes."""
    dated = {".svg": "Date", ".pdf": "CreationDate"}.get(path.suffix)
    with matplotlib.rc_context(STYLE):
        figure.savefig(path, metadata={dated: None} if dated else None)


def looks_of(cells: Iterable[str]) -> dict[str, Look]:
    """How to draw each cell, in the order of the legend: rising levels where they are numbers.

    Of two factors, the one with fewer levels is told by dashes, the other by colour and marker; else every cell has its own.
    """
    cells = list(cells)
    levels = {cell: tuple(re.findall(r"[^\s=]+=(.*?)(?=\s[^\s=]+=|$)", cell)) for cell in cells}
    if len({len(of_cell) for of_cell in levels.values()}) != 1:
        levels = dict.fromkeys(cells, ())  # not labels of one study
    factors = [_rising(factor) for factor in zip(*levels.values(), strict=True)]
    places = {cell: [factor.index(level) for factor, level in zip(factors, levels[cell], strict=True)] for cell in cells}
    cells.sort(key=places.__getitem__)
    dashed = min(range(len(factors)), key=lambda i: len(factors[i]), default=0)
    if len(factors) == 2 and len(factors[dashed]) <= len(DASHES) and len(factors[1 - dashed]) <= len(COLOURS):
        return {cell: _look(places[cell][1 - dashed], places[cell][dashed]) for cell in cells}
    return {cell: _look(i, i // len(COLOURS)) for i, cell in enumerate(cells)}


def _common(cells: Sequence[str], every: Iterable[str]) -> str:
    """The levels that these cells share, and not all others."""
    here, everywhere = ([set(cell.split()) for cell in group] for group in (cells, every))
    shared = here[0].intersection(*here) - everywhere[0].intersection(*everywhere)
    return " ".join(level for level in cells[0].split() if level in shared)


def _look(colour: int, dash: int) -> Look:
    return Look(COLOURS[colour % len(COLOURS)], MARKERS[colour % len(MARKERS)], DASHES[dash % len(DASHES)])


def _rising(levels: Sequence[str]) -> list[str]:
    """The different levels: by size if they are numbers, else as they come."""
    different = list(dict.fromkeys(levels))
    try:
        return sorted(different, key=float)
    except ValueError:
        return different


def _main_path(rows: pd.DataFrame, quantity: str) -> pd.DataFrame:
    return rows[(rows["quantity"] == quantity) & (rows["layer"] > 0)]


def _few(epochs: Sequence[int]) -> list[int]:
    if len(epochs) <= EPOCHS:
        return list(epochs)
    return [epochs[round(i * (len(epochs) - 1) / (EPOCHS - 1))] for i in range(EPOCHS)]


def _draw_both(by_layer: Axes, by_size: Axes, rows: pd.DataFrame, looks: Mapping[str, Look]) -> None:
    """One line per cell, over the layers in their order (`by_layer`) and from the largest value down (`by_size`)."""
    for i, (cell, look) in enumerate(looks.items()):
        of_cell = rows[rows["cell"] == cell]
        seeds = of_cell.pivot_table(index="layer", columns="seed", values="value")
        _line(by_layer, seeds, cell, look, i / len(looks))
        ranked = {seed: sorted(seeds[seed], reverse=True) for seed in seeds}
        _line(by_size, pd.DataFrame(ranked, index=range(1, len(seeds) + 1)), cell, look, i / len(looks))
    by_layer.set_xlabel("layer index")
    by_size.set_xlabel("rank of layer, by magnitude")


def _line(panel: Axes, seeds: pd.DataFrame, label: str, look: Look, phase: float) -> None:
    """Mean over seeds (columns) at each place (index), and a band from lowest to highest; empty for a cell without such an epoch.

    Args:
        phase: where markers start, from 0 to 1, so that those of lines on top of each other alternate.
    """
    every = max(1, round(len(seeds) / MARKS))
    look_of_line = {"color": look.colour, "marker": look.marker, "linestyle": look.dash, "markevery": (int(phase * every), every)}
    panel.plot(seeds.index, seeds.mean(axis=1), label=label, **look_of_line)
    if len(seeds.columns) > 1:
        panel.fill_between(seeds.index, seeds.min(axis=1), seeds.max(axis=1), color=look.colour, alpha=0.15, linewidth=0)


def _legend(figure: Figure, *panels: Axes) -> None:
    """Below the panels, where it hides nothing whatever the number of cells; in as few even rows as fit."""
    shown = {label: handle for panel in panels for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)}
    handles, labels = list(shown.values()), list(shown)
    fit = max(1, int(figure.get_figwidth() / (0.6 + 0.065 * max(map(len, labels), default=1))))
    rows = -(-len(labels) // fit)
    figure.legend(handles, labels, loc="outside lower center", ncols=-(-len(labels) // max(1, rows)))
