"""Figures of changes to a baseline: made one after another (a waterfall), or each by itself (a sorted forest)."""

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ablations.engine.analysis.findings import Effect, Findings, Rung
from ablations.engine.analysis.number_format import ValueFormat
from ablations.engine.analysis.statistics.estimate import Estimate
from ablations.engine.analysis.verdicts.sentences import level_change
from ablations.engine.report.designs import BASELINE, NO_ESTIMATE, effect_verdict
from ablations.engine.report.figures.axes import (
    CHARACTER_WIDTH_INCHES,
    figure_style,
    legend,
    log_axis,
    spans_decades,
    wrap,
)
from ablations.engine.report.figures.designs.rows import BAR_LINES, row_figure, row_positions, row_text
from ablations.engine.report.figures.forest import set_difference_scale
from ablations.engine.report.figures.layout import figure_width
from ablations.engine.report.figures.styles import COLORS, INK, MUTED, PAPER, LineStyle
from ablations.engine.study.design import Design
from ablations.engine.study.designs import ONE_AT_A_TIME
from ablations.engine.task.metric import Metric

BETTER = LineStyle(COLORS[0], "s", "none", "full")
WORSE = LineStyle(COLORS[1], "s", "none", "hollow")
TOTAL = "all changes"
"""Name of the last row of a ladder."""
VERDICT_MARKS: dict[str, Any] = {
    "matters": {"marker": "o", "markerfacecolor": INK},
    "may matter": {"marker": "o", "markerfacecolor": INK, "fillstyle": "left", "markerfacecoloralt": PAPER},
    "no effect within margin": {"marker": "o", "markerfacecolor": PAPER},
    "no difference shown": {"marker": "o", "markerfacecolor": PAPER},
    "cannot be said": {"marker": "x"},
}
"""Marks of the verdicts, as the page writes them: ●, ◐, ◎, ○. That within the margin has a dot in its middle."""


def ladder_figure(findings: Findings) -> Figure | None:
    """Draw the value of each rung of a ladder with its interval, and the step from the rung before it as a bar: a waterfall.

    Bars are solid if the step is better and hollow if it is worse; marks are filled if the step is significant. Return None without
    a ladder or a value.
    """
    ladder = findings.ladder
    if ladder is None or all(rung.value.mean is None for rung in ladder.rungs):
        return None
    formats, rungs, metric = ValueFormat.of(findings), ladder.rungs, findings.metric
    changes = [f"+ {rung.change}" if rung.change else BASELINE for rung in rungs]
    names, positions, height = row_positions(["", *changes, TOTAL], gap_before=(len(rungs) + 1,))
    heading, *places, last = positions
    values = [formats.number(rung.value.mean) for rung in rungs]
    quantity = metric.quantity.replace("_", " ")
    column = 0.25 + CHARACTER_WIDTH_INCHES * max(map(len, (quantity, *values)))
    with figure_style():
        figure, panel = row_figure(names[1:], positions[1:], height)
        if spans_decades(end for rung in rungs for end in (rung.value.mean, rung.value.low, rung.value.high) if end is not None):
            log_axis(panel, "x")
        row_text(panel, heading, quantity, heading=True)
        row_text(panel, heading, "step", column, heading=True)
        for before, rung, value, position, following in zip((None, *rungs), rungs, values, places, positions[2:], strict=False):
            _draw_rung(panel, before, rung, (position, following), metric)
            row_text(panel, position, value)
            row_text(panel, position, formats.signed_with_interval(rung.step, NO_ESTIMATE) if rung.step else "", column)
        _draw_step(panel, rungs[0].value.mean, rungs[-1].value.mean, last, better=metric.is_better(ladder.total.mean or 0.0))
        _mark(panel, rungs[-1].value.mean, ladder.total, last)
        row_text(panel, last, formats.signed_with_interval(ladder.total, NO_ESTIMATE), column)
        scale = ", logarithmic" if panel.get_xscale() == "log" else ""
        panel.set_xlabel(wrap(f"{metric.heading}{scale} ({better_side(metric)})", figure_width() / 2))
        legend(figure, {"better": BETTER, "worse": WORSE})
    return figure


def effects_figure(design: Design, findings: Findings) -> Figure | None:
    """Draw the effects of levels that are changed one at a time, sorted by size, with intervals and marks for their verdicts.

    Return None for another design, or without an estimate.
    """
    effects = sorted_effects(findings)
    if design.kind != ONE_AT_A_TIME or all(each.difference.mean is None for each in effects):
        return None
    formats, metric = ValueFormat.of(findings), findings.metric
    names, positions, height = row_positions([f"{each.factor}: {level_change(each)}" for each in effects])
    with figure_style():
        figure, panel = row_figure(names, positions, height)
        panel.axvline(0, color=INK, linewidth=0.8, zorder=1)
        for effect, position in zip(effects, positions, strict=True):
            _draw_effect(panel, effect, position, effect_verdict(effect, metric, findings.effects))
            row_text(panel, position, formats.signed_with_interval(effect.difference, NO_ESTIMATE))
        unit = f", {metric.difference_unit}".rstrip(", ")
        scale = set_difference_scale(panel, [each.difference for each in effects])
        panel.set_xlabel(wrap(f"{metric.label}: difference to baseline{unit}{scale} ({better_side(metric)})", figure_width() / 2))
    return figure


def better_side(metric: Metric) -> str:
    """Return on which side of an axis values are better."""
    return "← better" if metric.better == "lower" else "better →"


def sorted_effects(findings: Findings) -> list[Effect]:
    """Return the effects by size, largest first; those without an estimate come last."""
    return sorted(findings.effects, key=lambda each: (each.difference.mean is None, -abs(each.difference.mean or 0.0)))


def _draw_step(panel: Axes, start: float | None, end: float | None, position: float, *, better: bool) -> None:
    if start is None or end is None:
        return
    style = BETTER if better else WORSE
    left, width = min(start, end), abs(end - start)
    if better:
        panel.barh(position, width, BAR_LINES, left=left, color=style.color, alpha=0.3, linewidth=0)
    panel.barh(position, width, BAR_LINES, left=left, color="none", edgecolor=style.color, linewidth=0.9)


def _draw_rung(panel: Axes, before: Rung | None, rung: Rung, place: tuple[float, float], metric: Metric) -> None:
    """Draw the step to a rung, its value, and the line to the next rung.

    Args:
        place: Positions of the rung and of the row after it.
    """
    value, position = rung.value, place[0]
    if before:
        better = rung.step is not None and metric.is_better(rung.step.mean or 0.0)
        _draw_step(panel, before.value.mean, value.mean, position, better=better)
    if value.low is not None and value.high is not None:
        panel.plot([value.low, value.high], [position] * 2, color=INK, linewidth=1.0, solid_capstyle="butt", zorder=4)
    _mark(panel, value.mean, rung.step, position)
    if value.mean is not None:
        panel.plot([value.mean] * 2, place, color=MUTED, linewidth=0.6, zorder=1)


def _mark(panel: Axes, value: float | None, step: Estimate | None, position: float) -> None:
    """Draw the mark of a value: filled if the step to it is significant, a line if there is no step."""
    if value is not None:
        filling = INK if step and step.significant else PAPER
        marker = "o" if step else "|"
        panel.plot([value], [position], marker=marker, markersize=5 if step else 9, color=INK, markerfacecolor=filling, zorder=5)


def _draw_effect(panel: Axes, effect: Effect, position: float, verdict: str) -> None:
    difference = effect.difference
    if difference.mean is None:
        return
    if difference.low is not None and difference.high is not None:
        panel.plot([difference.low, difference.high], [position] * 2, color=INK, linewidth=1.2, solid_capstyle="butt")
    panel.plot([difference.mean], [position], color=INK, linestyle="none", markersize=6, **VERDICT_MARKS[verdict])
    if verdict == "no effect within margin":
        panel.plot([difference.mean], [position], color=INK, linestyle="none", marker="o", markersize=2)
