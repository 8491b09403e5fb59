"""Figures of the trials of a search: their scores by trial number, and against a second objective.

Scores are values of the search's metric. They decided the choice, so they are no results. Every figure states this on its axis.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter

from ablations.engine.analysis.evidence import Evidence
from ablations.engine.analysis.trial_table import cell_trials, search_design
from ablations.engine.report.figures.axes import (
    figure_style,
    lay_out,
    legend,
    line_properties,
    log_axis,
    plain_number,
    spans_decades,
    time_unit,
    unit_prefix,
    whole_numbers,
)
from ablations.engine.report.figures.labels import Label, label_points
from ablations.engine.report.figures.layout import figure_width
from ablations.engine.report.figures.styles import INK, LineStyle, short_name, style_at
from ablations.engine.study.design import Design, SearchDesign
from ablations.engine.study.pareto import pareto_front
from ablations.engine.task.metric import PERCENT

MIN_MARKS_TO_RASTERIZE = 1500
"""Number of marks above which they are rasterized: as separate shapes they would make a page of several megabytes."""
MIN_MARKS_FOR_SMALL = 150
"""Number of marks in a figure above which marks are drawn smaller."""
CHOSEN_SIZE = 10.0
"""Diameter of the star at a chosen trial, in points."""
CHOSEN_STYLE = LineStyle(INK, "*", "none", "hollow")
OUTCOME_STYLES = {
    "completed": LineStyle(INK, "o", "none", "full"),
    "stopped early": LineStyle(INK, "o", "none", "hollow"),
    "diverged": LineStyle(INK, "x", "none", "full"),
}
"""Styles of trials by outcome, with the words of the legend."""


def history_figure(evidence: Evidence) -> Figure | None:
    """Draw the last score of each trial by its number, and the best of the completed trials so far.

    Return None without a trial.
    """
    search = search_design(evidence)
    by_cell = {cell.label: cell_trials(evidence, cell) for cell in search.cells}
    every = pd.concat(by_cell.values())
    scored = every[every["outcome"].isin(["completed", "pruned"])]
    if not len(scored):
        return None
    styles = cell_styles(search)
    with figure_style():
        figure = Figure(figsize=(figure_width(), 3.2))
        panel = figure.subplots()
        for label, trials in by_cell.items():
            draw_trials(panel, trials["number"], trials, styles[label], marks=len(every))
            completed = trials[trials["outcome"] == "completed"]
            if len(completed):
                positions = [*completed["number"], every["number"].max()]
                best = search.metric.minimized(search.metric.minimized(completed["value"]).cummin()).tolist()
                panel.plot(positions, [*best, best[-1]], drawstyle="steps-post", color=styles[label].color, linewidth=1.6, zorder=3)
        panel.set_xlabel("trial")
        whole_numbers(panel)
        panel.set_ylabel(score_label(search))
        set_score_axis(panel, scored["value"], search)
        names = {name: styles[label]._replace(dash="-") for label, name in cell_names(evidence.design).items() if name}
        best_so_far = {} if names else {"best completed so far": LineStyle(styles[""].color, "", "-", "full")}
        legend(figure, {**names, **best_so_far, **outcome_styles(every)})
    return figure


def search_pareto_figure(evidence: Evidence) -> Figure | None:
    """Draw the scores of completed trials against the second objective, with each cell's Pareto front and choice.

    Return None without a second objective or with fewer than two completed trials.
    """
    search = search_design(evidence)
    if not search.objective:
        return None
    by_cell = {cell.label: cell_trials(evidence, cell) for cell in search.cells}
    by_cell = {label: trials[trials["outcome"] == "completed"] for label, trials in by_cell.items()}
    every = pd.concat(by_cell.values())
    if len(every) < 2:
        return None
    most = float(every[search.objective].max())
    scale, unit = unit_prefix(most) if search.objective == "flops" else time_unit(most)
    what = f"multiply-adds of a forward pass{unit}" if search.objective == "flops" else f"training time of a trial, {unit}"
    styles = cell_styles(search)
    with figure_style():
        figure = Figure(figsize=(figure_width(), 3.4))
        panel = figure.subplots()
        panel.margins(0.08)
        for label, trials in by_cell.items():
            costs = trials[search.objective] / scale
            draw_trials(panel, costs, trials, styles[label], marks=len(every))
            points = np.column_stack([costs, trials["value"]])
            front = points[pareto_front(np.column_stack([costs, search.metric.minimized(trials["value"])]).tolist())]
            panel.plot(front[:, 0], front[:, 1], drawstyle="steps-post", color=styles[label].color, linewidth=1.2)
            draw_chosen(panel, costs, trials, styles[label], search.chosen.get(label, {}))
        panel.set_xlabel(what)
        panel.set_ylabel(score_label(search))
        if spans_decades(every[search.objective]):
            log_axis(panel, "x")
        set_score_axis(panel, every["value"], search)
        names = {name: styles[label]._replace(dash="-") for label, name in cell_names(evidence.design).items() if name}
        search_legend(figure, {**names, **({"chosen": CHOSEN_STYLE} if search.chosen else {})})
        lay_out(figure)  # labels need the final positions of the marks
        marks = list(zip(every[search.objective] / scale, every["value"], strict=True))
        label_points(panel, _chosen_labels(search, by_cell, scale), marks, radius_points=CHOSEN_SIZE / 2, must=True)
    return figure


def _chosen_labels(search: SearchDesign, by_cell: Mapping[str, pd.DataFrame], scale: float) -> list[Label]:
    """Return the numbers of the chosen trials along the front of each cell."""
    labels = []
    for cell, trials in by_cell.items():
        of_trial = trials.set_index("number")
        for level, number in search.chosen.get(cell, {}).items():
            position = float(of_trial[search.objective][number]) / scale, float(of_trial["value"][number])
            labels.append(Label(position, level.removeprefix("front-")))
    return labels


def cell_styles(search: SearchDesign) -> dict[str, LineStyle]:
    """Return the style of each cell of a search, by label."""
    return {cell.label: style_at(position)._replace(dash="none") for position, cell in enumerate(search.cells)}


def cell_names(design: Design) -> dict[str, str]:
    """Return the name of each cell of a search, by label: empty for the only cell of a search without factors."""
    assert design.search
    return {cell.label: short_name(design, cell.levels, "configuration") or cell.label for cell in design.search.cells}


def draw_trials(panel: Axes, positions: "pd.Series[Any]", trials: pd.DataFrame, style: LineStyle, marks: int) -> None:
    """Draw a mark per trial: filled if it completed, hollow if it was stopped early, a cross at the top if it diverged.

    Args:
        positions: Position of each trial on the axis; NaN for a trial that is not drawn.
        marks: Number of marks in the figure.
    """
    many = marks > MIN_MARKS_TO_RASTERIZE
    size = 1.8 if many else 2.4 if marks > MIN_MARKS_FOR_SMALL else 3.8
    common: dict[str, Any] = {"linestyle": "none", "markeredgewidth": 0.4 if many else 0.7}
    if many:
        panel.set_rasterization_zorder(0)
        common["zorder"] = -1
    for outcome, filling, alpha in (("pruned", "hollow", 0.25 if many else 0.5), ("completed", "full", 0.75)):
        chosen = trials["outcome"] == outcome
        drawn = line_properties(style._replace(fill=filling)) | common | {"alpha": alpha, "markersize": size}
        panel.plot(positions[chosen], trials["value"][chosen], **drawn)
    diverged = positions[trials["outcome"] == "diverged"]
    crosses: dict[str, Any] = {"marker": "x", "color": style.color, "markersize": size, "clip_on": False}
    panel.plot(diverged, np.ones(len(diverged)), **common | crosses, transform=panel.get_xaxis_transform(), in_layout=False)


def draw_chosen(
    panel: Axes,
    positions: "pd.Series[Any]",
    trials: pd.DataFrame,
    style: LineStyle,
    chosen: Mapping[str, int],
) -> None:
    """Draw a star at each chosen trial."""
    for number in chosen.values():
        here = trials["number"] == number
        x, y = float(positions[here].iloc[0]), float(trials["value"][here].iloc[0])
        panel.plot(
            [x], [y], marker="*", markersize=CHOSEN_SIZE, color=style.color, markeredgecolor=INK, markeredgewidth=0.8, zorder=5
        )


def search_legend(figure: Figure, styles: Mapping[str, LineStyle]) -> None:
    """Draw a legend below the panels, with stars large enough to differ from dots."""
    legend(figure, styles)
    for made in figure.legends:
        for handle in made.legend_handles:
            if isinstance(handle, Line2D) and handle.get_marker() == CHOSEN_STYLE.marker:
                handle.set_markersize(7)


def outcome_styles(trials: pd.DataFrame) -> dict[str, LineStyle]:
    """Return the styles of the outcomes that occur, by the words of the legend."""
    kinds = {"completed": "completed", "stopped early": "pruned", "diverged": "diverged"}
    return {words: OUTCOME_STYLES[words] for words, outcome in kinds.items() if (trials["outcome"] == outcome).any()}


def score_label(search: SearchDesign) -> str:
    """Return the label of the axis of scores."""
    return f"{search.metric.heading} (not a result)"


def set_score_axis(panel: Axes, scores: "pd.Series[Any]", search: SearchDesign) -> None:
    """Set the axis of scores: logarithmic if they span decades.

    The axis of a share of the examples is linear below the share of one example, so that it can show 0.
    """
    one_example = 100 / search.validation_examples if search.metric.unit == PERCENT and search.validation_examples else 0.0
    positive = scores[scores > 0]
    if (scores < 0).any():
        return
    if not spans_decades([one_example, *positive] if (scores <= 0).any() else positive):
        panel.set_ylim(bottom=max(0.0, panel.get_ylim()[0]))
    elif (scores > 0).all():
        log_axis(panel, "y")
    else:
        panel.set_yscale("symlog", linthresh=one_example)
        decades = 10.0 ** np.arange(math.floor(math.log10(one_example)), 3)
        ticks = (tick for tick in np.outer(decades, (1, 2, 5)).flat if tick > one_example)
        panel.yaxis.set_major_locator(FixedLocator([0, *ticks]))
        panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: plain_number(value)))
        panel.set_ylim(bottom=0)
