"""The forest plot: each cell's difference to its baseline, with its interval, as a mark and in numbers."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter

from ablations.engine.analysis.findings import Comparison, Estimate, Findings
from ablations.engine.analysis.number_format import with_interval
from ablations.engine.report.figures.axes import LINE_INCHES, WIDTH, plain, styled, wrapped
from ablations.engine.report.figures.styles import GRID, INK, PAPER

MAX_ROWS = 40
"""Differences, at most."""
LOG_FROM = 20
"""The axis is logarithmic away from zero where the largest difference is so many times that of a quarter of the rows."""


def forest_figure(findings: Findings) -> Figure | None:
    """Differences to the baseline with 95 % intervals: filled where they are certain, hollow where they are not.

    Cells with the same baseline are together. Of many, those that differ most are shown. None without a comparison.
    """
    rows = largest(findings)
    if not any(row.difference.n for row in rows):
        return None
    names = [wrapped(_name(row, findings), WIDTH / 2 - 0.5) for row in rows]
    places, height = _places(rows, names)
    with styled():
        figure = Figure(figsize=(WIDTH, LINE_INCHES * height + 0.7))
        panel = figure.subplots()
        panel.axvline(0, color=INK, linewidth=0.8, zorder=1)
        for row, place in zip(rows, places, strict=True):
            _draw(panel, row.difference, place)
        panel.set_ylim(height, 0)
        panel.set_yticks(places, names)
        panel.tick_params(axis="y", length=0)
        panel.grid(axis="y", visible=False)
        panel.spines["left"].set_visible(False)
        scale = _scale(panel, [row.difference for row in rows])
        panel.set_xlabel(wrapped(f"{findings.evaluation_split} error: difference to {against(findings)}, points{scale}", WIDTH / 2))
    return figure


def largest(findings: Findings) -> list[Comparison]:
    """The comparisons that are shown, those with the same baseline together."""
    by_size = sorted(findings.comparisons, key=lambda each: -abs(each.difference.mean or 0))
    kept = {each.cell for each in by_size[:MAX_ROWS]}
    order = {cell.label: i for i, cell in enumerate(findings.cells)}
    return sorted((each for each in findings.comparisons if each.cell in kept), key=lambda each: order[each.baseline])


def against(findings: Findings) -> str:
    """The levels of the baseline that others are compared with: `shortcut=A`."""
    levels = {cell.label: cell.levels for cell in findings.cells}
    differing: dict[str, str] = {}
    for each in findings.comparisons:
        baseline = levels[each.baseline]
        differing |= {name: level for name, level in baseline.items() if levels[each.cell][name] != level}
    return " ".join(f"{name}={level}" for name, level in differing.items())


def signed(estimate: Estimate) -> str:
    """`+0.28 [−0.57, +1.12]`."""
    return "no pair of runs" if estimate.mean is None else with_interval(estimate)


def _name(row: Comparison, findings: Findings) -> str:
    """A row's cell without the factors that have the same level everywhere."""
    levels = {cell.label: cell.levels for cell in findings.cells}
    mine = levels[row.cell]
    differing = [name for name in mine if len({each[name] for each in levels.values()}) > 1]
    return " ".join(f"{name}={mine[name]}" for name in differing)


def _places(rows: Sequence[Comparison], names: Sequence[str]) -> tuple[list[float], float]:
    """The middle of each row, and the height of all, in lines of text; a gap parts those with different baselines."""
    groups = {row.baseline for row in rows}
    gap = 0.6 if len(groups) < len(rows) else 0.0
    places, used = [], 0.0
    for i, (row, name) in enumerate(zip(rows, names, strict=True)):
        lines = name.count("\n") + 1.3
        used += gap if i and row.baseline != rows[i - 1].baseline else 0
        places.append(used + lines / 2)
        used += lines
    return places, used


def _draw(panel: Axes, difference: Estimate, place: float) -> None:
    panel.text(1.02, place, signed(difference), transform=panel.get_yaxis_transform(), verticalalignment="center_baseline")
    if difference.mean is None:
        return
    panel.axhline(place, color=GRID, linewidth=0.6, zorder=0)
    if difference.low is not None and difference.high is not None:
        panel.plot([difference.low, difference.high], [place, place], color=INK, linewidth=1.2, solid_capstyle="butt")
    filling = INK if difference.certain else PAPER
    panel.plot([difference.mean], [place], marker="o", markersize=5, color=INK, markerfacecolor=filling, linestyle="none")


def _scale(panel: Axes, differences: Sequence[Estimate]) -> str:
    """Linear, or logarithmic away from zero where the largest difference would hide others; returns what to say of that."""
    ends = [(each.low or each.mean, each.high or each.mean) for each in differences if each.mean is not None]
    reach = np.abs(np.array(ends, float)).max(axis=1)
    typical, most = float(np.quantile(reach, 0.25)), float(reach.max())
    low, high = panel.get_xlim()
    with_sign = FuncFormatter(lambda value, _: plain(value) if value <= 0 else f"+{plain(value)}")
    panel.xaxis.set_major_formatter(with_sign)
    if not 0 < typical < most / LOG_FROM:
        return ""
    decades = 10.0 ** np.arange(np.floor(np.log10(typical)), np.ceil(np.log10(most)) + 1)
    outer = [place for place in np.outer(decades, (1, 3)).flat if place >= typical]
    panel.set_xscale("symlog", linthresh=outer[0])
    panel.xaxis.set_major_locator(FixedLocator([*(-place for place in outer), 0, *outer]))
    panel.xaxis.set_major_formatter(with_sign)
    panel.set_xlim(*(1.3 * end if abs(end) > outer[0] else end for end in (low, high)))
    return f", logarithmic beyond ±{plain(outer[0])}"
