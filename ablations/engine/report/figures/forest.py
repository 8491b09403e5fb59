"""The forest plot: the difference of each cell to its baseline with its confidence interval, drawn and in numbers."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter

from ablations.engine.analysis.findings import Comparison, Findings
from ablations.engine.analysis.number_format import ValueFormat
from ablations.engine.analysis.statistics.estimate import Estimate
from ablations.engine.report.figures.axes import LINE_HEIGHT_INCHES, RoomyLocator, figure_style, plain_number, wrap
from ablations.engine.report.figures.layout import figure_width, is_narrow, name_inches, number_lines
from ablations.engine.report.figures.styles import GRID, INK, PAPER

NO_PAIRS = "no pair of runs"
"""Text of a difference whose runs share no completed seed."""
MAX_ROWS = 40
"""Maximum number of rows of the plot."""
MIN_RATIO_FOR_LOG_AXIS = 20
"""The axis is symmetric-logarithmic if the largest difference exceeds the lower quartile of all differences by this factor."""


def forest_figure(findings: Findings) -> Figure | None:
    """Draw the differences to the baseline with 95 % confidence intervals: filled if significant, hollow if not.

    Cells with the same baseline are grouped. If there are too many, the figure shows those that differ most. Return None without a
    comparison.
    """
    rows = displayed_comparisons(findings)
    if not any(row.difference.n for row in rows):
        return None
    formats = ValueFormat.of(findings)
    names = [_row_name(row, findings) for row in rows]
    names = [wrap(name, name_inches(names, figure_width() / 2 - 0.5)) for name in names]
    positions, height = _row_positions(rows, names)
    with figure_style():
        figure = Figure(figsize=(figure_width(), LINE_HEIGHT_INCHES * height + 0.7))
        panel = figure.subplots()
        panel.axvline(0, color=INK, linewidth=0.8, zorder=1)
        for row, position in zip(rows, positions, strict=True):
            draw_difference(panel, row.difference, position, formats)
        panel.set_ylim(height, 0)
        panel.set_yticks(positions, names)
        panel.tick_params(axis="y", length=0)
        panel.grid(axis="y", visible=False)
        panel.spines["left"].set_visible(False)
        unit = f", {formats.metric.difference_unit}".rstrip(", ")
        scale = set_difference_scale(panel, [row.difference for row in rows])
        panel.set_xlabel(
            wrap(f"{findings.metric.label}: difference to {baseline_levels(findings)}{unit}{scale}", figure_width() / 2)
        )
    return figure


def displayed_comparisons(findings: Findings) -> list[Comparison]:
    """Return the comparisons that the plot shows, grouped by baseline."""
    by_size = sorted(findings.comparisons, key=lambda each: -abs(each.difference.mean or 0))
    kept = {each.cell for each in by_size[:MAX_ROWS]}
    order = {cell.label: i for i, cell in enumerate(findings.cells)}
    return sorted((each for each in findings.comparisons if each.cell in kept), key=lambda each: order[each.baseline])


def baseline_levels(findings: Findings) -> str:
    """Return the levels in which baselines differ from the cells compared with them: `shortcut=A`."""
    levels = {cell.label: cell.levels for cell in findings.cells}
    differing: dict[str, str] = {}
    for each in findings.comparisons:
        baseline = levels[each.baseline]
        differing |= {name: level for name, level in baseline.items() if levels[each.cell][name] != level}
    return " ".join(f"{name}={level}" for name, level in differing.items())


def _row_name(row: Comparison, findings: Findings) -> str:
    """Return the cell of a row without the factors that have only one level."""
    levels = {cell.label: cell.levels for cell in findings.cells}
    mine = levels[row.cell]
    differing = [name for name in mine if len({each[name] for each in levels.values()}) > 1]
    return " ".join(f"{name}={mine[name]}" for name in differing)


def _row_positions(rows: Sequence[Comparison], names: Sequence[str]) -> tuple[list[float], float]:
    """Return the middle of each row and the total height, in lines of text. A gap separates groups of rows."""
    groups = {row.baseline for row in rows}
    gap = 0.6 if len(groups) < len(rows) else 0.0
    positions, used = [], 0.0
    for i, (row, name) in enumerate(zip(rows, names, strict=True)):
        lines = max(name.count("\n") + 1, 2 if is_narrow() else 1) + 0.3
        used += gap if i and row.baseline != rows[i - 1].baseline else 0
        positions.append(used + lines / 2)
        used += lines
    return positions, used


def draw_difference(panel: Axes, difference: Estimate, position: float, formats: ValueFormat) -> None:
    """Draw a difference with its interval on a row, and in numbers beside it."""
    panel.text(
        1.02,
        position,
        number_lines(formats.signed_with_interval(difference, NO_PAIRS)),
        transform=panel.get_yaxis_transform(),
        verticalalignment="center" if is_narrow() else "center_baseline",
    )
    if difference.mean is None:
        return
    panel.axhline(position, color=GRID, linewidth=0.6, zorder=0)
    if difference.low is not None and difference.high is not None:
        panel.plot([difference.low, difference.high], [position, position], color=INK, linewidth=1.2, solid_capstyle="butt")
    filling = INK if difference.significant else PAPER
    panel.plot([difference.mean], [position], marker="o", markersize=5, color=INK, markerfacecolor=filling, linestyle="none")


def set_difference_scale(panel: Axes, differences: Sequence[Estimate]) -> str:
    """Set a linear axis, or a symmetric-logarithmic one if the largest difference would hide others; return a label for that."""
    ends = [(each.low or each.mean, each.high or each.mean) for each in differences if each.mean is not None]
    reach = np.abs(np.array(ends, float)).max(axis=1)
    typical, most = float(np.quantile(reach, 0.25)), float(reach.max())
    low, high = panel.get_xlim()
    with_sign = FuncFormatter(lambda value, _: plain_number(value) if value <= 0 else f"+{plain_number(value)}")
    panel.xaxis.set_major_formatter(with_sign)
    if not 0 < typical < most / MIN_RATIO_FOR_LOG_AXIS:
        return ""
    decades = 10.0 ** np.arange(np.floor(np.log10(typical)), np.ceil(np.log10(most)) + 1)
    outer = [position for position in np.outer(decades, (1, 3)).flat if position >= typical]
    panel.set_xscale("symlog", linthresh=outer[0])
    panel.xaxis.set_major_locator(RoomyLocator(FixedLocator([*(-position for position in outer), 0, *outer])))
    panel.xaxis.set_major_formatter(with_sign)
    panel.set_xlim(*(1.3 * end if abs(end) > outer[0] else end for end in (low, high)))
    return f", logarithmic beyond ±{plain_number(outer[0])}"
