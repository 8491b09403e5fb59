"""Charts of rows: names on the left, marks with intervals in the middle, numbers on the right."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import ScaledTranslation

from ablations.engine.report.figures.axes import LINE_HEIGHT_INCHES, wrap
from ablations.engine.report.figures.layout import figure_width, is_narrow, name_inches, number_lines
from ablations.engine.report.figures.styles import GRID, INK, MUTED

NAME_INCHES = 2.6
"""Largest width of the names of rows, in inches."""
ROW_MARGIN_LINES = 0.45
"""Space between two rows, in lines of text."""
FRAME_INCHES = 0.7
"""Height of the axis below the rows, in inches."""
BAR_LINES = 0.9
"""Height of a bar, in lines of text."""


def row_positions(names: Sequence[str], gap_before: Sequence[int] = ()) -> tuple[list[str], list[float], float]:
    """Return the wrapped names, the middle of each row and the total height, in lines of text.

    Args:
        gap_before: Rows that a gap separates from the row before.
    """
    wrapped = [wrap(name, name_inches(names, NAME_INCHES)) for name in names]
    positions, used = [], 0.3
    for i, name in enumerate(wrapped):
        used += 0.6 if i in gap_before else 0.0
        lines = max(name.count("\n") + 1, 2 if is_narrow() else 1) + ROW_MARGIN_LINES
        positions.append(used + lines / 2)
        used += lines
    return wrapped, positions, used + 0.3


def row_figure(names: Sequence[str], positions: Sequence[float], height: float) -> tuple[Figure, Axes]:
    """Return a figure whose only panel has a named line per row."""
    figure = Figure(figsize=(figure_width(), LINE_HEIGHT_INCHES * height + FRAME_INCHES))
    panel = figure.subplots()
    set_rows(panel, names, positions, height)
    return figure, panel


def set_rows(panel: Axes, names: Sequence[str], positions: Sequence[float], height: float) -> None:
    """Give a panel a named line per row, the first one at the top."""
    panel.set_ylim(height, 0)
    panel.set_yticks(positions, names)
    panel.tick_params(axis="y", length=0)
    panel.grid(axis="y", visible=False)
    panel.spines["left"].set_visible(False)
    for position in positions:
        panel.axhline(position, color=GRID, linewidth=0.6, zorder=0)


def row_text(panel: Axes, position: float, text: str, inches: float = 0.1, *, heading: bool = False) -> None:
    """Write text to the right of the panel, at a distance in inches."""
    moved = panel.get_yaxis_transform() + ScaledTranslation(inches, 0, panel.figure.dpi_scale_trans)
    color = MUTED if heading else INK
    middle = "center" if is_narrow() else "center_baseline"
    panel.text(1, position, number_lines(text), transform=moved, verticalalignment=middle, color=color)
