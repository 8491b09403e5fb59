"""Captions of figures: a title, how to read the figure, and an alternative text with its main numbers."""

from collections.abc import Callable
from typing import NamedTuple

from ablations.engine.analysis.evidence import Evidence
from ablations.engine.analysis.findings import CellFinding, Findings
from ablations.engine.analysis.number_format import ValueFormat, scaled
from ablations.engine.analysis.verdicts.sentences import sentence
from ablations.engine.report.figures.curves import lr_drop_epochs
from ablations.engine.report.figures.designs.captions import DESIGN_CAPTIONS
from ablations.engine.report.figures.forest import NO_PAIRS, baseline_levels, displayed_comparisons
from ablations.engine.report.figures.levels import MAX_STYLED_LINES, interaction_pairs, numeric_factor, panel_factor
from ablations.engine.report.figures.pareto import drawn_costs, multiply_add_points, pareto_points
from ablations.engine.report.figures.phrases import list_or_ends, plural, short
from ablations.engine.report.figures.search_captions import SEARCH_CAPTIONS
from ablations.engine.report.figures.styles import MAX_LINES_WITH_BANDS, make_style_map, short_name
from resnet_core.fields import counted


class Caption(NamedTuple):
    """The texts of a figure."""

    title: str
    text: str
    """Caption: an explanation of the figure's marks."""
    alt: str
    """Alternative text: what the figure shows, with its main numbers."""


def caption(name: str, evidence: Evidence, findings: Findings) -> Caption:
    """Return the caption of a figure of `figures.all_figures`, by its name."""
    title, text, alt = CAPTIONS[name](evidence, findings)
    return Caption(title, text, f"{title}. {alt}")


def _curves(evidence: Evidence, findings: Findings) -> tuple[str, str, str]:
    style_map = make_style_map(evidence)
    trained = evidence.curves["train_value"].notna().any() and not style_map.crowded
    text = f"{short(evidence)} after each epoch{_dashed(evidence)}." if trained else f"{findings.metric.label} after each epoch."
    alt = f"Lines over {counted(int(evidence.curves['epoch'].max()), 'epoch')}. {_values_text(findings, evidence)}"
    divided = " Dotted lines mark the epochs at which the learning rate is divided." if lr_drop_epochs(evidence.design) else ""
    over = _lines_text(evidence, findings, bands=not style_map.crowded)
    return "Learning curves", f"{sentence(text)} {over}{divided}{_gray_text(evidence)}", alt


def _depth(evidence: Evidence, findings: Findings) -> tuple[str, str, str]:
    factor = numeric_factor(evidence.design) or ""
    cells = sorted((cell for cell in findings.cells if cell.value.n), key=lambda cell: float(cell.levels[factor]))
    metric, formats = findings.metric, ValueFormat.of(findings)
    by, lines = panel_factor(evidence.design, factor), dict[str, list[CellFinding]]()
    for cell in cells:
        lines.setdefault(short_name(evidence.design, cell.levels, factor), []).append(cell)
    items = [
        f"{name + ': ' if name else ''}{formats.with_unit(cells[0].value.mean)} at {cells[0].levels[factor]}, "
        f"{formats.with_unit(cells[-1].value.mean)} at {cells[-1].levels[factor]}"
        for name, cells in lines.items()
    ]
    trained = any(cell.train_value.n for cell in cells)
    named = len({short_name(evidence.design, cell.levels, factor, by) for cell in cells})
    what = f"{short(evidence)} in the final epoch{_dashed(evidence)}" if trained else f"{metric.label} in the final epoch"
    text = f"{sentence(what)}. {_marks_text(evidence, findings)}"
    more = (
        f" The {MAX_STYLED_LINES} lines with the {metric.best} {plural(evidence)}, of {named}, have their own styles; the "
        "others are gray."
        if named > MAX_STYLED_LINES
        else ""
    )
    title = f"{sentence(short(evidence))} by {factor}"
    return title, text + more, f"Mean {metric.label}, {list_or_ends(items)}."


def _differences(evidence: Evidence, findings: Findings) -> tuple[str, str, str]:
    shown = displayed_comparisons(findings)
    left_out = len(findings.comparisons) - len(shown)
    by_size = sorted(findings.comparisons, key=lambda each: -abs(each.difference.mean or 0))
    significant = sum(each.difference.significant for each in findings.comparisons)
    metric, formats = findings.metric, ValueFormat.of(findings)
    unit = f" in {metric.difference_unit}" if metric.difference_unit else ""
    better = "Negative differences, on the left," if metric.better == "lower" else "Positive differences, on the right,"
    text = (
        f"Difference in {metric.label} to {baseline_levels(findings)}{unit}, paired by seed, with 95 % "
        f"confidence intervals. {better} are better. A filled mark is significant: its p-value, adjusted "
        "for all tests of the study, is below 0.05. A hollow mark is not."
    )
    more = (
        f" The figure shows the {len(shown)} largest differences; the table has {counted(left_out, 'more difference')}."
        if left_out
        else ""
    )
    items = [f"{each.cell} {formats.signed_with_interval(each.difference, NO_PAIRS)}" for each in by_size]
    total = counted(len(findings.comparisons), "difference")
    verb = "is" if significant == 1 else "are"
    alt = f"{significant} of {total} {verb} significant. Differences{unit}: {list_or_ends(items)}."
    return "Differences to the baseline", text + more, alt


def _interaction(evidence: Evidence, findings: Findings) -> tuple[str, str, str]:
    drawn = interaction_pairs(evidence.design, findings)
    label, formats = findings.metric.label, ValueFormat.of(findings)
    unit = f", in {findings.metric.difference_unit}" if findings.metric.difference_unit else ","
    text = (
        f"Mean {label} by the levels of two factors. Where lines are not parallel, the effect of one factor depends "
        f"on the other. {_marks_text(evidence, findings)}"
    )
    items = []
    for pair in drawn:
        of_pair = [each for each in findings.interactions if set(each.factors) == set(pair) and each.difference.mean is not None]
        if of_pair:
            most = max(of_pair, key=lambda each: abs(each.difference.mean or 0))
            there = " and ".join(f"{name}={level}" for name, level in zip(most.factors, most.levels, strict=True))
            items.append(f"{' × '.join(pair)}: {formats.signed_with_interval(most.difference, NO_PAIRS)} at {there}")
    named = "; ".join(" × ".join(pair) for pair in drawn)
    alt = (
        f"Largest interactions{unit} beyond the sum of both effects: {list_or_ends(items)}."
        if items
        else f"Mean {label} by {named}."
    )
    return "Interactions", text, alt


def _cost(evidence: Evidence, findings: Findings) -> tuple[str, str, str]:
    style_map, metric, formats = make_style_map(evidence), findings.metric, ValueFormat.of(findings)
    items = [
        f"{style_map.name(point.cell)} ({scaled(point.cost)} multiply-adds, {formats.with_unit(point.value)})"
        for point in pareto_points(multiply_add_points(findings), metric)
    ]
    text = (
        f"{sentence(metric.label)} against the cost of a network. {_front_text(evidence, findings)}"
        f"{_marks_text(evidence, findings)}{_gray_text(evidence)}"
    )
    return (
        f"{sentence(short(evidence))} against cost",
        text,
        f"Cells on the Pareto front of multiply-adds and {short(evidence)}, by rising cost: {list_or_ends(items)}.",
    )


def _front_text(evidence: Evidence, findings: Findings) -> str:
    """Return what the step lines of the figure of cost are; a front of one cell has no line."""
    sizes = [len(pareto_points(points, findings.metric)) for points in drawn_costs(findings)]
    cost_and_value = f"cost and {short(evidence)}"
    if max(sizes, default=1) == 1:
        return f"There is no line for the Pareto front, because one cell is best in both {cost_and_value}. "
    one = f" Without a line, one cell is best in both {cost_and_value}." if min(sizes) == 1 else ""
    return f"The step line is the Pareto front: the cells that no other cell beats in both {cost_and_value}.{one} "


def _budget(evidence: Evidence, findings: Findings) -> tuple[str, str, str]:
    bands = len(make_style_map(evidence).styles) <= MAX_LINES_WITH_BANDS
    costs = ["epochs"]
    if any(cell.flops for cell in findings.cells) and any(map(evidence.design.examples_per_epoch, evidence.design.cells)):
        costs.append(f"multiply-adds (three forward passes per {evidence.design.example} and epoch)")
    if evidence.curves["epoch_seconds"].notna().any():
        costs.append("time")
    text = (
        f"{findings.metric.label} against the cost of training so far: {', '.join(costs[:-1])} and {costs[-1]}. "
        f"{_lines_text(evidence, findings, bands=bands)}{_gray_text(evidence)}"
    )
    seconds = [cell.seconds for cell in findings.cells if cell.seconds is not None]
    least, most = (f"{end:.3g}" for end in (min(seconds), max(seconds))) if seconds else ("", "")
    range_of = f"{least} seconds" if least == most else f"between {least} and {most} seconds"
    took = f" A run took {range_of}, as the mean of a cell." if seconds else ""
    return f"{sentence(short(evidence))} against the cost of training", sentence(text), f"{_values_text(findings, evidence)}{took}"


def _responses(evidence: Evidence, findings: Findings) -> tuple[str, str, str]:
    text = (
        "Standard deviation of each layer's responses, in the order of the layers and sorted by size. "
        f"{_lines_text(evidence, findings)}{_gray_text(evidence)}"
    )
    return "Layer responses", text, _medians_text(evidence, "responses", "std")


def _gradients(evidence: Evidence, findings: Findings) -> tuple[str, str, str]:
    text = (
        "Norm of each layer's gradient, in the order of the layers and sorted by size. "
        f"{_lines_text(evidence, findings)}{_gray_text(evidence)}"
    )
    return "Layer gradients", text, _medians_text(evidence, "gradients", "gradient_norm")


CAPTIONS: dict[str, Callable[[Evidence, Findings], tuple[str, str, str]]] = {
    "curves": _curves,
    "depth": _depth,
    "differences": _differences,
    "interaction": _interaction,
    "cost": _cost,
    "budget": _budget,
    "responses": _responses,
    "gradients": _gradients,
    **SEARCH_CAPTIONS,
    **DESIGN_CAPTIONS,
}


def _seeds_text(evidence: Evidence, findings: Findings) -> str:
    numbers = [cell.planned for cell in findings.cells]
    planned = f"{min(numbers)} to {max(numbers)}" if min(numbers) < max(numbers) else str(max(numbers))
    if planned == "1":
        return "values of one seed"
    complete = all(cell.value.n == cell.planned for cell in findings.cells)
    return f"means over {planned} seeds" if complete else f"means over the completed seeds, of {planned} planned"


def _lines_text(evidence: Evidence, findings: Findings, *, bands: bool = True) -> str:
    seeds = _seeds_text(evidence, findings)
    return f"Lines are {seeds}{', and bands range from the lowest to the highest seed' if bands and 'means' in seeds else ''}."


def _marks_text(evidence: Evidence, findings: Findings) -> str:
    seeds = _seeds_text(evidence, findings)
    return f"Marks are {seeds}{', and bars are 95 % confidence intervals' if 'means' in seeds else ''}."


def _gray_text(evidence: Evidence) -> str:
    style_map = make_style_map(evidence)
    if not style_map.others:
        return ""
    best = f"with the {evidence.design.metric.best} {plural(evidence)}"
    kinds = f"baselines and the cells {best}" if evidence.design.baseline else f"those {best}"
    shown = f"{len(style_map.styles)} of {len(evidence.design.cells)} cells"
    return f" {shown} have their own styles, {kinds}; the others are gray."


def _values_text(findings: Findings, evidence: Evidence) -> str:
    formats, minimized = ValueFormat.of(findings), findings.metric.minimized
    cells = sorted((cell for cell in findings.cells if cell.value.n), key=lambda cell: minimized(cell.value.mean or 0))
    items = [f"{short_name(evidence.design, cell.levels) or cell.label} {formats.with_unit(cell.value.mean)}" for cell in cells]
    return f"Mean {findings.metric.label} in the final epoch: {list_or_ends(items)}."


def _medians_text(evidence: Evidence, probe: str, quantity: str) -> str:
    rows = evidence.probes[(evidence.probes["probe"] == probe) & (evidence.probes["quantity"] == quantity)]
    epoch = rows["epoch"].max()
    medians = rows[rows["epoch"] == epoch].groupby("cell")["value"].median().sort_values()
    return (
        f"Median over layers and seeds after epoch {epoch}: "
        f"{list_or_ends([f'{cell} {value:.3g}' for cell, value in medians.items()])}."
    )


def _dashed(evidence: Evidence) -> str:
    """Return which lines of a figure are dashed: `: dashed for training, solid for test images`."""
    metric, images = evidence.design.metric, "" if evidence.design.task else " images"
    return f": dashed for training, solid for {metric.split or 'the metric itself'}{images}"
