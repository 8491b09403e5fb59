"""Figures of the metric by levels of factors: along a numeric factor such as depth, and interactions of two factors."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import ScaledTranslation

from ablations.engine.analysis.evidence import Evidence
from ablations.engine.analysis.findings import CellFinding, Findings
from ablations.engine.analysis.statistics.estimate import Estimate
from ablations.engine.analysis.statistics.inference import estimate_means
from ablations.engine.report.figures.axes import (
    CHARACTER_WIDTH_INCHES,
    figure_style,
    legend,
    level_axis,
    line_properties,
    panel_legend,
    shorten,
    value_axis,
    wrap,
)
from ablations.engine.report.figures.curves import train_and_scored_label
from ablations.engine.report.figures.layout import figure_width, label_left, panel_columns, panels_beside
from ablations.engine.report.figures.styles import (
    DASHES,
    FILL_STYLES,
    MUTED,
    LineStyle,
    numeric_levels,
    short_name,
    sorted_levels,
    style_at,
    varied_factors,
)
from ablations.engine.study.design import Design
from ablations.engine.task.metric import Metric

MAX_STYLED_LINES = 7
"""Maximum number of lines of a panel with their own styles; the others are thin gray lines."""
MAX_INTERACTION_PANELS = 3
"""Maximum number of panels of interactions side by side."""
MAX_LEVEL_PANELS = 4
"""Maximum number of panels along a numeric factor."""
MAX_TICKS = 12
"""Maximum number of levels that an axis names."""
MAX_LEVEL_CHARACTERS = 18
"""Maximum length of a level's name on an axis, in characters."""
SIDE_STEP_POINTS = 2.5
"""Horizontal offset between the intervals of lines at the same level, in points."""


@dataclass(frozen=True)
class LevelLine:
    """Means with their confidence intervals along an axis. Positions without a mean are not drawn."""

    name: str
    positions: Sequence[float]
    estimates: Sequence[Estimate]

    def best_score(self, metric: Metric) -> float:
        """Return the best mean as a score, of which less is better; infinite without a mean."""
        return min((metric.minimized(each.mean) for each in self.estimates if each.mean is not None), default=math.inf)


def depth_figure(evidence: Evidence, findings: Findings) -> Figure | None:
    """Draw the metric by depth, or by another numeric factor, with a line per combination of the other factors.

    If there are two or more others, the one with the fewest levels has a panel per level.

    Lines are dashed for training data; bars are 95 % confidence intervals of the mean. Return None without a
    numeric factor or a completed run.
    """
    design = evidence.design
    factor = numeric_factor(design)
    cells = [cell for cell in findings.cells if cell.value.n]
    if factor is None or not cells:
        return None
    metric, trained = findings.metric, any(cell.train_value.n for cell in cells)
    by = panel_factor(design, factor)
    levels = {f"{by}={level}": level for level in sorted_levels(design.factors[by])} if by else {"": ""}
    names = dict.fromkeys(short_name(design, cell.levels, factor, by) for cell in findings.cells)
    groups = {
        title: [
            _level_line(design, [cell for cell in cells if cell.levels.get(by, "") == level], factor, by, name) for name in names
        ]
        for title, level in levels.items()
    }
    pairs = [pair for of_panel in groups.values() for pair in of_panel]
    with figure_style():
        figure, panels = panels_beside(len(groups), 2.8, 2.3)
        styles = _line_styles([scored for scored, _ in pairs], metric)
        dashed = {name: each._replace(dash=DASHES[1], fill=FILL_STYLES[1]) for name, each in styles.items()}
        for panel, (title, lines) in zip(panels, groups.items(), strict=True):
            panel.margins(x=0.05)
            panel.set_title(wrap(title, figure_width() / len(panels)))
            level_axis(panel, "x", sorted(map(float, design.factors[factor])))
            _draw_lines(panel, [train for _, train in lines] if trained else (), dashed, 0.9)
            _draw_lines(panel, [scored for scored, _ in lines], styles)
            panel.set_xlabel(factor)
        label_left(panels, train_and_scored_label(metric) if trained else metric.heading)
        value_axis(panels[0], metric, _means([line for pair in pairs for line in (pair if trained else pair[:1])]))
        if len(names) > 1:
            legend(figure, styles)
    return figure


def panel_factor(design: Design, along: str) -> str:
    """Return the factor with a panel per level: of two or more factors beside that on the axis, the one with the fewest levels."""
    others = [name for name in varied_factors(design) if name != along]
    fewest = min(others, key=lambda name: len(design.factors[name]), default="")
    return fewest if len(others) > 1 and len(design.factors[fewest]) <= MAX_LEVEL_PANELS else ""


def _level_line(design: Design, cells: Sequence[CellFinding], factor: str, by: str, name: str) -> tuple[LevelLine, LevelLine]:
    """Return the line of a combination along a factor, on evaluation and on training data."""
    of_line = [cell for cell in cells if short_name(design, cell.levels, factor, by) == name]
    of_line.sort(key=lambda cell: float(cell.levels[factor]))
    positions = [float(cell.levels[factor]) for cell in of_line]
    scored, train = [cell.value for cell in of_line], [cell.train_value for cell in of_line]
    return LevelLine(name, positions, scored), LevelLine(name, positions, train)


def interaction_figure(evidence: Evidence, findings: Findings) -> Figure | None:
    """Draw the mean value by the levels of one factor, with a line per level of another. Parallel lines mean no interaction.

    Values are averaged per seed over the combinations of the other factors in which every level of both exists. Bars are 95 %
    confidence intervals of the mean. The figure shows the three pairs that interact most. Return None with fewer than two factors.
    """
    design = evidence.design
    drawn = {pair: lines for pair in interaction_pairs(design, findings) if (lines := _averaged_lines(evidence, *pair))}
    if not drawn:
        return None
    width = figure_width() / panel_columns(len(drawn), len(drawn)) - 0.5
    with figure_style():
        figure, panels = panels_beside(len(drawn), 3.2, 2.8)
        for panel, ((along, by), lines) in zip(panels, drawn.items(), strict=True):
            styles = _line_styles(lines, findings.metric)
            _draw_lines(panel, lines, styles)
            _label_levels(panel, sorted_levels(design.factors[along]), width)
            panel.set_xlabel(shorten(along, MAX_LEVEL_CHARACTERS))
            panel_legend(panel, by, styles, width)
        label_left(panels, findings.metric.heading)
        value_axis(panels[0], findings.metric, _means([line for lines in drawn.values() for line in lines]))
    return figure


def numeric_factor(design: Design) -> str | None:
    """Return the numeric factor of the study: depth if it is varied, otherwise the first; None without one."""
    found = [name for name in varied_factors(design) if numeric_levels(design.factors[name])]
    return min(found, key=lambda name: name not in ("depth", "model.depth"), default=None)


def interaction_pairs(design: Design, findings: Findings) -> list[tuple[str, str]]:
    """Return the pairs of factors to draw, largest interaction first: the one on the axis, then the one with a line per level."""
    sizes = {
        frozenset(pair): max(
            (abs(each.difference.mean or 0) for each in findings.interactions if set(each.factors) == set(pair)), default=0.0
        )
        for pair in itertools.combinations(varied_factors(design), 2)
    }
    numeric = numeric_factor(design)  # comes last: `depth_figure` already has this factor on its axis
    order = sorted(varied_factors(design), key=lambda name: (name == numeric, -len(design.factors[name])))
    largest = sorted(itertools.combinations(order, 2), key=lambda pair: -sizes[frozenset(pair)])
    return largest[:MAX_INTERACTION_PANELS]


def _averaged_lines(evidence: Evidence, along: str, by: str) -> list[LevelLine]:
    """Return mean values by two factors, averaged over the combinations of the others that have all levels of both."""
    design = evidence.design
    values = evidence.runs.pivot_table(index="cell", columns="seed", values="value", dropna=False)
    cells: dict[str, dict[tuple[str, str], str]] = {}
    for cell in design.cells:
        rest = short_name(design, cell.levels, along, by)
        cells.setdefault(rest, {})[cell.levels[by], cell.levels[along]] = cell.label
    every = set().union(*cells.values())
    whole = [labels for labels in cells.values() if labels.keys() == every]
    positions = {level: float(i) for i, level in enumerate(sorted_levels(design.factors[along]))}
    lines, limits = [], design.metric.limits(evidence.runs["value"])
    for level in sorted_levels(design.factors[by]) if whole else []:
        others = [other for other in positions if (level, other) in every]
        rows = [values.reindex([labels[level, other] for labels in whole]).mean(axis=0, skipna=False) for other in others]
        means = [each.within(*limits) for each in estimate_means(np.array(rows, float))]
        lines.append(LevelLine(level, [positions[other] for other in others], means))
    return [line for line in lines if any(each.n for each in line.estimates)]


def _means(lines: Sequence[LevelLine]) -> list[float]:
    return [each.mean for line in lines for each in line.estimates if each.mean is not None]


def interval_ends(estimate: Estimate) -> tuple[float, float]:
    """Return the ends of the error bar: the 95 % interval, or the mean as both ends if there is no interval."""
    mean = estimate.mean or 0.0
    return (mean if estimate.low is None else estimate.low), (mean if estimate.high is None else estimate.high)


def _line_styles(lines: Sequence[LevelLine], metric: Metric) -> dict[str, LineStyle]:
    """Return the style of each line that has its own, by name: all lines, or those with the best values if there are too many."""
    scores: dict[str, float] = {}
    for line in lines:
        scores[line.name] = min(line.best_score(metric), scores.get(line.name, math.inf))
    best = sorted(scores, key=lambda name: scores[name])[:MAX_STYLED_LINES]
    return {name: style_at(i) for i, name in enumerate(name for name in scores if name in best)}


def _draw_lines(panel: Axes, lines: Sequence[LevelLine], styles: Mapping[str, LineStyle], width: float = 1.2) -> None:
    for line in lines:
        kept = [(position, each) for position, each in zip(line.positions, line.estimates, strict=True) if each.mean is not None]
        positions, means = [position for position, _ in kept], np.array([each.mean for _, each in kept], float)
        if line.name not in styles:
            panel.plot(positions, means, color=MUTED, linewidth=0.4, alpha=0.3)
            continue
        crowded = len(line.positions) > MAX_TICKS
        aside = 0.0 if crowded else (list(styles).index(line.name) - (len(styles) - 1) / 2) * SIDE_STEP_POINTS / 72
        moved = panel.transData + ScaledTranslation(aside, 0, panel.figure.dpi_scale_trans)
        ends = [interval_ends(each) for _, each in kept]
        lengths = abs(np.array(ends, float).reshape(-1, 2).T - means)
        drawn = line_properties(styles[line.name]) | {"label": line.name, "linewidth": width, "elinewidth": 0.8, "capsize": 1.5}
        panel.errorbar(positions, means, lengths, transform=moved, **drawn)
        # matplotlib ignores shifted artists when it sets the limits of an axis.
        panel.update_datalim([(position, end) for position, pair in zip(positions, ends, strict=True) for end in pair])
    panel.autoscale_view()


def _label_levels(panel: Axes, levels: Sequence[str], inches: float) -> None:
    """Label at most `MAX_TICKS` evenly spaced levels on the axis, rotated if the labels would touch."""
    every = -(-len(levels) // MAX_TICKS)
    positions = list(range(0, len(levels), every))
    names = [shorten(levels[position], MAX_LEVEL_CHARACTERS) for position in positions]
    panel.set_xticks(positions, names)
    panel.set_xlim(-0.3, len(levels) - 0.7)
    if max(map(len, names)) + 1 > inches / CHARACTER_WIDTH_INCHES / len(names):
        panel.tick_params(axis="x", labelrotation=35)
        for text in panel.get_xticklabels():
            text.set_horizontalalignment("right")
            text.set_rotation_mode("anchor")
