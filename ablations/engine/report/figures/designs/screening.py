"""Figures of a screening: its contrasts sorted by size, and their half-normal plot."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ablations.engine.analysis.designs.half_normal import (
    MIN_CONTRASTS,
    half_normal_quantiles,
    margin_of_error,
    pseudo_standard_error,
)
from ablations.engine.analysis.findings import AliasedEffect, Findings
from ablations.engine.analysis.number_format import ValueFormat
from ablations.engine.report.designs import NO_ESTIMATE, contrast_name, is_main
from ablations.engine.report.figures.axes import LINE_HEIGHT_INCHES, figure_style, legend, plain_number, shorten, wrap
from ablations.engine.report.figures.designs.rows import BAR_LINES, row_figure, row_positions, row_text
from ablations.engine.report.figures.layout import figure_width
from ablations.engine.report.figures.styles import COLORS, DASHES, INK, MUTED, PAPER, LineStyle
from ablations.engine.study.design import Design

MAX_ROWS = 40
"""Maximum number of contrasts in the chart of sizes."""
MAX_LABELS = 14
"""Maximum number of points of the half-normal plot that have a name."""
MAX_LABEL_CHARACTERS = 36
"""Maximum length of such a name, in characters."""
PLOT_INCHES = 3.2
"""Height of the half-normal plot, in inches."""
MAIN = LineStyle(COLORS[0], "o", "none", "full")
"""Style of main effects. The shape of the mark repeats the color."""
INTERACTIONS = LineStyle(COLORS[1], "D", "none", "full")


def effect_sizes_figure(design: Design, findings: Findings) -> Figure | None:
    """Draw the contrasts of a screening as bars, sorted by size, with intervals: a Pareto chart of effects.

    Bars are solid for main effects and hollow for interactions; marks are filled if significant. Return None without a screening
    or an estimate.
    """
    shown = sorted_contrasts(findings)[:MAX_ROWS]
    if all(each.difference.mean is None for each in shown):
        return None
    formats = ValueFormat.of(findings)
    names, positions, height = row_positions([_row_name(design, each) for each in shown])
    with figure_style():
        figure, panel = row_figure(names, positions, height)
        for contrast, position in zip(shown, positions, strict=True):
            _draw_bar(panel, contrast, position, main=is_main(design, contrast))
            row_text(panel, position, formats.signed_with_interval(contrast.difference, NO_ESTIMATE))
        panel.axvline(0, color=INK, linewidth=0.8, zorder=3)
        panel.set_xlabel(wrap(f"size of the effect on {findings.metric.label}{_unit(findings)}", figure_width() / 2))
        legend(figure, _kinds(design, shown))
    return figure


def half_normal_figure(design: Design, findings: Findings) -> Figure | None:
    """Draw the sizes of the contrasts of a screening against half-normal quantiles, with Lenth's line through the small ones.

    Contrasts that are significant or above Lenth's margin of error have names. Return None with too few contrasts.
    """
    shown = [each for each in reversed(sorted_contrasts(findings)) if each.difference.mean is not None]
    if len(shown) < MIN_CONTRASTS:
        return None
    sizes, quantiles = np.array([abs(each.difference.mean or 0.0) for each in shown]), half_normal_quantiles(len(shown))
    error, named = pseudo_standard_error(sizes.tolist()), named_contrasts(findings)
    with figure_style():
        figure = Figure(figsize=(figure_width(), PLOT_INCHES + 0.5))
        panel = figure.subplots()
        top = 1.1 * float(sizes.max()) or 1.0
        panel.set_xlim(0, 1.04 * quantiles[-1])
        panel.set_ylim(0, top)
        if error:
            panel.axline((0, 0), slope=error, color=MUTED, linestyle=DASHES[1], linewidth=0.9, zorder=1)
        for contrast, quantile, size in zip(shown, quantiles, sizes, strict=True):
            style = MAIN if is_main(design, contrast) else INTERACTIONS
            filling = style.color if contrast.difference.significant else PAPER
            _mark(panel, (quantile, size), style, filling, clip_on=False, markersize=5, zorder=3)
        marked = [(each, *point) for each, *point in zip(shown, quantiles, sizes, strict=True) if each in named]
        _draw_names(panel, [(_row_name(design, each), quantile, size) for each, quantile, size in marked], top)
        panel.set_xlabel("half-normal quantile")
        panel.set_ylabel(f"size of the effect{_unit(findings)}")
        line = LineStyle(MUTED, "", DASHES[1], "full")
        legend(
            figure, _kinds(design, shown) | ({f"Lenth's line, slope {plain_number(float(f'{error:.2g}'))}": line} if error else {})
        )
    return figure


def sorted_contrasts(findings: Findings) -> list[AliasedEffect]:
    """Return the contrasts of a screening, largest first; those without an estimate come last."""
    contrasts = findings.screening.contrasts if findings.screening else ()
    return sorted(contrasts, key=lambda each: (each.difference.mean is None, -abs(each.difference.mean or 0.0)))


def named_contrasts(findings: Findings) -> list[AliasedEffect]:
    """Return the contrasts that the half-normal plot names, largest first: those that stand out, or the largest of too many."""
    margin = large_from(findings)
    standing_out = [
        each
        for each in sorted_contrasts(findings)
        if each.difference.mean is not None and (each.difference.significant or 0 < margin < abs(each.difference.mean))
    ]
    return standing_out[:MAX_LABELS]


def large_from(findings: Findings) -> float:
    """Return Lenth's margin of error of the contrasts that have an estimate."""
    means = [each.difference.mean for each in sorted_contrasts(findings) if each.difference.mean is not None]
    return margin_of_error(means) if means else 0.0


def spread(heights: Sequence[float], gap: float) -> list[float]:
    """Return ascending heights between 0 and 1 that are at least `gap` apart, each near its given one."""
    moved: list[float] = []
    for height in heights:
        moved.append(max(height, moved[-1] + gap) if moved else height)
    ceiling = 1.0
    for i in reversed(range(len(moved))):
        moved[i] = min(moved[i], ceiling)
        ceiling = moved[i] - gap
    return moved


def _row_name(design: Design, contrast: AliasedEffect) -> str:
    """Return the name of a contrast, in interactions with long factors shortened."""
    name = contrast_name(design, contrast)
    return name if is_main(design, contrast) else " ".join(map(shorten, name.split(" ")))


def _unit(findings: Findings) -> str:
    return f", {findings.metric.difference_unit}".rstrip(", ")


def _kinds(design: Design, contrasts: Sequence[AliasedEffect]) -> dict[str, LineStyle]:
    """Return the entries of the legend: the kinds of contrasts that are there."""
    there = {is_main(design, each) for each in contrasts}
    return {
        name: style for name, style, main in (("main effect", MAIN, True), ("interactions", INTERACTIONS, False)) if main in there
    }


def _draw_bar(panel: Axes, contrast: AliasedEffect, position: float, *, main: bool) -> None:
    """Draw the size of a contrast as a bar, with the interval on the side to which the contrast points."""
    difference, style = contrast.difference, MAIN if main else INTERACTIONS
    if difference.mean is None:
        return
    size, sign = abs(difference.mean), -1.0 if difference.mean < 0 else 1.0
    if main:
        panel.barh(position, size, BAR_LINES, color=style.color, alpha=0.3, linewidth=0)
    panel.barh(position, size, BAR_LINES, color="none", edgecolor=style.color, linewidth=0.9)
    if difference.low is not None and difference.high is not None:
        ends = sorted((sign * difference.low, sign * difference.high))
        panel.plot(ends, [position, position], color=INK, linewidth=1.0, solid_capstyle="butt", zorder=4)
    filling = style.color if difference.significant else PAPER
    _mark(panel, (size, position), style, filling, markersize=4.5, zorder=5)


def _mark(panel: Axes, place: tuple[float, float], style: LineStyle, filling: str, **properties: Any) -> None:
    panel.plot(*([each] for each in place), marker=style.marker, color=style.color, markerfacecolor=filling, **properties)


def _draw_names(panel: Axes, points: Sequence[tuple[str, float, float]], top: float) -> None:
    """Write the names of points, which ascend, in a column beside the panel, each at the height of its point or next to it."""
    heights = spread([size / top for _, _, size in points], 1.1 * LINE_HEIGHT_INCHES / PLOT_INCHES)
    for (name, quantile, size), height in zip(points, heights, strict=True):
        panel.annotate(
            shorten(name, MAX_LABEL_CHARACTERS),
            xy=(quantile, size),
            xytext=(1.04, height),
            textcoords="axes fraction",
            verticalalignment="center_baseline",
            arrowprops={"arrowstyle": "-", "color": MUTED, "linewidth": 0.5, "shrinkA": 2, "shrinkB": 4},
            annotation_clip=False,
        )
