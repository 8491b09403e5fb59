"""Names beside points, placed where they lie over no mark, bar, line or other name.

Positions are tried in a fixed order, nearest first, so that the same figure gives the same file. A point with full surroundings has
no name, unless it must have one.
"""

import itertools
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.text import Annotation
from matplotlib.transforms import Bbox

from ablations.engine.report.figures.styles import MUTED

DISTANCES_POINTS = (6.0, 12.0, 20.0, 30.0, 45.0, 60.0)
"""Distances between a mark and its name to try, in points. The first position without an overlap is used."""
DIRECTIONS = ((1, 1), (1, -1), (-1, -1), (-1, 1), (1, 0), (-1, 0), (0.3, 1), (-0.3, 1), (0.3, -1), (-0.3, -1))
"""Directions from a mark to its name to try, at each distance: to the right and up."""
MIN_LEADER_LINE_POINTS = 12.0
"""Smallest distance in points at which a leader line joins a name to its mark."""
LEADER_LINE_SAMPLES = 12
"""Number of points of a leader line that are checked for overlaps."""
LEADER_LINE: Any = {"arrowstyle": "-", "color": MUTED, "linewidth": 0.5, "shrinkA": 0, "shrinkB": 3}
HALF_LINE_PIXELS = 1.0
"""Half the width that a line or a bar takes, in pixels."""

Position = tuple[float, float]
"""Position in the units of the axes."""


class Label(NamedTuple):
    """The name of a point."""

    position: Position
    name: str


def label_points(
    panel: Axes,
    labels: Sequence[Label],
    marks: Iterable[Position],
    lines: Iterable[tuple[Position, Position]] = (),
    *,
    radius_points: float = 3.0,
    must: bool = False,
) -> None:
    """Write names beside points. The figure must have been laid out, since names need the final positions of the marks.

    Args:
        panel: Panel of the points.
        labels: Points to name, in the order of their importance.
        marks: Positions of all marks, which names avoid.
        lines: Ends of horizontal and vertical lines, which names avoid.
        radius_points: Radius of a mark in points.
        must: Write a name that finds no free position where it overlaps least.
    """
    points_to_pixels = panel.figure.dpi / 72
    taken = [_around(panel.transData.transform(mark), radius_points * points_to_pixels) for mark in marks]
    for ends in lines:
        (x, y), (other_x, other_y) = panel.transData.transform(ends)
        low, high = (min(x, other_x), min(y, other_y)), (max(x, other_x), max(y, other_y))
        taken.append(Bbox([low, high]).padded(HALF_LINE_PIXELS))
    texts: list[Bbox] = []
    for label in labels:
        start = panel.transData.transform(label.position)
        size = _text_size(panel, label)
        best: tuple[int, tuple[float, float], Bbox, list[Bbox]] | None = None
        for distance, side in itertools.product(DISTANCES_POINTS, DIRECTIONS):
            offset = distance * side[0], distance * side[1]
            corner = start + points_to_pixels * np.array(offset)
            box = _text_box(corner, size, side)
            leads = distance >= MIN_LEADER_LINE_POINTS
            leader = [_around(place, 1) for place in np.linspace(start, corner, LEADER_LINE_SAMPLES)] if leads else []
            if not all(panel.bbox.contains(*each) for each in box.corners()):
                continue
            overlaps = box.count_overlaps(taken) + sum(part.count_overlaps(texts) for part in leader)
            if best is None or overlaps < best[0]:
                best = overlaps, offset, box, leader
            if not overlaps:
                break
        if best is None or (best[0] and not must):
            continue
        _, offset, box, leader = best
        _annotate(panel, label.position, label.name, offset)
        if leader:
            _annotate(panel, label.position, "", offset, arrowprops=LEADER_LINE)
        taken += [box, *leader]
        texts.append(box)


def _text_size(panel: Axes, label: Label) -> Any:
    """Return width and height of a name in pixels."""
    made = _annotate(panel, label.position, label.name, (0, 0))
    size = made.get_window_extent().size
    made.remove()
    return size


def _text_box(corner: Any, size: Any, side: tuple[float, float]) -> Bbox:
    """Return the bounding box in pixels of a text that extends from `corner` in the direction `side`."""
    (x, y), (width, height), (right, up) = corner, size, side
    return Bbox.from_bounds(x if right > 0 else x - width, y if up > 0 else y - height if up < 0 else y - height / 2, width, height)


def _around(position: Any, pixels: float) -> Bbox:
    x, y = position
    return Bbox.from_extents(x - pixels, y - pixels, x + pixels, y + pixels)


def _annotate(panel: Axes, position: Position, name: str, offset: tuple[float, float], **properties: Any) -> Annotation:
    right, up = offset
    annotation = panel.annotate(
        name,
        position,
        offset,
        textcoords="offset points",
        horizontalalignment="left" if right > 0 else "right",
        verticalalignment="bottom" if up > 0 else "top" if up < 0 else "center",
        fontsize=7,
        zorder=6,
        **properties,
    )
    annotation.set_in_layout(False)  # its position is final
    return annotation
