"""Drawing tools that all figures share: style, lines with bands, legends, axes with plain numbers, and files."""

import io
import math
import textwrap
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, Locator, LogLocator, MaxNLocator, NullLocator

from ablations.engine.report.figures.styles import GRID, INK, MUTED, PAPER, LineStyle
from ablations.engine.task.metric import PERCENT, Metric
from resnet_core.fields import printable

STYLE: Any = {
    "text.parse_math": False,  # labels may hold any text
    "text.color": INK,
    "font.size": 8,
    "axes.facecolor": "none",
    "axes.titlesize": 8,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.titlecolor": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.xmargin": 0.02,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
    "lines.linewidth": 1.2,
    "lines.markersize": 3.2,
    "legend.frameon": False,
    "legend.handlelength": 3.2,  # long enough to distinguish dashes
    "legend.labelspacing": 0.4,
    "figure.constrained_layout.use": True,
    "svg.hashsalt": "resnet-ablations",  # so that the same figure gives the same file
}
PNG_DPI = 200
"""Default resolution of PNG files, in pixels per inch."""
LINE_HEIGHT_INCHES = 0.17
"""Height of a line of text in inches."""
CHARACTER_WIDTH_INCHES = 0.066
"""Approximate width of a character in inches."""
NO_BREAK = "\xa0"
"""Space at which `wrap` begins no new line."""
LEGEND_HANDLE_INCHES = 0.6
"""Width of the line sample in a legend with its margins, in inches."""
BOLD_TITLE: Any = {"title_fontproperties": {"weight": "bold", "size": 8}}
MARKERS_PER_LINE = 8
"""Approximate number of markers per line; a marker at each of 110 layers would hide the line."""
MAX_POINTS_PER_LINE = 120
"""Maximum number of points per line. More are not visible and would make files grow with the length of the training."""
MAX_POINTS_PER_GRAY_LINE = 25
"""Maximum number of points per gray line."""
MIN_RATIO_FOR_LOG_AXIS = 10.0
"""An axis is logarithmic if the ratio of its largest to its smallest value is greater."""
MAX_RATIO_FOR_DENSE_TICKS = 1e3
"""A logarithmic axis has numbers only at powers of ten if it spans a greater ratio."""
MIN_TICK_GAP_FRACTION = 0.06
"""Smallest gap between ticks as a fraction of the axis, so that the numbers fit."""


@contextmanager
def figure_style() -> Iterator[None]:
    """Apply the style of all figures. A character that the font lacks is drawn as a box, without a warning."""
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        yield


def save(figure: Figure, path: Path, dpi: float = PNG_DPI) -> None:
    """Write a PNG or SVG file, chosen by the suffix. The same figure gives the same bytes.

    Args:
        dpi: Resolution of a PNG file.
    """
    if path.suffix == ".svg":
        path.write_text(svg_text(figure), encoding="utf-8")
        return
    assert path.suffix == ".png", path
    with figure_style():
        lay_out(figure)
        figure.set_dpi(dpi)
        FigureCanvasAgg(figure).print_png(path)  # type: ignore[no-untyped-call]


def svg_text(figure: Figure) -> str:
    """Return a figure as SVG without a background."""
    written, background = io.StringIO(), figure.get_facecolor()
    with figure_style():
        lay_out(figure)
        figure.set_facecolor("none")
        figure.set_dpi(PNG_DPI)  # resolution of points that are drawn as an image, since they are many
        FigureCanvasSVG(figure).print_svg(written, metadata={"Date": None})  # type: ignore[no-untyped-call]
        figure.set_facecolor(background)
    return written.getvalue()


def lay_out(figure: Figure) -> None:
    """Give the panels their final positions, once for all files of a figure.

    `Figure.savefig` would arrange the panels, and draw them twice, for each file.
    """
    engine = figure.get_layout_engine()
    if engine:
        engine.execute(figure)
        figure.set_layout_engine("none")


def seed_envelopes(rows: pd.DataFrame, position: str, value: str) -> dict[str, pd.DataFrame]:
    """Return, for each cell, a table with `mean`, `low` and `high` of the column `value` over seeds, by the column `position`."""
    table = rows.groupby(["cell", position])[value].agg(["mean", "min", "max"]).set_axis(["mean", "low", "high"], axis=1)
    return {str(cell): part.droplevel("cell") for cell, part in table.groupby(level="cell")}


def draw_line(
    panel: Axes, seeds: pd.DataFrame, style: LineStyle, marker_phase: float, label: str, width: float = 1.2, *, band: bool = True
) -> None:
    """Draw the mean over seeds at each position (the index), and a band from the lowest to the highest seed.

    Args:
        marker_phase: Offset of the first marker as a fraction of the marker spacing, so that overlapping lines alternate.
        width: Width of the line in points.
    """
    seeds = thin_rows(seeds, MAX_POINTS_PER_LINE)
    every = max(1, round(len(seeds) / MARKERS_PER_LINE))
    drawn = line_properties(style) | {"markevery": (int(marker_phase * every), every), "label": label, "linewidth": width}
    panel.plot(seeds.index, seeds["mean"], **drawn)
    if band and (seeds["high"] > seeds["low"]).any():
        panel.fill_between(seeds.index, seeds["low"], seeds["high"], color=style.color, alpha=0.15, linewidth=0)


def line_properties(style: LineStyle) -> dict[str, Any]:
    """Return the matplotlib properties of a line, or of markers if its dash is `none`."""
    hollow = style.fill == "hollow"
    return {
        "color": style.color,
        "linestyle": style.dash,
        "marker": style.marker,
        "fillstyle": "full" if hollow else style.fill,
        "markerfacecolor": PAPER if hollow else style.color,
        "markerfacecoloralt": PAPER,
    }


def whole_numbers(panel: Axes) -> None:
    """Give the x axis ticks at whole numbers only, as epochs and layers are counted."""
    panel.xaxis.set_major_locator(MaxNLocator("auto", steps=[1, 2, 5, 10], integer=True, min_n_ticks=1))
    panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: plain_number(value)))


def draw_gray_lines(panel: Axes, lines: Iterable[pd.DataFrame]) -> None:
    """Draw the means of cells without their own styles, as thin gray lines."""
    points = [np.column_stack([line.index, line["mean"]]) for line in (thin_rows(line, MAX_POINTS_PER_GRAY_LINE) for line in lines)]
    if points:
        panel.add_collection(LineCollection(points, colors=MUTED, linewidths=0.4, alpha=0.15))
        panel.autoscale_view()


def thin_rows(table: pd.DataFrame, max_rows: int) -> pd.DataFrame:
    """Return at most `max_rows` rows, evenly spaced from the first to the last."""
    if len(table) <= max_rows:
        return table
    return table.iloc[np.linspace(0, len(table) - 1, max_rows).round().astype(int)]


def legend(figure: Figure, styles: Mapping[str, LineStyle]) -> None:
    """Draw a legend below the panels and increase the height of the figure by the rows of the legend, so that it hides nothing."""
    if styles:
        lines = _legend(figure, styles, figure.get_figwidth() - 0.2, loc="outside lower center")
        figure.set_figheight(figure.get_figheight() + lines * LINE_HEIGHT_INCHES)


def panel_legend(panel: Axes, title: str, styles: Mapping[str, LineStyle], width: float) -> None:
    """Draw a legend above one panel.

    Args:
        width: Width of the panel in inches.
    """
    _legend(panel, styles, width, title=title, loc="lower left", bbox_to_anchor=(0, 1), borderpad=0, alignment="left", **BOLD_TITLE)


def _legend(parent: Figure | Axes, styles: Mapping[str, LineStyle], width: float, **properties: Any) -> int:
    """Draw a legend in as few even rows as fit, and return its height in lines of text."""
    names = [wrap(name, width - LEGEND_HANDLE_INCHES) for name in styles]
    widest = max(len(line) for name in names for line in name.splitlines())
    columns = max(1, int(width / (LEGEND_HANDLE_INCHES + CHARACTER_WIDTH_INCHES * widest)))
    rows = -(-len(names) // columns)
    handles = [Line2D([], [], **line_properties(each)) for each in styles.values()]
    parent.legend(handles, names, ncols=-(-len(names) // rows), **properties)
    lines = [name.count("\n") + 1 for name in names]
    return max(sum(lines[i : i + rows]) for i in range(0, len(lines), rows))


def wrap(text: str, inches: float) -> str:
    """Return text wrapped to a width in inches, between words where possible, but not at a `NO_BREAK` space."""
    text = NO_BREAK.join(map(printable, text.split(NO_BREAK)))
    return textwrap.fill(text, max(8, int(inches / CHARACTER_WIDTH_INCHES)), break_on_hyphens=False).replace(NO_BREAK, " ")


def shorten(text: str, max_characters: int = 24) -> str:
    """Return text of at most `max_characters` characters, with an ellipsis in place of its middle."""
    text = printable(text)
    return text if len(text) <= max_characters else f"{text[: max_characters // 2 - 1]}…{text[-(max_characters // 2) :]}"


def log_axis(panel: Axes, which: str) -> None:
    """Make the `x` or `y` axis logarithmic, with plain numbers at 1, 2 and 5 of each decade, or only at 1 for many decades."""
    axis = _axis(panel, which)
    getattr(panel, f"set_{which}scale")("log", nonpositive="clip")
    low, high = axis.get_view_interval()
    axis.set_major_locator(LogLocator(subs=(1.0,) if high / low > MAX_RATIO_FOR_DENSE_TICKS else (1.0, 2.0, 5.0)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: plain_number(value)))
    if which == "x":
        axis.set_major_locator(RoomyLocator(axis.get_major_locator()))


class RoomyLocator(Locator):
    """Ticks of a horizontal axis, without those whose numbers would touch others.

    Zero stays first of all, then powers of ten, then other numbers, the largest ones first.

    Args:
        ticks: all ticks.
    """

    def __init__(self, ticks: Locator) -> None:
        self._ticks = ticks

    def set_axis(self, axis: Any) -> None:
        super().set_axis(axis)
        self._ticks.set_axis(axis)

    def __call__(self) -> list[float]:
        axis: Any = self.axis
        low, high = sorted(axis.get_view_interval())
        kept: list[tuple[float, float, float]] = []
        for value in sorted((value for value in self._ticks() if low <= value <= high), key=_importance):
            middle = axis.axes.transData.transform((value, 0))[0] / axis.figure.dpi
            half = (len(axis.major.formatter(value, None)) + 1) * CHARACTER_WIDTH_INCHES / 2
            if all(abs(middle - other) >= half + other_half for _, other, other_half in kept):
                kept.append((value, middle, half))
        return sorted(value for value, _, _ in kept)

    def tick_values(self, vmin: float, vmax: float) -> Sequence[float]:
        """Return all ticks of a range, also those whose numbers would touch."""
        return self._ticks.tick_values(vmin, vmax)


def _importance(value: float) -> tuple[bool, bool, float]:
    """Return a sort key of ticks, the most important one first."""
    is_power_of_ten = value != 0 and math.isclose(math.log10(abs(value)) % 1, 0, abs_tol=1e-9)
    return value != 0, not is_power_of_ten, -abs(value)


def level_axis(panel: Axes, which: str, levels: Sequence[float]) -> None:
    """Set ticks at ascending numeric levels, except where numbers would touch; use a logarithmic axis if levels span decades."""
    if logarithmic := spans_decades(levels):
        log_axis(panel, which)
    positions = np.log10(levels) if logarithmic else np.asarray(levels)
    kept = [0]
    for i in range(1, len(levels)):
        if positions[i] - positions[kept[-1]] >= MIN_TICK_GAP_FRACTION * np.ptp(positions):
            kept.append(i)
    axis = _axis(panel, which)
    axis.set_major_locator(FixedLocator([levels[i] for i in kept]))
    axis.set_major_formatter(FuncFormatter(lambda value, _: plain_number(value)))


def value_axis(panel: Axes, metric: Metric, values: Iterable[float]) -> None:
    """Set the limits and the scale of the y axis of a metric.

    An axis of shares shows no impossible share. It starts at 0 if less is better: the distance to 0 is what is left to gain.
    The axis of another metric is logarithmic if values span decades.
    """
    given = [value for value in values if math.isfinite(value)]
    low, high = panel.get_ylim()
    if metric.unit == PERCENT:
        panel.set_ylim(0 if metric.better == "lower" else max(low, 0), min(100.0, high))
    elif spans_decades(given):
        log_axis(panel, "y")
    elif given and min(given) >= 0:
        panel.set_ylim(bottom=max(low, 0))


def spans_decades(values: Iterable[float]) -> bool:
    """Return whether values are positive and differ so much that a linear axis would hide the small ones."""
    given = [value for value in values if math.isfinite(value)]
    return bool(given) and min(given) > 0 and max(given) / min(given) > MIN_RATIO_FOR_LOG_AXIS


def plain_number(value: float) -> str:
    """Return a number without markup, for the tick of an axis: `0.05`, `2,000`, `3×10⁻⁶`."""
    if value == 0 or 1e-3 <= abs(value) < 1e6:
        return f"{value:,.6g}".replace("-", "−")
    mantissa, _, power = f"{value:.2e}".partition("e")
    return f"{float(mantissa):g}×{power_of_ten(int(power))}".replace("-", "−").removeprefix("1×")


def power_of_ten(power: int) -> str:
    """Return a power of ten: `10¹²`."""
    return "10" + str(power).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def unit_prefix(largest: float) -> tuple[float, str]:
    """Return a power of 1,000 that shortens numbers up to `largest`, with its label: `(1e12, " (×10¹²)")`."""
    power = 3 * max(0, math.floor(math.log10(largest) / 3))
    return 10.0**power, f" (×{power_of_ten(power)})" if power else ""


def time_unit(seconds: float) -> tuple[float, str]:
    """Return a unit for times up to `seconds`: its length in seconds and its name."""
    return (3600.0, "hours") if seconds > 2 * 3600 else (1.0, "seconds")


def _axis(panel: Axes, which: str) -> Axis:
    return {"x": panel.xaxis, "y": panel.yaxis}[which]
