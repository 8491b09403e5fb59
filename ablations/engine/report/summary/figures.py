"""Figures of the summary: a forest of effects by data set, and a diagram of mean ranks with critical differences."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ablations.engine.analysis.datasets.findings import DatasetsFindings, EffectOverDatasets, Ranks
from ablations.engine.analysis.number_format import ValueFormat, number
from ablations.engine.analysis.statistics.estimate import Estimate
from ablations.engine.report.figures.axes import LINE_HEIGHT_INCHES, figure_style, wrap
from ablations.engine.report.figures.forest import draw_difference, set_difference_scale
from ablations.engine.report.figures.layout import figure_width, is_narrow, name_inches, number_lines
from ablations.engine.report.figures.styles import GRID, INK, MUTED
from resnet_core.fields import counted, printable

MAX_EFFECTS = 12
"""Maximum number of effects in the forest."""
MAX_RANKED = 30
"""Maximum number of cells in the diagram of ranks."""
ROW_MARGIN_LINES = 0.25
"""Space between two rows, in lines of text."""
MEAN = "mean"
"""Name of the row with the mean over data sets."""
DIAMOND_HEIGHT = 0.3
"""Half the height of a diamond, in lines of text."""
GROUP_GAP = 0.12
"""Distance between two bars of groups, as a fraction of the unit of ranks."""


def summary_figures(found: DatasetsFindings) -> dict[str, Figure]:
    """Return the figures that have something to show, by name."""
    drawn = {"forest": forest_figure(found), "ranks": ranks_figure(found)}
    return {name: figure for name, figure in drawn.items() if figure is not None}


def effects_in_forest(found: DatasetsFindings) -> list[EffectOverDatasets]:
    """Return the effects that the forest shows: the largest, in the order of the study."""
    shown = [each for each in found.effects if len(each.by_dataset) > 1]
    largest = sorted(shown, key=lambda each: -abs(each.mean.mean or 0))[:MAX_EFFECTS]
    return [each for each in shown if each in largest]


def forest_figure(found: DatasetsFindings) -> Figure | None:
    """Draw each effect on each data set with its interval over seeds, and the mean as a diamond as wide as its interval.

    A gray line through a diamond is the prediction interval for one more data set. Return None without an effect on two data sets.
    """
    effects = effects_in_forest(found)
    if not effects:
        return None
    formats = ValueFormat(found.metric, found.decimals)
    rows = [row for effect in effects for row in _rows(effect)]
    names = [name for name, *_ in rows]
    names = [wrap(name, name_inches(names, figure_width() / 3)) for name in names]
    height = _row_height(names, 2 if is_narrow() else 1)
    with figure_style():
        figure = Figure(figsize=(figure_width(), LINE_HEIGHT_INCHES * (height * len(rows) + 1) + 0.7))
        panel = figure.subplots()
        panel.axvline(0, color=INK, linewidth=0.8, zorder=1)
        positions = [height * (i + 0.5) for i in range(len(rows))]
        differences = []
        for (name, estimate, effect), position in zip(rows, positions, strict=True):
            if estimate is None:
                continue
            if name == MEAN:
                _draw_mean(panel, effect, position, formats)
            else:
                draw_difference(panel, estimate, position, formats)
            differences.append(estimate)
        _set_range(panel, differences)
        scale = set_difference_scale(panel, [each for each in differences if each.mean is not None])
        panel.set_ylim(height * len(rows), 0)
        labels = panel.set_yticks(positions, names)
        for tick, (name, estimate, _) in zip(labels, rows, strict=True):
            tick.label1.set_fontweight("bold" if estimate is None or name == MEAN else "normal")
        panel.tick_params(axis="y", length=0)
        panel.grid(axis="y", visible=False)
        panel.spines["left"].set_visible(False)
        unit = f", {found.metric.difference_unit}".rstrip(", ")
        panel.set_xlabel(wrap(f"{found.metric.label}: difference to the reference level{unit}{scale}", figure_width() / 2))
    return figure


def _row_height(names: Sequence[str], least: int = 1) -> float:
    """Return the height of a row in lines of text: that of the longest name, and at least that of the numbers beside it."""
    return max(least, *(name.count("\n") + 1 for name in names)) + ROW_MARGIN_LINES


def _rows(effect: EffectOverDatasets) -> list[tuple[str, Estimate | None, EffectOverDatasets]]:
    """Return the rows of an effect: its name, which has no estimate, its data sets, and the mean."""
    heading = f"{effect.factor}: {effect.level} − {effect.reference}"
    of_datasets = [(name, each.difference, effect) for name, each in effect.by_dataset.items()]
    return [(heading, None, effect), *of_datasets, (MEAN, effect.mean, effect)]


def _set_range(panel: Axes, differences: Sequence[Estimate]) -> None:
    """Limit the axis to what the studies found: the mean over two data sets may have an interval many times as wide."""
    single = [each for each in differences if each.mean is not None]
    ends = [value for each in single for value in (each.mean, each.low, each.high) if value is not None]
    of_studies = [value for each in single for value in (each.mean,) if value is not None]
    reach = max(map(abs, of_studies), default=0.0)
    widest = 4 * reach or 1.0
    low, high = max(min([*ends, 0.0]), -widest), min(max([*ends, 0.0]), widest)
    margin = 0.04 * (high - low)
    panel.set_xlim(low - margin, high + margin)


def _draw_mean(panel: Axes, effect: EffectOverDatasets, position: float, formats: ValueFormat) -> None:
    mean = effect.mean
    panel.text(
        1.02,
        position,
        number_lines(formats.signed_with_interval(mean)),
        transform=panel.get_yaxis_transform(),
        verticalalignment="center" if is_narrow() else "center_baseline",
        fontweight="bold",
    )
    if mean.mean is None:
        return
    if effect.prediction is not None:
        panel.plot(effect.prediction, [position, position], color=MUTED, linewidth=2, alpha=0.5, solid_capstyle="butt", zorder=1)
    if mean.low is None or mean.high is None:
        panel.plot([mean.mean], [position], marker="D", markersize=5, color=INK, linestyle="none")
        return
    across, up = [mean.low, mean.mean, mean.high, mean.mean], [0.0, -DIAMOND_HEIGHT, 0.0, DIAMOND_HEIGHT]
    panel.fill(
        across, [position + each for each in up], facecolor=INK, edgecolor=INK, alpha=1 if mean.significant else 0.35, zorder=2
    )


def ranks_figure(found: DatasetsFindings) -> Figure | None:
    """Draw the mean rank of each cell; a bar joins cells whose ranks are not shown to differ. Return None without ranks."""
    ranks = found.ranks
    if ranks is None:
        return None
    cells = list(ranks.mean_ranks)[:MAX_RANKED]
    names = [wrap(cell, name_inches(cells, figure_width() / 2.5)) for cell in cells]
    height = _row_height(names)
    with figure_style():
        figure = Figure(figsize=(figure_width(), LINE_HEIGHT_INCHES * (height * len(cells) + 3) + 0.5))
        panel = figure.subplots()
        positions = [height * (i + 0.5) for i in range(len(cells))]
        for cell, position in zip(cells, positions, strict=True):
            panel.axhline(position, color=GRID, linewidth=0.6, zorder=0)
            panel.plot([ranks.mean_ranks[cell]], [position], marker="o", markersize=5, color=INK, linestyle="none", zorder=3)
            panel.text(
                1.02,
                position,
                number(ranks.mean_ranks[cell]),
                transform=panel.get_yaxis_transform(),
                verticalalignment="center_baseline",
            )
        right = _draw_groups(panel, ranks, cells, positions)
        panel.set_ylim(height * len(cells), -1.5)
        panel.set_xlim(0.8, right + 0.2)
        panel.plot([1, 1 + ranks.critical_difference], [-0.5, -0.5], color=INK, linewidth=1.5, marker="|", markersize=6)
        panel.text(1, -0.75, f"critical difference {number(ranks.critical_difference)}", verticalalignment="bottom")
        panel.set_xticks(range(1, len(ranks.mean_ranks) + 1, max(1, len(ranks.mean_ranks) // 10)))
        panel.set_yticks(positions, names)
        panel.tick_params(axis="y", length=0)
        panel.grid(axis="y", visible=False)
        panel.spines["left"].set_visible(False)
        panel.set_xlabel(f"mean rank over {len(found.datasets)} data sets, 1 is the best")
    return figure


def _draw_groups(panel: Axes, ranks: Ranks, cells: Sequence[str], positions: Sequence[float]) -> float:
    """Draw a vertical bar for each group, right of the ranks; return the right end of the drawing."""
    left = max(ranks.mean_ranks[cell] for cell in cells) + 0.3
    left = max(left, 1 + ranks.critical_difference)
    unit = GROUP_GAP * max(1.0, left - 1)
    drawn = 0
    for group in ranks.groups:
        rows = [positions[cells.index(cell)] for cell in group if cell in cells]
        if len(rows) > 1:
            at = left + unit * drawn / 3
            panel.plot([at, at], [min(rows) - 0.35, max(rows) + 0.35], color=MUTED, linewidth=3, solid_capstyle="butt")
            drawn += 1
    return left + unit * drawn / 3


def forest_caption(found: DatasetsFindings) -> tuple[str, str]:
    """Return how to read the forest, and what it shows as an alternative text."""
    effects = effects_in_forest(found)
    hidden = len([each for each in found.effects if len(each.by_dataset) > 1]) - len(effects)
    text = (
        "Dots are effects on one data set with 95 % intervals over seeds, filled if that study shows a difference. Diamonds are "
        "means over data sets, each of which counts once. They are as wide as their 95 % interval over data sets, which the axis "
        "may cut off, and dark if the summary shows an effect."
    )
    if any(each.prediction for each in effects):
        text += " A gray line is the 95 % prediction interval of the effect on one more such data set."
    if hidden:
        text += f" The figure shows the {len(effects)} largest of {counted(hidden + len(effects), 'effect')}."
    formats = ValueFormat(found.metric, found.decimals)
    means = [f"{each.factor} {each.level} − {each.reference}: {formats.signed_with_interval(each.mean)}" for each in effects]
    return text, printable(f"Forest plot of effects on {len(found.datasets)} data sets. Means: {'; '.join(means)}.")


def ranks_caption(found: DatasetsFindings, ranks: Ranks) -> tuple[str, str]:
    """Return how to read the diagram of ranks, and what it shows as an alternative text."""
    text = (
        f"Dots are mean ranks of cells over {len(found.datasets)} data sets. Gray bars join cells that are not shown to differ: "
        "their mean ranks are closer than the critical difference (Nemenyi, 5 %), or Friedman's test shows no difference at all."
    )
    if len(ranks.mean_ranks) > MAX_RANKED:
        text += f" The figure shows the best {MAX_RANKED} of {counted(len(ranks.mean_ranks), 'cell')}."
    named = [f"{cell} {number(rank)}" for cell, rank in list(ranks.mean_ranks.items())[:MAX_RANKED]]
    return text, printable(f"Critical-difference diagram. Mean ranks: {'; '.join(named)}.")
