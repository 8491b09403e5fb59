"""Figures of the scores of trials by the searched fields. Scores decided the choice, so they are no results."""

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
from ablations.engine.analysis.trial_table import cell_trials, format_value, observed_space, range_position, search_design
from ablations.engine.report.figures.axes import (
    CHARACTER_WIDTH_INCHES,
    MIN_RATIO_FOR_LOG_AXIS,
    figure_style,
    legend,
    log_axis,
    plain_number,
    shorten,
    wrap,
)
from ablations.engine.report.figures.layout import figure_width, panel_columns
from ablations.engine.report.figures.search_history import (
    CHOSEN_STYLE,
    MIN_MARKS_TO_RASTERIZE,
    cell_names,
    cell_styles,
    draw_chosen,
    draw_trials,
    outcome_styles,
    score_label,
    search_legend,
    set_score_axis,
)
from ablations.engine.report.figures.styles import COLORS, DASHES, INK, MUTED, PAPER, LineStyle, varied_factors
from ablations.engine.study.design import SearchDesign

MIN_TRIALS_FOR_MEDIANS = 9
"""Fewest completed trials of a cell for a line of medians."""
MAX_COLUMNS = 4
"""Maximum number of panels side by side."""
MAX_RATIO_FOR_DENSE_TICKS = 30
"""The logarithmic axis of a narrow panel has numbers only at powers of ten if it spans a greater ratio."""
STRIP_WIDTH = 0.8
"""Width of the strip of trials of one choice, as a fraction of the distance between choices."""
HIGHLIGHTED_LINES = 20
"""Approximate number of highlighted lines, those of the best trials."""
MIN_LINES_FOR_FAINT = 200
"""Number of lines above which those that are not highlighted are fainter."""
DEFAULT_STYLE = LineStyle(MUTED, "", DASHES[2], "full")
ABSENT_HEIGHT = -0.08
"""Height at which a line passes the axis of a field that its trial does not have, below the range from 0 to 1."""
RANK_COLORS = LinearSegmentedColormap.from_list("faded", [MUTED, COLORS[0]])
"""Colors from the worst to the best trial, visible on white and on black."""


def sensitivity_figure(evidence: Evidence, findings: Findings) -> Figure | None:
    """Draw the scores of trials against the learning rate, or else the most important numeric field, for all cells.

    Lines join the medians of groups of neighboring completed trials. Return None without such a field or a completed trial.
    """
    search = search_design(evidence)
    field = main_field(search, findings)
    by_cell = {cell.label: cell_trials(evidence, cell) for cell in search.cells}
    every = pd.concat(by_cell.values())
    if field is None or not (every["outcome"] == "completed").any():
        return None
    styles, dimension = cell_styles(search), observed_space(evidence)[field]
    with figure_style():
        figure = Figure(figsize=(figure_width(), 3.2))
        panel = figure.subplots()
        for label, trials in by_cell.items():
            positions = trials[field].astype(float)
            draw_trials(panel, positions, trials, styles[label], marks=len(every))
            panel.plot(*group_medians(positions, trials), color=styles[label].color, linewidth=1.8, zorder=3)
        _set_numeric_axis(panel, dimension, _default_values(search, field), figure_width())
        for label, trials in by_cell.items():
            draw_chosen(panel, trials[field].astype(float), trials, styles[label], search.chosen.get(label, {}))
        panel.set_xlabel(field)
        panel.set_ylabel(score_label(search))
        set_score_axis(panel, every["value"][every["outcome"].isin(["completed", "pruned"])], search)
        _draw_legend(figure, evidence, every, line="-")
    return figure


def slices_figure(evidence: Evidence) -> Figure | None:
    """Draw the scores of trials by each searched field, with a panel per field. Return None with one numeric field."""
    search = search_design(evidence)
    by_cell = {cell.label: cell_trials(evidence, cell) for cell in search.cells}
    every = pd.concat(by_cell.values())
    if not (every["outcome"] == "completed").any() or _has_one_numeric_field(search):
        return None
    styles, fields = cell_styles(search), observed_space(evidence)
    columns = panel_columns(len(fields), MAX_COLUMNS if len(fields) != MAX_COLUMNS + 1 else 3)
    rows = -(-len(fields) // columns)
    with figure_style():
        figure = Figure(figsize=(figure_width(), 2.4 * rows))
        panels = figure.subplots(rows, columns, sharey=True, squeeze=False)
        for panel, (field, dimension) in zip(panels.flat, fields.items(), strict=False):
            for order, (label, trials) in enumerate(by_cell.items()):
                positions = _axis_positions(dimension, trials, field, order, len(by_cell))
                draw_trials(panel, positions, trials, styles[label], marks=len(every) * len(fields))
                has = {
                    level: n for level, n in search.chosen.get(label, {}).items() if positions[trials["number"] == n].notna().all()
                }
                draw_chosen(panel, positions, trials, styles[label], has)
            if "choices" in dimension:
                _set_choice_axis(panel, dimension["choices"], figure_width() / columns - 0.4)
            else:
                _set_numeric_axis(panel, dimension, _default_values(search, field), figure_width() / columns)
            panel.set_xlabel(shorten(field))
        for panel in panels.flat[len(fields) :]:
            panel.set_axis_off()
        for panel in panels[:, 0]:
            panel.set_ylabel(score_label(search))
        set_score_axis(panels[0, 0], every["value"][every["outcome"].isin(["completed", "pruned"])], search)
        _draw_legend(figure, evidence, every)
    return figure


def importances_figure(evidence: Evidence, findings: Findings) -> Figure | None:
    """Draw each field's importance, its range over resamples and its chance level. Return None if no cell has importances."""
    assert findings.search
    cells = [cell for cell in findings.search.cells if cell.importances]
    if not cells:
        return None
    styles, names = cell_styles(search_design(evidence)), cell_names(evidence.design)
    shares = pd.DataFrame({cell.label: {each.field: each.share for each in cell.importances} for cell in cells})
    fields = list(shares.mean(axis=1).sort_values(ascending=False).index)
    height = 0.8 / len(cells)
    with figure_style():
        figure = Figure(figsize=(figure_width(), 0.7 + len(fields) * max(0.24, 0.13 * len(cells))))
        panel = figure.subplots()
        panel.grid(visible=False, axis="y")
        for order, cell in enumerate(cells):
            for each in cell.importances:
                y = fields.index(each.field) + (order - (len(cells) - 1) / 2) * height
                alpha = 0.55 if each.above_chance else 0.15
                panel.barh(y, 100 * each.share, height * 0.9, color=styles[cell.label].color, alpha=alpha)
                panel.plot([100 * each.low, 100 * each.high], [y, y], color=INK, linewidth=0.9, solid_capstyle="butt")
                panel.plot([100 * each.share], [y], marker=styles[cell.label].marker, markersize=3, color=INK)
                panel.vlines(100 * each.floor, y - 0.4 * height, y + 0.4 * height, color=INK, linewidth=0.9, linestyle=":")
        panel.set_yticks(range(len(fields)), [shorten(field) for field in fields])
        panel.set_xlim(0, 100)
        panel.invert_yaxis()
        what = f"importance for the {search_design(evidence).metric.label} within the searched space, % of the total"
        panel.set_xlabel(wrap(what, 0.75 * figure_width()))
        legend(figure, {names[cell.label]: styles[cell.label] for cell in cells if names[cell.label]})
    return figure


def parallel_figure(evidence: Evidence) -> Figure | None:
    """Draw each completed trial as a line through its cell, values and score. The best trials of each cell are blue and on top.

    Return None with one field, or with fewer than two completed trials.
    """
    search = search_design(evidence)
    trials = pd.concat([cell_trials(evidence, cell) for cell in search.cells])
    trials = trials[trials["outcome"] == "completed"]
    if len(search.fields) < 2 or len(trials) < 2:
        return None
    scores = trials.assign(score=search.metric.minimized(trials["value"])).groupby("cell")["score"]
    trials = trials.assign(rank=scores.rank(ascending=False, method="first", pct=True)).sort_values("rank")
    axes = _parallel_axes(evidence, trials)
    positions = np.column_stack([_axis_heights(dimension, trials[column]) for column, dimension in axes.values()])
    highlight = trials["rank"].to_numpy() ** max(3.0, len(trials) / HIGHLIGHTED_LINES)
    faint = 0.12 * min(1.0, (MIN_LINES_FOR_FAINT / len(trials)) ** 0.5)
    lines = LineCollection(
        [np.column_stack([range(len(axes)), line]) for line in positions],
        colors=RANK_COLORS(highlight, alpha=faint + (0.9 - faint) * highlight),
        linewidths=0.5 + highlight,
        rasterized=len(trials) > MIN_MARKS_TO_RASTERIZE,
    )
    width = figure_width() / len(axes)
    with figure_style():
        figure = Figure(figsize=(figure_width(), 3.4))
        panel = figure.subplots()
        panel.add_collection(lines)
        for x, (_, dimension) in enumerate(axes.values()):
            _draw_vertical_axis(panel, x, dimension, width, absent=bool((positions[:, x] < 0).any()))
        titles = [wrap(name.replace("_", "_ "), width).replace("_ ", "_") for name in axes]  # lines may break at underscores
        panel.set_xticks(range(len(axes)), titles, fontsize=7)
        panel.set_xlim(-0.15, len(axes) - 0.4)
        panel.set_ylim(float(positions.min()) - 0.04, 1.04)
        panel.set_yticks([])
        panel.grid(visible=False)
        panel.spines[["left", "bottom"]].set_visible(False)
        panel.tick_params(length=0)
    return figure


def main_field(search: SearchDesign, findings: Findings) -> str | None:
    """Return the field of the sensitivity figure: the learning rate, or else the most important numeric field."""
    assert findings.search
    numbers = [field for field, dimension in search.fields.items() if "choices" not in dimension]
    shares: dict[str, float] = dict.fromkeys(numbers, 0.0)
    for each in (each for cell in findings.search.cells for each in cell.importances if each.field in shares):
        shares[each.field] += each.share
    return "optim.lr" if "optim.lr" in numbers else max(shares, key=lambda field: shares[field], default=None)


def group_medians(positions: "pd.Series[Any]", trials: pd.DataFrame) -> tuple[list[float], list[float]]:
    """Return medians of position and score of √n groups of √n neighboring trials; empty with fewer than 9 completed trials."""
    completed = (trials["outcome"] == "completed") & positions.notna()
    order = positions[completed].sort_values(kind="stable").index
    if len(order) < MIN_TRIALS_FOR_MEDIANS:
        return [], []
    groups = np.array_split(order.to_numpy(), int(len(order) ** 0.5))
    return [float(positions[group].median()) for group in groups], [float(trials["value"][group].median()) for group in groups]


def _has_one_numeric_field(search: SearchDesign) -> bool:
    return len(search.fields) == 1 and all("choices" not in dimension for dimension in search.fields.values())


def _default_values(search: SearchDesign, field: str) -> list[float]:
    """Return the default values of a numeric field: more than one if cells differ in it."""
    given = {cell.spec.get(field) for cell in search.cells}
    return sorted(float(value) for value in given if isinstance(value, int | float))


def _set_numeric_axis(panel: Axes, dimension: Mapping[str, Any], defaults: Sequence[float], width: float) -> None:
    """Set an axis over the searched range and the defaults, which may lie outside of it."""
    for default in defaults:
        panel.axvline(default, color=MUTED, linewidth=1, linestyle=DASHES[2], zorder=1)
    low, high = min([dimension["low"], *defaults]), max([dimension["high"], *defaults])
    if dimension["log"] and low > 0:
        panel.set_xlim(low / (high / low) ** 0.03, high * (high / low) ** 0.03)
        log_axis(panel, "x")
        if high / low > MAX_RATIO_FOR_DENSE_TICKS and width < figure_width() / 2:
            panel.xaxis.set_major_locator(LogLocator())
    else:
        panel.set_xlim(low - 0.03 * (high - low), high + 0.03 * (high - low))


def _set_choice_axis(panel: Axes, choices: Sequence[Any], width: float) -> None:
    room = int(width / len(choices) / CHARACTER_WIDTH_INCHES)
    names = [format_value(choice) for choice in choices]
    steep = max(map(len, names)) > room
    panel.set_xticks(range(len(choices)), [shorten(name, 12 if steep else room) for name in names], rotation=45 * steep)
    panel.set_xlim(-0.5, len(choices) - 0.5)
    panel.grid(visible=False, axis="x")


def _axis_positions(dimension: Mapping[str, Any], trials: pd.DataFrame, field: str, order: int, cells: int) -> "pd.Series[Any]":
    """Return the positions of trials on a field's axis: values, or positions in the strip of a choice, cells side by side."""
    if "choices" not in dimension:
        return trials[field].astype(float)
    middle = (order - (cells - 1) / 2) * STRIP_WIDTH / cells
    jitter = (trials["number"] * 0.618034 % 1 - 0.5) * 0.7 * STRIP_WIDTH / cells  # even and reproducible
    index = trials[field].map(lambda value: np.nan if value is None else dimension["choices"].index(value)).astype(float)
    return index + middle + jitter


def _parallel_axes(evidence: Evidence, trials: pd.DataFrame) -> dict[str, tuple[str, Mapping[str, Any]]]:
    """Return, by title, the column that an axis shows and its range or choices."""
    search = search_design(evidence)
    factors = [name for name in varied_factors(evidence.design) if name != "configuration"]
    axes: dict[str, tuple[str, Mapping[str, Any]]] = {}
    if len(search.cells) > 1:
        names = [" ".join(cell.levels[name] for name in factors) for cell in search.cells]
        axes[" ".join(factors)] = "cell", {"choices": [cell.label for cell in search.cells], "names": names}
    for field, dimension in observed_space(evidence).items():
        axes[field.rpartition(".")[2]] = field, dimension
    low, high = float(trials["value"].min()), float(trials["value"].max())
    log = low > 0 and high > MIN_RATIO_FOR_LOG_AXIS * low
    return axes | {search.metric.heading: ("value", {"low": low, "high": high if high > low else low + 1, "log": log})}


def _axis_heights(dimension: Mapping[str, Any], values: "pd.Series[Any]") -> list[float]:
    """Return the heights of values on an axis from 0 to 1, or `ABSENT_HEIGHT` without a value."""
    return [ABSENT_HEIGHT if value is None else range_position(dimension, value) for value in values]


def _draw_vertical_axis(panel: Axes, x: float, dimension: Mapping[str, Any], width: float, *, absent: bool) -> None:
    """Draw one vertical axis with its values beside it."""
    panel.plot([x, x], [0, 1], color=MUTED, linewidth=0.8, zorder=3)
    ticks: dict[float, str] = {ABSENT_HEIGHT: "–"} if absent else {}
    if "choices" in dimension:
        names = dimension.get("names", map(format_value, dimension["choices"]))
        ticks |= {range_position(dimension, choice): name for choice, name in zip(dimension["choices"], names, strict=True)}
    else:
        low, high = dimension["low"], dimension["high"]
        middle = (low * high) ** 0.5 if dimension["log"] else (low + high) / 2
        ticks |= {height: plain_number(float(f"{value:.3g}")) for height, value in ((0.0, low), (0.5, middle), (1.0, high))}
    for y, text in ticks.items():
        panel.plot([x], [y], marker="_", markersize=5, color=MUTED, zorder=3)
        made = panel.text(x + 0.06, y, shorten(text, _characters_in(width) - 2), fontsize=7, verticalalignment="center", zorder=4)
        made.set_bbox({"facecolor": PAPER, "alpha": 0.75, "linewidth": 0, "pad": 0.8})


def _characters_in(width: float) -> int:
    """Return the number of small characters that fit in a width in inches."""
    return max(6, int(width / CHARACTER_WIDTH_INCHES * 1.1))


def _draw_legend(figure: Figure, evidence: Evidence, trials: pd.DataFrame, line: str = "none") -> None:
    """Draw the legend: cells, kinds of marks, chosen trials and the default."""
    search = search_design(evidence)
    styles = cell_styles(search)
    names = {name: styles[label]._replace(dash=line) for label, name in cell_names(evidence.design).items() if name}
    search_legend(
        figure, {**names, **outcome_styles(trials), **({"chosen": CHOSEN_STYLE} if search.chosen else {}), "default": DEFAULT_STYLE}
    )
