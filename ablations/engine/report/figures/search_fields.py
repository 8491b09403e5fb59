"""Figures of what the searched fields do to the validation error, by which the search chose."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from ablations.engine.analysis.evidence import Evidence
from ablations.engine.analysis.findings import Findings
from ablations.engine.analysis.trial_table import brief, fields_of, place, search_of, trials_of
from ablations.engine.report.figures.axes import (
    CHARACTER_INCHES,
    DECADE,
    WIDTH,
    legend,
    log_axis,
    plain,
    shortened,
    styled,
    wrapped,
)
from ablations.engine.report.figures.search_history import (
    CHOSEN,
    ERROR,
    MANY_MARKS,
    draw_chosen,
    draw_trials,
    error_axis,
    looks_of,
    names_of,
    outcomes_of,
    search_legend,
)
from ablations.engine.report.figures.styles import COLOURS, DASHES, INK, MUTED, PAPER, LineStyle, varied
from ablations.engine.study.design import SearchDesign

MIN_GROUPED = 9
"""Completed trials of a cell from which on a line is drawn through them."""
COLUMNS = 4
CROWDED = 30
"""Logarithmic axes of narrow panels that span more have numbers at powers of ten only."""
STRIP = 0.8
"""Of the way from one choice to the next that its trials take."""
BEST_TOLD = 20
"""Lines that stand out, about: of many trials only the very best."""
FAINTER_FROM = 200
"""Lines from which on those that do not stand out are fainter."""
DEFAULT = LineStyle(MUTED, "", DASHES[2], "full")
ABSENT = -0.08
"""Where lines of configurations without a field pass its axis, below its range."""
FADED = LinearSegmentedColormap.from_list("faded", [MUTED, COLOURS[0]])
"""From the worst to the best; both are seen on white and on black."""


def sensitivity_figure(evidence: Evidence, findings: Findings) -> Figure | None:
    """Validation error against the learning rate, or the field of numbers that moved it most, of all cells.

    Lines join the medians of groups of neighbouring completed trials. None without such a field or a completed trial.
    """
    search = search_of(evidence)
    field = main_field(search, findings)
    by_cell = {cell.label: trials_of(evidence, cell) for cell in search.cells}
    every = pd.concat(by_cell.values())
    if field is None or not (every["outcome"] == "completed").any():
        return None
    looks, dimension = looks_of(search), fields_of(evidence)[field]
    with styled():
        figure = Figure(figsize=(WIDTH, 3.2))
        panel = figure.subplots()
        for label, trials in by_cell.items():
            places = trials[field].astype(float)
            draw_trials(panel, places, trials, looks[label], marks=len(every))
            panel.plot(*medians(places, trials), color=looks[label].colour, linewidth=1.8, zorder=3)
        _number_axis(panel, dimension, _defaults(search, field), WIDTH)
        for label, trials in by_cell.items():
            draw_chosen(panel, trials[field].astype(float), trials, looks[label], search.chosen.get(label, {}))
        panel.set_xlabel(field)
        panel.set_ylabel(ERROR)
        error_axis(panel, every["error"][every["outcome"].isin(["completed", "pruned"])], search)
        _legend(figure, evidence, every, line="-")
    return figure


def slices_figure(evidence: Evidence) -> Figure | None:
    """Validation error by each searched field, a panel for each: choices as strips. None with one field of numbers."""
    search = search_of(evidence)
    by_cell = {cell.label: trials_of(evidence, cell) for cell in search.cells}
    every = pd.concat(by_cell.values())
    if not (every["outcome"] == "completed").any() or _alone(search):
        return None
    looks, fields = looks_of(search), fields_of(evidence)
    columns = min(COLUMNS, len(fields)) if len(fields) != COLUMNS + 1 else 3
    rows = -(-len(fields) // columns)
    with styled():
        figure = Figure(figsize=(WIDTH, 2.4 * rows))
        panels = figure.subplots(rows, columns, sharey=True, squeeze=False)
        for panel, (field, dimension) in zip(panels.flat, fields.items(), strict=False):
            for order, (label, trials) in enumerate(by_cell.items()):
                places = _places(dimension, trials, field, order, len(by_cell))
                draw_trials(panel, places, trials, looks[label], marks=len(every) * len(fields))
                has = {level: n for level, n in search.chosen.get(label, {}).items() if places[trials["number"] == n].notna().all()}
                draw_chosen(panel, places, trials, looks[label], has)
            if "choices" in dimension:
                _choice_axis(panel, dimension["choices"], WIDTH / columns - 0.4)
            else:
                _number_axis(panel, dimension, _defaults(search, field), WIDTH / columns)
            panel.set_xlabel(shortened(field))
        for panel in panels.flat[len(fields) :]:
            panel.set_axis_off()
        for panel in panels[:, 0]:
            panel.set_ylabel(ERROR)
        error_axis(panels[0, 0], every["error"][every["outcome"].isin(["completed", "pruned"])], search)
        _legend(figure, evidence, every)
    return figure


def importances_figure(evidence: Evidence, findings: Findings) -> Figure | None:
    """Share of each field in what moved the error, with 95 % intervals. None where no cell has any."""
    assert findings.search
    cells = [cell for cell in findings.search.cells if cell.importances]
    if not cells:
        return None
    looks, names = looks_of(search_of(evidence)), names_of(evidence.design)
    shares = pd.DataFrame({cell.label: {each.field: each.share for each in cell.importances} for cell in cells})
    fields = list(shares.mean(axis=1).sort_values(ascending=False).index)
    height = 0.8 / len(cells)
    with styled():
        figure = Figure(figsize=(WIDTH, 0.7 + len(fields) * max(0.24, 0.13 * len(cells))))
        panel = figure.subplots()
        panel.grid(visible=False, axis="y")
        for order, cell in enumerate(cells):
            for each in cell.importances:
                y = fields.index(each.field) + (order - (len(cells) - 1) / 2) * height
                panel.barh(y, 100 * each.share, height * 0.9, color=looks[cell.label].colour, alpha=0.55)
                panel.plot([100 * each.low, 100 * each.high], [y, y], color=INK, linewidth=0.9, solid_capstyle="butt")
                panel.plot([100 * each.share], [y], marker=looks[cell.label].marker, markersize=3, color=INK)
        panel.set_yticks(range(len(fields)), [shortened(field) for field in fields])
        panel.set_xlim(0, 100)
        panel.invert_yaxis()
        panel.set_xlabel("share of what moved the validation error within the space searched, %")
        legend(figure, {names[cell.label]: looks[cell.label] for cell in cells if names[cell.label]})
    return figure


def parallel_figure(evidence: Evidence) -> Figure | None:
    """Every completed trial as a line through its cell, its values and its error; the best of each cell are blue and on top.

    None with one field, or fewer than two completed trials.
    """
    search = search_of(evidence)
    trials = pd.concat([trials_of(evidence, cell) for cell in search.cells])
    trials = trials[trials["outcome"] == "completed"]
    if len(search.fields) < 2 or len(trials) < 2:
        return None
    trials = trials.assign(rank=trials.groupby("cell")["error"].rank(ascending=False, method="first", pct=True)).sort_values("rank")
    axes = _parallel_axes(evidence, trials)
    places = np.column_stack([_along(dimension, trials[column]) for column, dimension in axes.values()])
    told = trials["rank"].to_numpy() ** max(3.0, len(trials) / BEST_TOLD)
    faint = 0.12 * min(1.0, (FAINTER_FROM / len(trials)) ** 0.5)
    lines = LineCollection(
        [np.column_stack([range(len(axes)), line]) for line in places],
        colors=FADED(told, alpha=faint + (0.9 - faint) * told),
        linewidths=0.5 + told,
        rasterized=len(trials) > MANY_MARKS,
    )
    width = WIDTH / len(axes)
    with styled():
        figure = Figure(figsize=(WIDTH, 3.4))
        panel = figure.subplots()
        panel.add_collection(lines)
        for x, (_, dimension) in enumerate(axes.values()):
            _vertical(panel, x, dimension, width, absent=bool((places[:, x] < 0).any()))
        titles = [wrapped(name.replace("_", "_ "), width).replace("_ ", "_") for name in axes]  # broken at underscores
        panel.set_xticks(range(len(axes)), titles, fontsize=7)
        panel.set_xlim(-0.15, len(axes) - 0.4)
        panel.set_ylim(float(places.min()) - 0.04, 1.04)
        panel.set_yticks([])
        panel.grid(visible=False)
        panel.spines[["left", "bottom"]].set_visible(False)
        panel.tick_params(length=0)
    return figure


def main_field(search: SearchDesign, findings: Findings) -> str | None:
    """The field that sensitivity is shown of: the learning rate, else of those with numbers the one that moved the error most."""
    assert findings.search
    numbers = [field for field, dimension in search.fields.items() if "choices" not in dimension]
    shares: dict[str, float] = dict.fromkeys(numbers, 0.0)
    for each in (each for cell in findings.search.cells for each in cell.importances if each.field in shares):
        shares[each.field] += each.share
    return "optim.lr" if "optim.lr" in numbers else max(shares, key=lambda field: shares[field], default=None)


def medians(places: "pd.Series[Any]", trials: pd.DataFrame) -> tuple[list[float], list[float]]:
    """Medians of place and error of groups of neighbours, as many groups as each has trials; empty with fewer than 9 trials."""
    completed = (trials["outcome"] == "completed") & places.notna()
    order = places[completed].sort_values(kind="stable").index
    if len(order) < MIN_GROUPED:
        return [], []
    groups = np.array_split(order.to_numpy(), int(len(order) ** 0.5))
    return [float(places[group].median()) for group in groups], [float(trials["error"][group].median()) for group in groups]


def _alone(search: SearchDesign) -> bool:
    return len(search.fields) == 1 and all("choices" not in dimension for dimension in search.fields.values())


def _defaults(search: SearchDesign, field: str) -> list[float]:
    """The default values of a field of numbers; more than one where cells differ in it."""
    given = {cell.spec.get(field) for cell in search.cells}
    return sorted(float(value) for value in given if isinstance(value, int | float))


def _number_axis(panel: Axes, dimension: Mapping[str, Any], defaults: Sequence[float], width: float) -> None:
    """The range that was searched, and the defaults, which may lie outside of it."""
    for default in defaults:
        panel.axvline(default, color=MUTED, linewidth=1, linestyle=DASHES[2], zorder=1)
    low, high = min([dimension["low"], *defaults]), max([dimension["high"], *defaults])
    if dimension["log"] and low > 0:
        panel.set_xlim(low / (high / low) ** 0.03, high * (high / low) ** 0.03)
        log_axis(panel, "x")
        if high / low > CROWDED and width < WIDTH / 2:
            panel.xaxis.set_major_locator(LogLocator())
    else:
        panel.set_xlim(low - 0.03 * (high - low), high + 0.03 * (high - low))


def _choice_axis(panel: Axes, choices: Sequence[Any], width: float) -> None:
    room = int(width / len(choices) / CHARACTER_INCHES)
    names = [brief(choice) for choice in choices]
    steep = max(map(len, names)) > room
    panel.set_xticks(range(len(choices)), [shortened(name, 12 if steep else room) for name in names], rotation=45 * steep)
    panel.set_xlim(-0.5, len(choices) - 0.5)
    panel.grid(visible=False, axis="x")


def _places(dimension: Mapping[str, Any], trials: pd.DataFrame, field: str, order: int, cells: int) -> "pd.Series[Any]":
    """Where trials are along a field's axis: values, or within the strip of their choice, cells beside each other."""
    if "choices" not in dimension:
        return trials[field].astype(float)
    middle = (order - (cells - 1) / 2) * STRIP / cells
    spread = (trials["number"] * 0.618034 % 1 - 0.5) * 0.7 * STRIP / cells  # even, and the same every time
    index = trials[field].map(lambda value: np.nan if value is None else dimension["choices"].index(value)).astype(float)
    return index + middle + spread


def _parallel_axes(evidence: Evidence, trials: pd.DataFrame) -> dict[str, tuple[str, Mapping[str, Any]]]:
    """By title, the column of the trials that an axis shows, and its range or choices."""
    search = search_of(evidence)
    factors = [name for name in varied(evidence.design) if name != "configuration"]
    axes: dict[str, tuple[str, Mapping[str, Any]]] = {}
    if len(search.cells) > 1:
        names = [" ".join(cell.levels[name] for name in factors) for cell in search.cells]
        axes[" ".join(factors)] = "cell", {"choices": [cell.label for cell in search.cells], "names": names}
    for field, dimension in fields_of(evidence).items():
        axes[field.rpartition(".")[2]] = field, dimension
    low, high = float(trials["error"].min()), float(trials["error"].max())
    log = low > 0 and high > DECADE * low
    return axes | {"validation error %": ("error", {"low": low, "high": high if high > low else low + 1, "log": log})}


def _along(dimension: Mapping[str, Any], values: "pd.Series[Any]") -> list[float]:
    """Heights of values on an axis from 0 to 1, below it where there is none."""
    return [ABSENT if value is None else place(dimension, value) for value in values]


def _vertical(panel: Axes, x: float, dimension: Mapping[str, Any], width: float, *, absent: bool) -> None:
    """An axis of the parallel coordinates, with its values beside it."""
    panel.plot([x, x], [0, 1], color=MUTED, linewidth=0.8, zorder=3)
    ticks: dict[float, str] = {ABSENT: "–"} if absent else {}
    if "choices" in dimension:
        names = dimension.get("names", map(brief, dimension["choices"]))
        ticks |= {place(dimension, choice): name for choice, name in zip(dimension["choices"], names, strict=True)}
    else:
        low, high = dimension["low"], dimension["high"]
        middle = (low * high) ** 0.5 if dimension["log"] else (low + high) / 2
        ticks |= {height: plain(float(f"{value:.3g}")) for height, value in ((0.0, low), (0.5, middle), (1.0, high))}
    for y, text in ticks.items():
        panel.plot([x], [y], marker="_", markersize=5, color=MUTED, zorder=3)
        made = panel.text(x + 0.06, y, shortened(text, _room(width) - 2), fontsize=7, verticalalignment="center", zorder=4)
        made.set_bbox({"facecolor": PAPER, "alpha": 0.75, "linewidth": 0, "pad": 0.8})


def _room(width: float) -> int:
    """Characters of small type in so many inches."""
    return max(6, int(width / CHARACTER_INCHES * 1.1))


def _legend(figure: Figure, evidence: Evidence, trials: pd.DataFrame, line: str = "none") -> None:
    """Cells, kinds of marks, the chosen trials and the default."""
    search = search_of(evidence)
    looks = looks_of(search)
    names = {name: looks[label]._replace(dash=line) for label, name in names_of(evidence.design).items() if name}
    search_legend(figure, {**names, **outcomes_of(trials), **({"chosen": CHOSEN} if search.chosen else {}), "default": DEFAULT})
