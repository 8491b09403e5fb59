"""Figures of the course of training: one line per cell, with a band over its seeds."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ablations.engine.analysis.evidence import Evidence
from ablations.engine.report.figures.axes import (
    NO_BREAK,
    draw_gray_lines,
    draw_line,
    figure_style,
    legend,
    log_axis,
    seed_envelopes,
    spans_decades,
    time_unit,
    unit_prefix,
    value_axis,
    whole_numbers,
    wrap,
)
from ablations.engine.report.figures.layout import figure_width, is_narrow, label_left, panel_columns, panels_beside
from ablations.engine.report.figures.styles import (
    DASHES,
    FILL_STYLES,
    MAX_LINES_WITH_BANDS,
    MUTED,
    LineStyle,
    StyleMap,
    make_style_map,
)
from ablations.engine.study.design import Design, DesignCell
from ablations.engine.task.metric import Metric

FORWARD_PASSES_PER_STEP = 3
"""Cost of a training step in forward passes: the backward pass costs two."""
MAX_EPOCH_PANELS = 4
"""Maximum number of panels side by side, one per epoch."""
MAX_NARROW_EPOCH_PANELS = 2
"""That number in a narrow figure."""
MIN_RATIO_TO_MEDIAN_FOR_LOG_AXIS = 20
"""The axis of responses is logarithmic if the largest exceeds the median by this factor, as early in training."""


def curves_figure(evidence: Evidence) -> Figure | None:
    """Draw learning curves as in figures 4 and 6 of He et al. 2015: the metric by epoch, dashed on training data.

    With two or more factors, there is a panel for each level of the factor with the fewest levels; with three or more, for each
    combination of two. Vertical lines mark divisions of the learning rate, if they are the same in all cells. Return None without
    a curve.
    """
    if not len(evidence.curves):
        return None
    style_map, metric = make_style_map(evidence), evidence.design.metric
    scored = seed_envelopes(evidence.curves, "epoch", "value")
    train = {} if style_map.crowded else seed_envelopes(evidence.curves.dropna(subset="train_value"), "epoch", "train_value")
    groups = style_map.panels()
    with figure_style():
        figure, panels = _curve_panels(evidence, style_map)
        named: dict[str, LineStyle] = {}
        for panel, (title, cells) in zip(panels.flat, groups.items(), strict=False):
            panel.set_title(wrap(title, figure_width() / panels.shape[1] - 0.5))
            for position in lr_drop_epochs(evidence.design):
                panel.axvline(position, color=MUTED, linewidth=0.6, linestyle=DASHES[2], zorder=1)
            named |= _draw_curves(panel, style_map, cells, train, scored)
        whole_numbers(panels[0, 0])
        for column in panels.T:
            lowest = [panel for panel in column if panel.axison][-1]
            lowest.set_xlabel("epoch")
            lowest.xaxis.set_tick_params(labelbottom=True)
        label_left(list(panels.flat), train_and_scored_label(metric) if train else metric.heading)
        drawn = evidence.curves[["value", "train_value"] if train else ["value"]]
        value_axis(panels[0, 0], metric, drawn.to_numpy(float).ravel())
        legend(figure, {name: named[name] for name in _legend_order(style_map, named)})
    return figure


def budget_figure(evidence: Evidence) -> Figure | None:
    """Draw the metric against the cost of training so far: epochs, multiply-adds, time.

    Training costs three times the multiply-adds of the forward pass, per example and epoch. Return None without a curve, and if
    runs report neither multiply-adds nor time.
    """
    if not len(evidence.curves):
        return None
    style_map = make_style_map(evidence)
    scored = seed_envelopes(evidence.curves, "epoch", "value")
    of_epoch = _multiply_adds_per_epoch(evidence)
    seconds = _elapsed_seconds(evidence.curves)
    most = max((seen.max() for seen in seconds.values()), default=0.0)
    unit_seconds, unit_of_time = time_unit(most)
    spent = {cell: scored[cell].index * of_epoch[cell] for cell in scored if cell in of_epoch}
    scale, unit = unit_prefix(max((float(values.max()) for values in spent.values()), default=1.0))
    costs: list[tuple[str, Mapping[str, Sequence[float]]]] = [
        (f"multiply-adds of training{unit}", {cell: list(values / scale) for cell, values in spent.items()}),
        (f"training time, {unit_of_time}", {cell: list(seen / unit_seconds) for cell, seen in seconds.items()}),
    ]
    known = [(label, positions) for label, positions in costs if positions]
    if not known:
        return None
    axes = [("epoch", {cell: list(line.index) for cell, line in scored.items()}), *known]
    with figure_style():
        figure, panels = panels_beside(len(axes), 2.5, 2.0)
        for panel, (label, positions) in zip(panels, axes, strict=True):
            lines = {cell: scored[cell].set_axis(pd.Index(positions[cell])) for cell in scored if cell in positions}
            _draw_cells(panel, style_map, lines)
            panel.set_xlabel(label)
            if spans_decades(max(line.index) for line in lines.values()):
                log_axis(panel, "x")
            elif label == "epoch":
                whole_numbers(panel)
        label_left(panels, evidence.design.metric.heading)
        value_axis(panels[0], evidence.design.metric, evidence.curves["value"])
        legend(figure, {style_map.name(cell): style for cell, style in style_map.styles.items() if cell in scored})
    return figure


def responses_figure(evidence: Evidence) -> Figure | None:
    """Draw standard deviations of layer responses at each cell's last probed epoch, as in figure 7 of He et al. 2015.

    Lines are means over seeds, and bands range from the lowest to the highest seed. Responses are sorted within each seed. Return
    None without a probe.
    """
    rows = _main_path_rows(evidence, "responses", "std")
    if not len(rows):
        return None
    rows = rows[rows["epoch"] == rows.groupby("cell")["epoch"].transform("max")]
    style_map = make_style_map(evidence)
    with figure_style():
        figure = Figure(figsize=(figure_width(), 4.6))
        by_layer, by_size = figure.subplots(2, 1, sharey=True)
        _draw_layers(by_layer, by_size, rows, style_map)
        for panel in (by_layer, by_size):
            panel.set_ylabel("std of layer response")
        if rows["value"].max() > MIN_RATIO_TO_MEDIAN_FOR_LOG_AXIS * rows["value"].median():
            log_axis(by_layer, "y")
            log_axis(by_size, "y")
        else:
            by_layer.set_ylim(bottom=0)
        legend(figure, _probed_styles(style_map, rows))
    return figure


def gradients_figure(evidence: Evidence) -> Figure | None:
    """Draw gradient norms by layer and sorted by size, with a column per probed epoch (at most four, from first to last).

    Lines are means over seeds, and bands range from the lowest to the highest seed. Gradients are sorted within each seed. Return
    None without a probe.
    """
    rows = _main_path_rows(evidence, "gradients", "gradient_norm")
    if not len(rows):
        return None
    epochs = _select_epochs(sorted(rows["epoch"].unique()), MAX_NARROW_EPOCH_PANELS if is_narrow() else MAX_EPOCH_PANELS)
    style_map = make_style_map(evidence)
    with figure_style():
        figure = Figure(figsize=(figure_width(), 4.6))
        panels = figure.subplots(2, len(epochs), sharey=True, squeeze=False)
        for (by_layer, by_size), epoch in zip(panels.T, epochs, strict=True):
            _draw_layers(by_layer, by_size, rows[rows["epoch"] == epoch], style_map)
            by_layer.set_title(f"epoch {epoch}")
        for panel in panels.flat:
            log_axis(panel, "y")
        for panel in panels[:, 0]:
            panel.set_ylabel("norm of gradient")
        legend(figure, _probed_styles(style_map, rows))
    return figure


def _curve_panels(evidence: Evidence, style_map: StyleMap) -> tuple[Figure, Any]:
    """Return a figure with a panel for each group of cells, in rows and columns that share both axes."""
    count = len(style_map.panels())
    columns = len(evidence.design.factors[style_map.dash_factor]) if style_map.marker_factor else 2 if count == 4 else count
    columns = panel_columns(count, columns)
    rows = -(-count // columns)
    height = 0.5 + 1.8 * rows if rows > 1 or is_narrow() else 2.5
    figure = Figure(figsize=(figure_width(), height))
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for panel in panels.flat[count:]:
        panel.set_axis_off()
    return figure, panels


def _draw_curves(
    panel: Axes,
    style_map: StyleMap,
    cells: Sequence[DesignCell],
    train: Mapping[str, pd.DataFrame],
    scored: Mapping[str, pd.DataFrame],
) -> dict[str, LineStyle]:
    """Draw the curves of a panel, and return the styles for the legend by name, without the levels in the panel's title."""
    present = [cell.label for cell in cells if cell.label in scored]
    draw_gray_lines(panel, [scored[cell] for cell in present if cell in style_map.others])
    styled = [cell for cell in style_map.styles if cell in present]
    named = {}
    for i, cell in enumerate(styled):
        style = style_map.panel_style(cell)
        if cell in train:
            draw_line(panel, train[cell], style._replace(dash=DASHES[1], fill=FILL_STYLES[1]), i / len(styled), "_", 0.9)
        draw_line(panel, scored[cell], style, i / len(styled), cell, band=not style_map.crowded)
        named[style_map.name(cell, *style_map.panel_factors)] = style
    return named


def _legend_order(style_map: StyleMap, named: Mapping[str, LineStyle]) -> list[str]:
    """Return the names of a legend in ascending order of levels, whatever the order of the panels."""
    every = dict.fromkeys(style_map.name(cell, *style_map.panel_factors) for cell in style_map.styles)
    return [name for name in every if name in named]


def train_and_scored_label(metric: Metric) -> str:
    """Return the label of an axis with the metric on training data (dashed lines) and as reported (solid lines)."""
    solid = f", solid:{NO_BREAK}{metric.split}" if metric.split else ""
    return f"{metric.with_unit(metric.quantity.replace('_', ' '))} (dashed:{NO_BREAK}train{solid})"


def lr_drop_epochs(design: Design) -> tuple[float, ...]:
    """Return the epochs after which the learning rate is divided; empty if they differ between cells."""
    every = set()
    for cell in design.cells:
        step = cell.spec.get("optim.schedule") == "step"
        every.add(tuple(share * _training_epochs(design, cell) for share in cell.spec["optim.milestones"]) if step else ())
    return every.pop() if len(every) == 1 else ()


def _training_epochs(design: Design, cell: DesignCell) -> float:
    """Return the length of a training in epochs; the last epoch may be partial."""
    iterations, batch = cell.spec["optim.iterations"], cell.spec["optim.global_batch_size"]
    return float(iterations * batch / design.examples_per_epoch(cell) if iterations else cell.spec["optim.epochs"])


def _multiply_adds_per_epoch(evidence: Evidence) -> dict[str, float]:
    """Return the multiply-adds of one epoch of training, for each cell with a known cost and number of examples."""
    forward = evidence.runs.groupby("cell")["flops"].mean().dropna().to_dict()
    cells = (cell for cell in evidence.design.cells if cell.label in forward and evidence.design.examples_per_epoch(cell))
    return {cell.label: FORWARD_PASSES_PER_STEP * forward[cell.label] * evidence.design.examples_per_epoch(cell) for cell in cells}


def _elapsed_seconds(curves: pd.DataFrame) -> dict[str, pd.Series]:
    """Return the mean time over seeds from the start of training to the end of each epoch, in seconds, by cell."""
    ordered = curves.dropna(subset="epoch_seconds").sort_values("epoch")
    ordered = ordered.assign(passed=ordered.groupby(["cell", "seed"])["epoch_seconds"].cumsum())
    return {cell: table["mean"] for cell, table in seed_envelopes(ordered, "epoch", "passed").items()}


def _draw_cells(panel: Axes, style_map: StyleMap, lines: Mapping[str, pd.DataFrame]) -> None:
    draw_gray_lines(panel, [lines[cell] for cell in style_map.others if cell in lines])
    for i, (cell, style) in enumerate(style_map.styles.items()):
        if cell in lines:
            draw_line(
                panel, lines[cell], style, i / len(style_map.styles), cell, band=len(style_map.styles) <= MAX_LINES_WITH_BANDS
            )


def _draw_layers(by_layer: Axes, by_size: Axes, rows: pd.DataFrame, style_map: StyleMap) -> None:
    """Draw one line per cell, over the layers in order (`by_layer`) and sorted from the largest value down (`by_size`)."""
    ranks = rows.groupby(["cell", "seed"])["value"].rank(method="first", ascending=False)
    _draw_cells(by_layer, style_map, seed_envelopes(rows, "layer", "value"))
    _draw_cells(by_size, style_map, seed_envelopes(rows.assign(rank=ranks), "rank", "value"))
    by_layer.set_xlabel("layer index")
    by_size.set_xlabel("rank of layer, by magnitude")
    for panel in (by_layer, by_size):
        whole_numbers(panel)


def _main_path_rows(evidence: Evidence, probe: str, quantity: str) -> pd.DataFrame:
    rows = evidence.probes[evidence.probes["probe"] == probe]
    return rows[(rows["quantity"] == quantity) & (rows["layer"] > 0)] if len(rows) else rows


def _probed_styles(style_map: StyleMap, rows: pd.DataFrame) -> dict[str, LineStyle]:
    cells = set(rows["cell"])
    return {style_map.name(cell): style for cell, style in style_map.styles.items() if cell in cells}


def _select_epochs(epochs: Sequence[int], most: int) -> list[int]:
    if len(epochs) <= most:
        return list(epochs)
    return [epochs[round(i * (len(epochs) - 1) / (most - 1))] for i in range(most)]
