"""Captions of figures: a title, how to read the figure, and an alternative text with its main numbers."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from ablations.engine.analysis.evidence import Evidence
from ablations.engine.analysis.findings import CellFinding, Findings
from ablations.engine.analysis.number_format import percent, scaled, signed_with_interval
from ablations.engine.analysis.trial_table import format_value, search_design
from ablations.engine.report.figures.curves import lr_drop_epochs
from ablations.engine.report.figures.forest import NO_PAIRS, baseline_levels, displayed_comparisons
from ablations.engine.report.figures.levels import MAX_STYLED_LINES, interaction_pairs, numeric_factor
from ablations.engine.report.figures.pareto import multiply_add_points, pareto_points
from ablations.engine.report.figures.search_fields import MIN_TRIALS_FOR_MEDIANS, main_field
from ablations.engine.report.figures.styles import MAX_LINES_WITH_BANDS, make_style_map, short_name
from resnet_core.fields import counted

SCORES_ARE_NOT_RESULTS = "These validation errors chose the configuration, so they are no results."
MAX_NAMED = 6
"""Maximum number of items that an alternative text lists. If there are more, it lists the first two and the last."""


class Caption(NamedTuple):
    """The texts of a figure."""

    title: str
    text: str
    """How to read the figure."""
    alt: str
    """Alternative text: what the figure shows, with its main numbers."""


def caption(name: str, evidence: Evidence, findings: Findings) -> Caption:
    """Return the caption of a figure of `figures.all_figures`, by its name."""
    title, text, alt = CAPTIONS[name](evidence, findings)
    return Caption(title, text, f"{title}. {alt}")


def _curves(evidence: Evidence, findings: Findings) -> tuple[str, str, str]:
    style_map = make_style_map(evidence)
    on = findings.metric.split
    text = (
        f"{on} error after each epoch."
        if style_map.crowded
        else f"Error after each epoch: dashed for training, solid for {on} images."
    )
    alt = f"Lines over {counted(int(evidence.curves['epoch'].max()), 'epoch')}. {_errors_text(findings, evidence)}"
    divided = " Dotted lines mark the epochs at which the learning rate is divided." if lr_drop_epochs(evidence.design) else ""
    over = _lines_text(evidence, findings, bands=not style_map.crowded)
    return "Learning curves", f"{_sentence(text)} {over}{divided}{_gray_text(evidence)}", alt


def _depth(evidence: Evidence, findings: Findings) -> tuple[str, str, str]:
    factor = numeric_factor(evidence.design) or ""
    cells = sorted((cell for cell in findings.cells if cell.value.n), key=lambda cell: float(cell.levels[factor]))
    lines: dict[str, list[CellFinding]] = {}
    for cell in cells:
        lines.setdefault(short_name(evidence.design, cell.levels, factor), []).append(cell)
    items = [
        f"{name + ': ' if name else ''}{cells[0].value.mean:.2f} % at {cells[0].levels[factor]}, "
        f"{cells[-1].value.mean:.2f} % at {cells[-1].levels[factor]}"
        for name, cells in lines.items()
    ]
    text = (
        f"Error in the final epoch: dashed for training, solid for {findings.metric.split} images. "
        f"{_marks_text(evidence, findings)}"
    )
    more = (
        f" The {MAX_STYLED_LINES} lines with the lowest errors, of {len(lines)}, have their own styles; the others are gray."
        if len(lines) > MAX_STYLED_LINES
        else ""
    )
    return f"Error by {factor}", text + more, f"Mean {findings.metric.label}, {_list_or_ends(items)}."


def _differences(evidence: Evidence, findings: Findings) -> tuple[str, str, str]:
    shown = displayed_comparisons(findings)
    left_out = len(findings.comparisons) - len(shown)
    by_size = sorted(findings.comparisons, key=lambda each: -abs(each.difference.mean or 0))
    significant = sum(each.difference.significant for each in findings.comparisons)
    text = (
        f"Difference in {findings.metric.label} to {baseline_levels(findings)} in points, paired by seed, with 95 % "
        "confidence intervals. Negative differences, on the left, are better. A filled mark is significant: its p-value, adjusted "
        "for the number of comparisons, is below 0.05. A hollow mark is not."
    )
    more = (
        f" The figure shows the {len(shown)} largest differences; the table has {counted(left_out, 'more difference')}."
        if left_out
        else ""
    )
    items = [f"{each.cell} {signed_with_interval(each.difference, NO_PAIRS)}" for each in by_size]
    total = counted(len(findings.comparisons), "difference")
    verb = "is" if significant == 1 else "are"
    alt = f"{significant} of {total} {verb} significant. Differences in points: {_list_or_ends(items)}."
    return "Differences to the baseline", text + more, alt


def _interaction(evidence: Evidence, findings: Findings) -> tuple[str, str, str]:
    drawn = interaction_pairs(evidence.design, findings)
    text = (
        "Mean error by the levels of two factors. Where lines are not parallel, the effect of one factor depends "
        f"on the other. {_marks_text(evidence, findings)}"
    )
    items = []
    for pair in drawn:
        of_pair = [each for each in findings.interactions if set(each.factors) == set(pair) and each.difference.mean is not None]
        if of_pair:
            most = max(of_pair, key=lambda each: abs(each.difference.mean or 0))
            there = " and ".join(f"{name}={level}" for name, level in zip(most.factors, most.levels, strict=True))
            items.append(f"{' × '.join(pair)}: {signed_with_interval(most.difference, NO_PAIRS)} at {there}")
    named = "; ".join(" × ".join(pair) for pair in drawn)
    alt = (
        f"Largest interactions, in points beyond the sum of both effects: {_list_or_ends(items)}."
        if items
        else f"Mean error by {named}."
    )
    return "Interactions", text, alt


def _cost(evidence: Evidence, findings: Findings) -> tuple[str, str, str]:
    style_map = make_style_map(evidence)
    items = [
        f"{style_map.name(point.cell)} ({scaled(point.cost)} multiply-adds, {percent(point.value)})"
        for point in pareto_points(multiply_add_points(findings))
    ]
    text = (
        f"{_sentence(findings.metric.label)} against the cost of a network. The step line is the Pareto "
        "front: the cells that no "
        "other cell beats in both cost and error. "
        f"{_marks_text(evidence, findings)}{_gray_text(evidence)}"
    )
    return (
        "Error against cost",
        text,
        f"Cells on the Pareto front of multiply-adds and error, by rising cost: {_list_or_ends(items)}.",
    )


def _budget(evidence: Evidence, findings: Findings) -> tuple[str, str, str]:
    bands = len(make_style_map(evidence).styles) <= MAX_LINES_WITH_BANDS
    text = (
        f"{findings.metric.label} against the cost of training so far: epochs, multiply-adds (three forward "
        "passes per image and epoch) and time. "
        f"{_lines_text(evidence, findings, bands=bands)}{_gray_text(evidence)}"
    )
    seconds = [cell.seconds for cell in findings.cells if cell.seconds is not None]
    took = f" Mean training times of cells range from {min(seconds):.3g} to {max(seconds):.3g} seconds." if seconds else ""
    return "Error against the cost of training", _sentence(text), f"{_errors_text(findings, evidence)}{took}"


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


def _search_history(evidence: Evidence, findings: Findings) -> tuple[str, str, str]:
    text = (
        "Validation error of each trial in its last epoch, by trial number. Lines show the lowest error of the trials completed so "
        f"far. Hollow marks are trials that were stopped early, with their error at that time. {SCORES_ARE_NOT_RESULTS}"
    )
    return "Trials of the search", text, f"{_outcomes_text(findings)} {_chosen_text(findings)}"


def _search_sensitivity(evidence: Evidence, findings: Findings) -> tuple[str, str, str]:
    field = main_field(search_design(evidence), findings) or ""
    text = (
        f"Validation error by {field}; the other searched fields vary too. Lines join the medians of groups of neighboring "
        f"completed trials, for cells with at least {MIN_TRIALS_FOR_MEDIANS} of them. Crosses at the top are trials that diverged. "
        f"{SCORES_ARE_NOT_RESULTS}"
    )
    return f"Sensitivity to {field}", text, f"{_outcomes_text(findings)} {_chosen_text(findings, field)}"


def _search_slices(evidence: Evidence, findings: Findings) -> tuple[str, str, str]:
    text = (
        "Validation error by each searched field. A trial appears in the panel of every field that it has, at the top if it "
        "diverged. Dotted lines mark defaults. Fields vary together, so a trend in one panel may be the effect of another field. "
        f"{SCORES_ARE_NOT_RESULTS}"
    )
    return (
        "Validation error by field",
        text,
        f"{counted(len(search_design(evidence).fields), 'field')}. {_outcomes_text(findings)} {_chosen_text(findings)}",
    )


def _search_importances(evidence: Evidence, findings: Findings) -> tuple[str, str, str]:
    assert findings.search
    text = (
        "Importance of each field for the validation error (PED-ANOVA): how much the distribution of the best completed trials "
        "differs from that of all completed trials. Bars are shares of the total, lines 95 % intervals over resampled trials. They "
        "hold for this search only: a field with a narrow searched range has a low importance."
    )
    items = [
        _with_cell(cell.label, f"{each.field} {100 * each.share:.0f} % [{100 * each.low:.0f}, {100 * each.high:.0f}]")
        for cell in findings.search.cells
        for each in cell.importances[:1]
    ]
    return "Importance of fields", text, f"Largest share of each cell: {_list_or_ends(items)}."


def _search_parallel(evidence: Evidence, findings: Findings) -> tuple[str, str, str]:
    text = (
        "Each completed trial is a line through its values to its validation error; the best trials of each cell are blue and on "
        f"top. A line passes below the axis of a field that its trial does not have. {SCORES_ARE_NOT_RESULTS}"
    )
    return "All configurations", text, f"{_outcomes_text(findings)} {_chosen_text(findings)}"


def _search_pareto(evidence: Evidence, findings: Findings) -> tuple[str, str, str]:
    search = search_design(evidence)
    what = "multiply-adds" if search.objective == "flops" else "training time"
    text = (
        f"Validation error against {what} of each completed trial. Lines are the Pareto front of each cell: the trials that no "
        "other trial beats in both. Stars are the configurations that the study trains again and tests, numbered along the front. "
        f"{SCORES_ARE_NOT_RESULTS}"
    )
    return f"Error against {what}, in the search", text, f"{_outcomes_text(findings)} {_chosen_text(findings)}"


CAPTIONS: dict[str, Callable[[Evidence, Findings], tuple[str, str, str]]] = {
    "curves": _curves,
    "depth": _depth,
    "differences": _differences,
    "interaction": _interaction,
    "cost": _cost,
    "budget": _budget,
    "responses": _responses,
    "gradients": _gradients,
    "search-history": _search_history,
    "search-sensitivity": _search_sensitivity,
    "search-slices": _search_slices,
    "search-importances": _search_importances,
    "search-parallel": _search_parallel,
    "search-pareto": _search_pareto,
}


def _outcomes_text(findings: Findings) -> str:
    assert findings.search
    items = [
        _with_cell(cell.label, ", ".join(f"{count} {outcome}" for outcome, count in cell.outcomes.items()))
        for cell in findings.search.cells
    ]
    return f"Outcomes of trials: {_list_or_ends(items)}."


def _chosen_text(findings: Findings, field: str = "") -> str:
    """Return what the search chose, with its validation error and the value of one field."""
    assert findings.search
    items = []
    for cell in findings.search.cells:
        for each in cell.chosen:
            value = f" ({field} {format_value(each.values[field])})" if field in each.values else ""
            items.append(_with_cell(cell.label, f"{each.level} trial {each.number}{value}, validation error {percent(each.score)}"))
    return f"Chosen configurations: {_list_or_ends(items)}." if items else "The search has not chosen yet."


def _with_cell(cell: str, text: str) -> str:
    return f"{cell}: {text}" if cell else text


def _seeds_text(evidence: Evidence, findings: Findings) -> str:
    planned = max(cell.planned for cell in findings.cells)
    if planned == 1:
        return "values of one seed"
    complete = all(cell.value.n == planned for cell in findings.cells)
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
    kinds = "baselines and the cells with the lowest errors" if evidence.design.baseline else "those with the lowest errors"
    shown = f"{len(style_map.styles)} of {len(evidence.design.cells)} cells"
    return f" {shown} have their own styles, {kinds}; the others are gray."


def _errors_text(findings: Findings, evidence: Evidence) -> str:
    cells = sorted((cell for cell in findings.cells if cell.value.n), key=lambda cell: cell.value.mean or 0)
    items = [f"{short_name(evidence.design, cell.levels) or cell.label} {percent(cell.value.mean)}" for cell in cells]
    return f"Mean {findings.metric.label} in the final epoch: {_list_or_ends(items)}."


def _medians_text(evidence: Evidence, probe: str, quantity: str) -> str:
    rows = evidence.probes[(evidence.probes["probe"] == probe) & (evidence.probes["quantity"] == quantity)]
    epoch = rows["epoch"].max()
    medians = rows[rows["epoch"] == epoch].groupby("cell")["value"].median().sort_values()
    return (
        f"Median over layers and seeds after epoch {epoch}: "
        f"{_list_or_ends([f'{cell} {value:.3g}' for cell, value in medians.items()])}."
    )


def _list_or_ends(items: Sequence[str]) -> str:
    """Return all items, or the first two and the last of many."""
    if len(items) <= MAX_NAMED:
        return "; ".join(items)
    return f"{items[0]}; {items[1]}; … {items[-1]} ({len(items)} in all)"


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:]
