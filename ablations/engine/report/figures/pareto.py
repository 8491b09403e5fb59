"""The figure of the metric against cost, with the Pareto front."""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ablations.engine.analysis.evidence import Evidence
from ablations.engine.analysis.findings import Findings
from ablations.engine.analysis.statistics.estimate import Estimate
from ablations.engine.report.figures.axes import (
    figure_style,
    lay_out,
    legend,
    line_properties,
    log_axis,
    spans_decades,
    time_unit,
    unit_prefix,
    value_axis,
)
from ablations.engine.report.figures.labels import Label, label_points
from ablations.engine.report.figures.layout import label_left, panels_beside
from ablations.engine.report.figures.styles import MUTED, LineStyle, make_style_map
from ablations.engine.study.pareto import pareto_front
from ablations.engine.task.metric import PERCENT, Metric

MIN_COST_RATIO = 1.05
"""Costs whose largest is at most so many times the smallest are not drawn: marks would stand above each other."""


class Point(NamedTuple):
    """The mean value of a cell and its cost."""

    cell: str
    cost: float
    value: float


def pareto_figure(evidence: Evidence, findings: Findings) -> Figure | None:
    """Draw the mean value against the multiply-adds of a forward pass, and against the training time of a run.

    A step line joins the cells of the Pareto front, which have their names beside them. Bars are 95 % confidence intervals of the
    mean. A cost in which cells do not differ is not drawn; return None if there is no other, or without known multiply-adds.
    """
    values, metric = {cell.label: cell.value for cell in findings.cells}, findings.metric
    flops, seconds = multiply_add_points(findings), training_time_points(findings)
    style_map, drawn_points = make_style_map(evidence), drawn_costs(findings)
    marks = {cell: style._replace(dash="none") for cell, style in style_map.styles.items()}
    scale, multiply_adds = unit_prefix(max((point.cost for point in flops), default=1.0))
    axes = {}
    if flops in drawn_points:
        axes[f"multiply-adds of a forward pass{multiply_adds}"] = [point._replace(cost=point.cost / scale) for point in flops]
    if seconds in drawn_points:
        unit_seconds, unit = time_unit(max(point.cost for point in seconds))
        axes[f"training time of a run, {unit}"] = [point._replace(cost=point.cost / unit_seconds) for point in seconds]
    if not axes:
        return None
    with figure_style():
        figure, panels = panels_beside(len(axes), 2.9, 2.5)
        for panel, (label, points) in zip(panels, axes.items(), strict=True):
            _draw_points(panel, points, values, marks, metric)
            panel.set_xlabel(label)
            panel.margins(x=0.1)
            if spans_decades(point.cost for point in points):
                log_axis(panel, "x")
        label_left(panels, metric.heading)
        _set_value_scale(panels[0], metric, [point.value for point in flops])
        drawn = {point.cell for point in flops + seconds}
        legend(figure, {style_map.name(cell): style for cell, style in marks.items() if cell in drawn})
        lay_out(figure)  # labels need the final positions of the marks
        for panel, points in zip(panels, axes.values(), strict=True):
            _label_front(panel, points, values, metric, lambda cell: style_map.name(cell, separator="\n"))
    return figure


def drawn_costs(findings: Findings) -> list[list[Point]]:
    """Return the points of each panel of the figure: multiply-adds and training time, if cells differ in them."""
    flops, seconds = multiply_add_points(findings), training_time_points(findings)
    return [points for points in (flops, seconds) if flops and _differ(points)]


def _differ(points: Sequence[Point]) -> bool:
    """Return whether costs differ enough to be drawn apart."""
    costs = [point.cost for point in points]
    return len(costs) > 1 and max(costs) > MIN_COST_RATIO * min(costs)


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


def _label_front(
    panel: Axes, points: Sequence[Point], values: Mapping[str, Estimate], metric: Metric, name: Callable[[str], str]
) -> None:
    """Label the points of the front with their names where there is room. The legend has all names."""
    front = pareto_points(points, metric)
    steps = []
    for one, other in itertools.pairwise(front):
        corner = (other.cost, one.value)
        steps += [((one.cost, one.value), corner), (corner, (other.cost, other.value))]
    bars = [
        ((point.cost, low), (point.cost, high))
        for point in points
        for low, high in [(values[point.cell].low, values[point.cell].high)]
        if low is not None and high is not None
    ]
    label_points(panel, [Label(point[1:], name(point.cell)) for point in front], [point[1:] for point in points], [*steps, *bars])
