"""Sizes of figures: as wide as a page, or narrow for the screen of a phone."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ablations.engine.report.figures.axes import CHARACTER_WIDTH_INCHES, wrap

WIDTH_INCHES = 7.2
"""Width of a figure in inches: the text width of a paper."""
NARROW_WIDTH_INCHES = 3.7
"""Width of a figure for a phone, in inches. Stretched over a screen of 390 pixels, its text is 11 pixels high."""
FRAME_INCHES = 0.4
"""Height that the labels of the x axis take from a panel, in inches."""
MIN_NARROW_NAME_INCHES, MAX_NARROW_NAME_INCHES = 1.0, 1.6
"""Least and largest width of the names of rows in a narrow figure, in inches."""
MAX_STACKED = 3
"""Maximum number of panels that a narrow figure stacks in one column; more are in two columns."""

_width = ContextVar("width", default=WIDTH_INCHES)


@contextmanager
def narrow_figures() -> Iterator[None]:
    """Context in which figures are drawn for a phone: panels are stacked, and intervals are below their numbers."""
    token = _width.set(NARROW_WIDTH_INCHES)
    try:
        yield
    finally:
        _width.reset(token)


def figure_width() -> float:
    """Return the width of a figure that is drawn here, in inches."""
    return _width.get()


def is_narrow() -> bool:
    """Return whether a figure that is drawn here is for a phone."""
    return figure_width() < WIDTH_INCHES


def panel_columns(count: int, most: int) -> int:
    """Return the number of columns of `count` panels: at most `most`, and one or two in a narrow figure."""
    if is_narrow():
        return 1 if count <= MAX_STACKED else 2
    return min(count, most)


def panels_beside(count: int, height: float, narrow_height: float) -> tuple[Figure, list[Axes]]:
    """Return a figure with panels side by side, or stacked in a narrow figure. They share their y axis.

    Args:
        count: Number of panels.
        height: Height of a wide figure in inches.
        narrow_height: Height of each panel of a narrow figure in inches.
    """
    columns = panel_columns(count, count)
    rows = -(-count // columns)
    figure = Figure(figsize=(figure_width(), narrow_height * rows if is_narrow() else height))
    panels = figure.subplots(rows, columns, sharey=True, squeeze=False)
    for panel in panels.flat[count:]:
        panel.set_axis_off()
    return figure, list(panels.flat[:count])


def label_left(panels: Sequence[Axes], label: str) -> None:
    """Label the y axis of the panels of the first column, on as many lines as their height needs."""
    for panel in panels:
        place = panel.get_subplotspec()
        if place is not None and place.is_first_col():
            height = panel.figure.bbox.height / panel.figure.dpi / place.get_gridspec().nrows
            panel.set_ylabel(wrap(label, height - FRAME_INCHES))


def number_lines(text: str) -> str:
    """Return a number with its interval, `+0.28 [−0.57, +1.12]`, as it stands beside a row: on two lines in a narrow figure."""
    return text.replace(" [", "\n[", 1) if is_narrow() else text


def name_inches(names: Iterable[str], wide: float) -> float:
    """Return the width of the names of rows in inches: in a narrow figure as much as their longest words need, within limits.

    Args:
        names: Names of rows.
        wide: Width in a wide figure, in inches.
    """
    if not is_narrow():
        return wide
    longest = max((len(word) for name in names for word in name.split()), default=0)
    return min(max((longest + 1) * CHARACTER_WIDTH_INCHES, MIN_NARROW_NAME_INCHES), MAX_NARROW_NAME_INCHES)
