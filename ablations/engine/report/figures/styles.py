"""Styles of the cells of a study, the same in every figure. Markers and dashes repeat what colors show, for gray print and color
vision deficiency.
"""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from ablations.engine.analysis.evidence import Evidence
from ablations.engine.report.designs import cell_name
from ablations.engine.study.design import Design, DesignCell
from ablations.engine.study.designs import FACTORIAL
from resnet_core.fields import printable

INK = "#1f2328"
"""Color of text and axes. A page that embeds an SVG replaces this color and the next three by those of its theme."""
MUTED = "#57606a"
GRID = "#d8dee4"
PAPER = "#ffffff"
"""Fill color of hollow markers. Figures have no other background."""
COLORS = ("#0072B2", "#D55E00", "#22A08A", "#A44C79", INK, "#9983EF", "#A84000")
"""The palette of Okabe and Ito, which all kinds of color vision can distinguish, adjusted for contrast on white and on black."""
MARKERS = ("o", "s", "^", "D", "v", "<", ">")
DASHES: tuple[Any, ...] = ("-", (0, (4, 1.5)), (0, (1, 1.2)), (0, (5, 1.5, 1, 1.5)))
FILL_STYLES = ("full", "hollow", "bottom", "left")
"""Fill styles of markers, one per dash, for figures without lines."""
MAX_LINES_WITH_BANDS = 12
"""Maximum number of lines of a panel that has bands and training curves."""
MAX_PANELS = 9
"""Maximum number of panels of a figure with small multiples for two factors."""
MAX_STYLED_CELLS = 24
"""Maximum number of cells with their own styles; the others are thin gray lines."""


class LineStyle(NamedTuple):
    """The style of a cell in every panel and figure of a study."""

    color: str
    marker: str
    dash: Any
    fill: str


@dataclass(frozen=True)
class StyleMap:
    """The styles of all cells of a study."""

    design: Design
    dash_factor: str
    """Factor whose levels have their own dashes or panels; empty for none."""
    marker_factor: str
    """Second factor whose levels have panels, and markers where they share one; empty for fewer than three factors."""
    styles: Mapping[str, LineStyle]
    """Style of each cell that has its own, in the order of the legend: numeric levels ascend."""
    others: tuple[str, ...]
    """Cells that are drawn in gray."""

    @property
    def panel_factors(self) -> tuple[str, ...]:
        """Factors whose levels have their own panels in figures with small multiples."""
        return tuple(filter(None, (self.marker_factor, self.dash_factor)))

    def panels(self) -> dict[str, list[DesignCell]]:
        """Return the cells of each panel by its title, row by row; one panel without a title if no factor has panels."""
        combinations = itertools.product(*(sorted_levels(self.design.factors[name]) for name in self.panel_factors))
        groups = {}
        for levels in (dict(zip(self.panel_factors, each, strict=True)) for each in combinations):
            title = " ".join(f"{name}={level}" for name, level in levels.items())
            groups[title] = [cell for cell in self.design.cells if levels.items() <= cell.levels.items()]
        return {title: cells for title, cells in groups.items() if cells or self.marker_factor}  # a grid may have gaps

    def panel_style(self, cell: str) -> LineStyle:
        """Return the style of a cell in a panel of its own levels: a solid line with full markers that repeat its color."""
        style = self.styles[cell]
        repeated = MARKERS[COLORS.index(style.color)] if self.marker_factor else style.marker
        return style._replace(dash=DASHES[0], fill=FILL_STYLES[0], marker=repeated)

    @property
    def crowded(self) -> bool:
        """True if a panel has too many lines for bands and training curves."""
        return max(sum(cell.label in self.styles for cell in cells) for cells in self.panels().values()) > MAX_LINES_WITH_BANDS

    def name(self, cell: str, *without: str, separator: str = " ") -> str:
        """Return the name of a cell in figures: its levels of the varied factors, except those in `without`."""
        levels = next(each for each in self.design.cells if each.label == cell).levels
        return short_name(self.design, levels, *without, separator=separator) or cell


def make_style_map(evidence: Evidence) -> StyleMap:
    """Return the styles of a study's cells. They do not depend on which runs have ended, unless cells outnumber the styles.

    In a factorial design with two or more factors, dashes show the levels of the factor with the fewest levels. With three or more,
    markers show those of a second one, if the other factors have few combinations. Colors show the combinations of the others, and
    markers repeat them where no factor has the markers.
    """
    design = evidence.design
    factors = varied_factors(design) if design.kind == FACTORIAL else []
    positions = {name: sorted_levels(design.factors[name]) for name in factors}
    styled = set(distinguished_cells(evidence))
    cells = sorted(design.cells, key=lambda cell: [positions[name].index(cell.levels[name]) for name in factors])
    cells = [cell for cell in cells if cell.label in styled]
    across, second = _panel_factors(design, factors)
    kinds = list(dict.fromkeys(short_name(design, cell.levels, across, second) for cell in cells))
    if second and len(kinds) > len(COLORS):  # colors alone cannot tell them apart
        second, kinds = "", list(dict.fromkeys(short_name(design, cell.levels, across) for cell in cells))
    styles = {}
    for cell in cells:
        dash = positions[across].index(cell.levels[across]) if across else 0
        style = style_at(kinds.index(short_name(design, cell.levels, across, second)), dash)
        styles[cell.label] = style._replace(marker=MARKERS[positions[second].index(cell.levels[second])]) if second else style
    return StyleMap(design, across, second, styles, tuple(cell.label for cell in design.cells if cell.label not in styled))


def _panel_factors(design: Design, factors: Sequence[str]) -> tuple[str, str]:
    """Return the factors with the fewest levels: one of two factors, two of more factors; empty where levels are too many."""
    by_size = sorted(factors, key=lambda name: len(design.factors[name]))
    across = by_size[0] if len(factors) > 1 and len(design.factors[by_size[0]]) <= len(DASHES) else ""
    second = by_size[1] if across and len(factors) > 2 else ""
    panels = len(design.factors[across]) * len(design.factors[second]) if second else 0
    return across, second if panels <= MAX_PANELS else ""


def style_at(number: int, dash: int = 0) -> LineStyle:
    """Return style `number`, from 0. The first 49 styles differ in color or marker."""
    cycle = number // len(COLORS)
    return LineStyle(COLORS[number % len(COLORS)], MARKERS[(number + cycle) % len(MARKERS)], DASHES[dash], FILL_STYLES[dash])


def distinguished_cells(evidence: Evidence) -> list[str]:
    """Return the cells with their own styles: all, or of too many the baselines (up to half) and the best."""
    design = evidence.design
    if len(design.cells) <= MAX_STYLED_CELLS:
        return [cell.label for cell in design.cells]
    means = design.metric.minimized(evidence.runs.groupby("cell")["value"].mean()).to_dict()
    best = sorted((cell.label for cell in design.cells), key=lambda label: _infinite_if_unknown(means.get(label)))
    baselines = {cell.label for cell in design.cells if design.baseline and design.baseline.items() <= cell.levels.items()}
    kept = [label for label in best if label in baselines][: MAX_STYLED_CELLS // 2]
    return (kept + [label for label in best if label not in kept])[:MAX_STYLED_CELLS]


def varied_factors(design: Design) -> list[str]:
    """Return the factors with at least two levels."""
    return [name for name, levels in design.factors.items() if len(levels) > 1]


def short_name(design: Design, levels: Mapping[str, str], *without: str, separator: str = " ") -> str:
    """Return levels as text, `shortcut=A depth=20`, except factors with one level and those in `without`.

    In a design other than factorial, cells are named by what they change.
    """
    if design.kind != FACTORIAL:
        return printable(cell_name(design, levels))
    return separator.join(printable(f"{name}={levels[name]}") for name in varied_factors(design) if name not in without)


def sorted_levels(levels: Iterable[str]) -> list[str]:
    """Return the levels in ascending order if all are numbers, otherwise in their given order."""
    given = list(levels)
    values = numeric_levels(given)
    return [level for _, level in sorted(zip(values, given, strict=True))] if values else given


def numeric_levels(levels: Sequence[str]) -> list[float] | None:
    """Return the levels as numbers; None unless every level is a finite number."""
    try:
        values = [float(level) for level in levels]
    except ValueError:
        return None
    return values if all(map(math.isfinite, values)) else None


def _infinite_if_unknown(score: float | None) -> float:
    return math.inf if score is None or math.isnan(score) else score
