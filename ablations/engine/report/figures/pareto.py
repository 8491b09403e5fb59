"""The figure of the metric against cost, with the Pareto front."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Annotation
from matplotlib.transforms import Bbox

from ablations.engine.analysis.evidence import Evidence
from ablations.engine.analysis.findings import Findings
from ablations.engine.analysis.statistics.estimate import Estimate
from ablations.engine.report.figures.axes import (
    WIDTH_INCHES,
    figure_style,
    legend,
    line_properties,
    log_axis,
    spans_decades,
    time_unit,
    unit_prefix,
    value_axis,
)
from ablations.engine.report.figures.styles import MUTED, LineStyle, make_style_map
from ablations.engine.study.pareto import pareto_front
from ablations.engine.task.metric import PERCENT, Metric

LABEL_DISTANCES_POINTS = (6.0, 12.0, 20.0, 30.0, 45.0, 60.0)
"""Distances between a mark and its name to try, in points. The first position without an overlap is used."""
LABEL_DIRECTIONS = ((1, 1), (1, -1), (-1, -1), (-1, 1), (1, 0), (-1, 0), (0.3, 1), (-0.3, 1), (0.3, -1), (-0.3, -1))
"""Directions from a mark to its name to try, at each distance: to the right and up."""
MIN_LEADER_LINE_POINTS = 12.0
"""Smallest distance in points at which a leader line joins a name to its mark."""
LEADER_LINE_SAMPLES = 12
"""Number of points of a leader line that are checked for overlaps."""
LEADER_LINE: Any = {"arrowstyle": "-", "color": MUTED, "linewidth": 0.5, "shrinkA": 0, "shrinkB": 3}
MARK_RADIUS_PIXELS = 4.0
"""Radius of a mark in pixels."""


class Point(NamedTuple):
    """The mean value of a cell and its cost."""

    cell: str
    cost: float
    value: float


def pareto_figure(evidence: Evidence, findings: Findings) -> Figure | None:
    """Draw the mean value against the multiply-adds of a forward pass, and against the training time of a run.

    A step line joins the cells of the Pareto front, which have their names beside them. Bars are 95 % confidence intervals of the
    mean. Return None with fewer than two cells with known multiply-adds; without known times, only these are drawn.
    """
    values, metric = {cell.label: cell.value for cell in findings.cells}, findings.metric
    flops, seconds = multiply_add_points(findings), training_time_points(findings)
    if len(flops) < 2:
        return None
    style_map = make_style_map(evidence)
    marks = {cell: style._replace(dash="none") for cell, style in style_map.styles.items()}
    scale, multiply_adds = unit_prefix(max(point.cost for point in flops))
    axes = {f"multiply-adds of a forward pass{multiply_adds}": [point._replace(cost=point.cost / scale) for point in flops]}
    if len(seconds) > 1:
        unit_seconds, unit = time_unit(max(point.cost for point in seconds))
        axes[f"training time of a run, {unit}"] = [point._replace(cost=point.cost / unit_seconds) for point in seconds]
    with figure_style():
        figure = Figure(figsize=(WIDTH_INCHES, 2.9))
        panels = figure.subplots(1, len(axes), sharey=True, squeeze=False)[0]
        for panel, (label, points) in zip(panels, axes.items(), strict=True):
            _draw_points(panel, points, values, marks, metric)
            panel.set_xlabel(label)
            panel.margins(x=0.1)
            if spans_decades(point.cost for point in points):
                log_axis(panel, "x")
        panels[0].set_ylabel(metric.heading)
        _set_value_scale(panels[0], metric, [point.value for point in flops])
        drawn = {point.cell for point in flops + seconds}
        legend(figure, {style_map.name(cell): style for cell, style in marks.items() if cell in drawn})
        figure.draw_without_rendering()  # labels need the final positions of the marks
        for panel, points in zip(panels, axes.values(), strict=True):
            front = pareto_points(points, metric)
            _label_points(panel, points, front, {point.cell: style_map.name(point.cell, separator="\n") for point in front})
    return figure


def pareto_points(points: Sequence[Point], metric: Metric) -> list[Point]:
    """Return the points on the Pareto front of cost and value, by rising cost."""
    return [points[i] for i in pareto_front([(point.cost, metric.minimized(point.value)) for point in points])]


def multiply_add_points(findings: Findings) -> list[Point]:
    return [Point(cell.label, cell.flops, cell.value.mean) for cell in findings.cells if cell.flops and cell.value.mean is not None]


def training_time_points(findings: Findings) -> list[Point]:
    return [
        Point(cell.label, cell.seconds, cell.value.mean) for cell in findings.cells if cell.seconds and cell.value.mean is not None
    ]


def _draw_points(
    panel: Axes, points: Sequence[Point], values: Mapping[str, Estimate], styles: Mapping[str, LineStyle], metric: Metric
) -> None:
    edge = pareto_points(points, metric)
    panel.plot([point.cost for point in edge], [point.value for point in edge], drawstyle="steps-post", color=MUTED, linewidth=0.9)
    others = [point for point in points if point.cell not in styles]
    panel.plot([point.cost for point in others], [point.value for point in others], ".", color=MUTED, alpha=0.4, markersize=2.5)
    for point in points:
        if style := styles.get(point.cell):
            estimate = values[point.cell]
            if estimate.low is not None and estimate.high is not None:
                panel.plot([point.cost, point.cost], [estimate.low, estimate.high], color=style.color, linewidth=0.8, alpha=0.7)
            panel.plot([point.cost], [point.value], **line_properties(style), markersize=5)


def _set_value_scale(panel: Axes, metric: Metric, values: Sequence[float]) -> None:
    if spans_decades(values):
        log_axis(panel, "y")
        panel.set_ylim(min(values) / 2, min(100.0 if metric.unit == PERCENT else math.inf, 2 * max(values)))
    else:
        value_axis(panel, metric, values)


def _label_points(panel: Axes, points: Sequence[Point], front: Sequence[Point], names: Mapping[str, str]) -> None:
    """Label points with their names where there is room. The legend has all names."""
    marks = dict(zip([point.cell for point in points], panel.transData.transform([point[1:] for point in points]), strict=True))
    taken = [_square(mark, MARK_RADIUS_PIXELS) for mark in marks.values()]
    for (x, y), (next_x, next_y) in itertools.pairwise(marks[point.cell] for point in front):
        taken += [Bbox.from_extents(x, y - 1, next_x, y + 1), Bbox.from_extents(next_x - 1, next_y, next_x + 1, y)]
    texts: list[Bbox] = []
    for point in (point for point in points if point.cell in names):
        made = _annotate(panel, point, names[point.cell], (0, 0))
        size = made.get_window_extent().size
        made.remove()
        mark = marks[point.cell]
        for distance, side in itertools.product(LABEL_DISTANCES_POINTS, LABEL_DIRECTIONS):
            start = mark + distance * np.array(side) * panel.figure.dpi / 72
            box = _text_box(start, size, side)
            line = (
                [_square(position, 1) for position in np.linspace(mark, start, LEADER_LINE_SAMPLES)]
                if distance >= MIN_LEADER_LINE_POINTS
                else []
            )
            inside = all(panel.bbox.contains(*corner) for corner in box.corners())
            if inside and not box.count_overlaps(taken) and not any(part.count_overlaps(texts) for part in line):
                offset = distance * side[0], distance * side[1]
                _annotate(panel, point, names[point.cell], offset)
                if line:
                    _annotate(panel, point, "", offset, arrowprops=LEADER_LINE)
                taken += [box, *line]
                texts.append(box)
                break


def _text_box(corner: Sequence[float], size: Sequence[float], side: tuple[float, float]) -> Bbox:
    """Return the bounding box in pixels of a text that extends from `corner` in the direction `side`."""
    (x, y), (width, height), (right, up) = corner, size, side
    return Bbox.from_bounds(x if right > 0 else x - width, y if up > 0 else y - height if up < 0 else y - height / 2, width, height)


def _square(position: Sequence[float], pixels: float) -> Bbox:
    x, y = position
    return Bbox.from_extents(x - pixels, y - pixels, x + pixels, y + pixels)


def _annotate(panel: Axes, point: Point, name: str, offset: tuple[float, float], **properties: Any) -> Annotation:
    right, up = offset
    annotation = panel.annotate(
        name,
        (point.cost, point.value),
        offset,
        textcoords="offset points",
        horizontalalignment="left" if right > 0 else "right",
        verticalalignment="bottom" if up > 0 else "top" if up < 0 else "center",
        fontsize=7,
        **properties,
    )
    annotation.set_in_layout(False)  # its position is final
    return annotation
