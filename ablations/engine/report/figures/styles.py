"""How the cells of a study are told apart, in every figure alike: by colour, and by marker and dash for grey print and all eyes."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from ablations.engine.analysis.evidence import Evidence
from ablations.engine.study.design import Design, DesignCell
from resnet_core.fields import printable

INK = "#1f2328"
"""Text and axes, and the line that would be black. A page that holds an SVG replaces this and the next three by its theme's."""
MUTED = "#57606a"
GRID = "#d8dee4"
PAPER = "#ffffff"
"""The inside of hollow markers; nothing else is painted behind what is drawn."""
COLORS = ("#0072B2", "#D55E00", "#22A08A", "#A44C79", INK, "#9983EF", "#A84000")
"""After Okabe and Ito's palette, which differs for all kinds of colour vision; what fades on white or on black is shifted."""
MARKERS = ("o", "s", "^", "D", "v", "<", ">")
DASHES: tuple[Any, ...] = ("-", (0, (4, 1.5)), (0, (1, 1.2)), (0, (5, 1.5, 1, 1.5)))
FILL_STYLES = ("full", "hollow", "bottom", "left")
"""Of markers, one for each kind of dash: where no line is drawn they stand for it."""
MAX_LINES_WITH_BANDS = 12
"""Lines of a panel with bands, and with training curves beside them."""
MAX_STYLED_CELLS = 24
"""Of more cells, so many are told apart; the others are thin grey lines."""


class LineStyle(NamedTuple):
    """How a cell is drawn, in every panel and figure of a study."""

    color: str
    marker: str
    dash: Any
    fill: str


@dataclass(frozen=True)
class StyleMap:
    """How a study's cells are drawn."""

    design: Design
    dash_factor: str
    """The factor that is told by dashes, or by a panel for each of its levels; empty: none."""
    styles: Mapping[str, LineStyle]
    """Of the cells that are told apart, in the order of the legend: rising levels where they are numbers."""
    others: tuple[str, ...]
    """The cells that are drawn in grey."""

    def panels(self) -> dict[str, list[DesignCell]]:
        """Title of each panel, and its cells; one without a title where no factor is told by dashes."""
        if not self.dash_factor:
            return {"": list(self.design.cells)}
        titles = {level: f"{self.dash_factor}={level}" for level in sorted_levels(self.design.factors[self.dash_factor])}
        groups = {
            title: [cell for cell in self.design.cells if cell.levels[self.dash_factor] == level] for level, title in titles.items()
        }
        return {title: cells for title, cells in groups.items() if cells}

    @property
    def crowded(self) -> bool:
        """Whether a panel has so many lines that bands and training curves are left out."""
        return max(Counter(style.dash for style in self.styles.values()).values(), default=0) > MAX_LINES_WITH_BANDS

    def name(self, cell: str, *without: str, separator: str = " ") -> str:
        """What a figure calls a cell: the levels in which it differs from others, but for those of some factors."""
        levels = next(each for each in self.design.cells if each.label == cell).levels
        return short_name(self.design, levels, *without, separator=separator) or cell


def make_style_map(evidence: Evidence) -> StyleMap:
    """Return the styles of a study's cells. They do not depend on which runs have ended, unless cells outnumber the styles.

    Of two or more factors, the one with fewest levels is told by dashes, the combinations of the others by colour and marker.
    """
    design = evidence.design
    factors = varied_factors(design)
    across = min(factors, key=lambda name: len(design.factors[name])) if len(factors) > 1 else ""
    if across and len(design.factors[across]) > len(DASHES):
        across = ""
    positions = {name: sorted_levels(design.factors[name]) for name in factors}
    told = set(distinguished_cells(evidence))
    cells = sorted(design.cells, key=lambda cell: [positions[name].index(cell.levels[name]) for name in factors])
    cells = [cell for cell in cells if cell.label in told]
    kinds = list(dict.fromkeys(short_name(design, cell.levels, across) for cell in cells))
    styles = {}
    for cell in cells:
        dash = positions[across].index(cell.levels[across]) if across else 0
        styles[cell.label] = style_at(kinds.index(short_name(design, cell.levels, across)), dash)
    return StyleMap(design, across, styles, tuple(cell.label for cell in design.cells if cell.label not in told))


def style_at(position: int, dash: int = 0) -> LineStyle:
    """The style of the kind at a position; no two of 49 have the same colour and marker."""
    again = position // len(COLORS)
    return LineStyle(COLORS[position % len(COLORS)], MARKERS[(position + again) % len(MARKERS)], DASHES[dash], FILL_STYLES[dash])


def distinguished_cells(evidence: Evidence) -> list[str]:
    """The cells that are told apart: all, or of too many the baselines, up to half of them, and those with the lowest errors."""
    design = evidence.design
    if len(design.cells) <= MAX_STYLED_CELLS:
        return [cell.label for cell in design.cells]
    means = evidence.runs.groupby("cell")["error"].mean().to_dict()
    best = sorted((cell.label for cell in design.cells), key=lambda label: _infinite_if_unknown(means.get(label)))
    baselines = {cell.label for cell in design.cells if design.baseline and design.baseline.items() <= cell.levels.items()}
    kept = [label for label in best if label in baselines][: MAX_STYLED_CELLS // 2]
    return (kept + [label for label in best if label not in kept])[:MAX_STYLED_CELLS]


def varied_factors(design: Design) -> list[str]:
    """The factors with two levels or more."""
    return [name for name, levels in design.factors.items() if len(levels) > 1]


def short_name(design: Design, levels: Mapping[str, str], *without: str, separator: str = " ") -> str:
    """`shortcut=A depth=20`, without the factors that have one level only and those that are named."""
    return separator.join(printable(f"{name}={levels[name]}") for name in varied_factors(design) if name not in without)


def sorted_levels(levels: Iterable[str]) -> list[str]:
    """The levels by size if they are numbers, else as they come."""
    given = list(levels)
    values = numeric_levels(given)
    return [level for _, level in sorted(zip(values, given, strict=True))] if values else given


def numeric_levels(levels: Sequence[str]) -> list[float] | None:
    """The levels as numbers; None unless each is a finite one."""
    try:
        values = [float(level) for level in levels]
    except ValueError:
        return None
    return values if all(map(math.isfinite, values)) else None


def _infinite_if_unknown(error: float | None) -> float:
    return math.inf if error is None or math.isnan(error) else error
