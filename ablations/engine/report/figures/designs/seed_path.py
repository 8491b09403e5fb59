"""The figure of an adaptive study: what each look decided, and the runs beside those of a fixed number of seeds."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ablations.engine.analysis.findings import Findings, SeedPath
from ablations.engine.report.designs import OPEN, SeedRow, seed_rows
from ablations.engine.report.figures.axes import LINE_HEIGHT_INCHES, figure_style, legend, line_properties, wrap
from ablations.engine.report.figures.designs.rows import BAR_LINES, FRAME_INCHES, row_positions, row_text, set_rows
from ablations.engine.report.figures.layout import WIDTH_INCHES, figure_width, name_inches
from ablations.engine.report.figures.styles import COLORS, INK, MUTED, LineStyle
from ablations.engine.study.design import Design

MAX_ROWS = 40
"""Maximum number of comparisons in the figure: those that were decided first."""
STATE_STYLES = {
    "effect": LineStyle(COLORS[0], "o", "none", "full"),
    "within margin": LineStyle(COLORS[2], "s", "none", "hollow"),
    "hopeless": LineStyle(COLORS[1], "X", "none", "full"),
    OPEN: LineStyle(INK, ">", "none", "hollow"),
}
"""Styles of the states of comparisons. Shapes repeat colors."""


def seed_path_figure(design: Design, findings: Findings) -> Figure | None:
    """Draw a line per comparison up to the look that decided it, with a mark for the decision, above the runs in total.

    Return None for a fixed number of seeds, or before the first look.
    """
    path = findings.path
    if path is None or not path.looks:
        return None
    rows = seed_rows(path)[:MAX_ROWS]
    looks = sorted({*design.seed_looks, *(look.seeds for look in path.looks)})
    names, positions, height = row_positions([row.comparison for row in rows])
    _, totals, totals_height = row_positions(["", ""])
    with figure_style():
        heights = [LINE_HEIGHT_INCHES * lines + FRAME_INCHES for lines in (height, totals_height)]
        figure = Figure(figsize=(figure_width(), sum(heights)))
        panel, below = figure.subplots(2, 1, height_ratios=[height, totals_height])
        set_rows(panel, names, positions, height)
        for row, position in zip(rows, positions, strict=True):
            _draw_row(panel, row, [look for look in looks if look <= row.seeds], position)
            row_text(panel, position, row.state)
        panel.set_xlim(0, 1.04 * looks[-1])
        panel.set_xticks(looks)
        panel.set_xlabel("seeds")
        _draw_totals(below, path, totals, totals_height)
        there = {row.state for row in rows}
        legend(figure, {state: style for state, style in STATE_STYLES.items() if state in there})
    return figure


def _draw_row(panel: Axes, row: SeedRow, looks: list[int], position: float) -> None:
    panel.plot([0, row.seeds], [position] * 2, color=MUTED, linewidth=1.2, solid_capstyle="butt", zorder=2)
    panel.plot(looks, [position] * len(looks), color=MUTED, linestyle="none", marker="|", markersize=5, zorder=2)
    mark = line_properties(STATE_STYLES[row.state]) | {"markersize": 5.5}
    panel.plot([row.seeds], [position], zorder=3, **mark)


def _draw_totals(panel: Axes, path: SeedPath, positions: list[float], height: float) -> None:
    """Draw the runs of the path, solid, and those of a fixed number of seeds, hollow."""
    names = ["runs of this study" if path.finished else "runs so far", "runs with all seeds in every cell"]
    set_rows(panel, [wrap(name, name_inches(("instead",), WIDTH_INCHES / 2)) for name in names], positions, height)
    for position, runs, color in zip(positions, (path.runs, path.fixed_runs), (COLORS[0], "none"), strict=True):
        panel.barh(position, runs, BAR_LINES, color=color, alpha=None if color == "none" else 0.3, linewidth=0)
        panel.barh(
            position, runs, BAR_LINES, color="none", edgecolor=COLORS[0] if position == positions[0] else MUTED, linewidth=0.9
        )
        row_text(panel, position, f"{runs:,}")
    panel.set_xlim(left=0)
    panel.set_xlabel("runs")
