"""What a figure of a study shows, in words: how to read it, and what is to be seen for those who do not see it."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from ablations.engine.analysis.evidence import Evidence
from ablations.engine.analysis.findings import CellFinding, Findings
from ablations.engine.analysis.trial_table import format_value, search_design
from ablations.engine.report.figures.curves import lr_drop_epochs
from ablations.engine.report.figures.forest import baseline_levels, difference_text, displayed_comparisons
from ablations.engine.report.figures.levels import MAX_STYLED_LINES, interaction_pairs, numeric_factor
from ablations.engine.report.figures.pareto import multiply_add_points, pareto_points
from ablations.engine.report.figures.search_fields import MIN_TRIALS_FOR_MEDIANS, main_field
from ablations.engine.report.figures.styles import MAX_LINES_WITH_BANDS, make_style_map, short_name

SCORES_ARE_NOT_RESULTS = "These errors chose the configuration: they are no results."
MAX_NAMED = 6
"""Cells whose numbers are said one by one; of more, the least and the largest."""


class Caption(NamedTuple):
    """The words that go with a figure."""

    title: str
    text: str
    """How to read it."""
    alt: str
    """What is to be seen, with the main numbers."""


def caption(name: str, evidence: Evidence, findings: Findings) -> Caption:
    """The words for a figure of `figures.all_figures`, by its name."""
    title, text, alt = CAPTIONS[name](evidence, findings)
    return Caption(title, text, f"{title}. {alt}")


def _curves(evidence: Evidence, findings: Findings) -> tuple[str, str, str]:
    style_map = make_style_map(evidence)
    on = findings.evaluation_split
    text = (
        f"{on} error after each epoch."
        if style_map.crowded
        else f"Error after each epoch: dashed in training, solid on {on} images."
    )
    alt = f"Lines over {evidence.curves['epoch'].max()} epochs. {_errors_text(findings, evidence)}"
    divided = " At dotted lines the learning rate is divided." if lr_drop_epochs(evidence.design) else ""
    over = _lines_text(evidence, findings, bands=not style_map.crowded)
    return "Learning curves", f"{_sentence(text)} {over}{divided}{_gray_text(evidence)}", alt


def _depth(evidence: Evidence, findings: Findings) -> tuple[str, str, str]:
    factor = numeric_factor(evidence.design) or ""
    cells = sorted((cell for cell in findings.cells if cell.error.n), key=lambda cell: float(cell.levels[factor]))
    lines: dict[str, list[CellFinding]] = {}
    for cell in cells:
        lines.setdefault(short_name(evidence.design, cell.levels, factor), []).append(cell)
    said = [
        f"{name + ': ' if name else ''}{cells[0].error.mean:.2f} % at {cells[0].levels[factor]}, "
        f"{cells[-1].error.mean:.2f} % at {cells[-1].levels[factor]}"
        for name, cells in lines.items()
    ]
    on = f"dashed in training, solid on {findings.evaluation_split} images"
    text = f"Error in the final epoch: {on}. {_marks_text(evidence, findings)}"
    more = (
        f" {MAX_STYLED_LINES} of {len(lines)} lines, those with the lowest errors, are told apart."
        if len(lines) > MAX_STYLED_LINES
        else ""
    )
    return f"Error by {factor}", text + more, f"Mean {findings.evaluation_split} error, {_list_or_ends(said)}."


def _differences(evidence: Evidence, findings: Findings) -> tuple[str, str, str]:
    shown = displayed_comparisons(findings)
    left_out = len(findings.comparisons) - len(shown)
    by_size = sorted(findings.comparisons, key=lambda each: -abs(each.difference.mean or 0))
    certain = sum(each.difference.significant for each in findings.comparisons)
    text = (
        f"Difference in {findings.evaluation_split} error to {baseline_levels(findings)}, seed by seed, with 95 % intervals; "
        "left is better. "
        "Filled marks differ from zero with all comparisons considered, hollow ones may not."
    )
    more = f" The {len(shown)} largest differences; {left_out} smaller ones are in the table." if left_out else ""
    said = [f"{each.cell} {difference_text(each.difference)}" for each in by_size]
    alt = f"{certain} of {len(findings.comparisons)} differences are certain. In points, {_list_or_ends(said)}."
    return "Differences to the baseline", text + more, alt


def _interaction(evidence: Evidence, findings: Findings) -> tuple[str, str, str]:
    drawn = interaction_pairs(evidence.design, findings)
    text = f"Where lines are not parallel, the effect of one factor depends on the other. {_marks_text(evidence, findings)}"
    said = []
    for pair in drawn:
        of_pair = [each for each in findings.interactions if set(each.factors) == set(pair) and each.difference.mean is not None]
        if of_pair:
            most = max(of_pair, key=lambda each: abs(each.difference.mean or 0))
            there = " and ".join(f"{name}={level}" for name, level in zip(most.factors, most.levels, strict=True))
            said.append(f"{' × '.join(pair)}: {difference_text(most.difference)} at {there}")
    named = "; ".join(" × ".join(pair) for pair in drawn)
    alt = f"In points beyond the sum of both effects, {_list_or_ends(said)}." if said else f"Mean error by {named}."
    return "Interactions", text, alt


def _cost(evidence: Evidence, findings: Findings) -> tuple[str, str, str]:
    style_map = make_style_map(evidence)
    said = [
        f"{style_map.name(point.cell)} ({point.cost:.3g} multiply-adds, {point.error:.2f} %)"
        for point in pareto_points(multiply_add_points(findings))
    ]
    text = (
        "Error against what a network costs. The line joins the cells that no other one beats in both. "
        f"{_marks_text(evidence, findings)}{_gray_text(evidence)}"
    )
    return "Error against cost", text, f"Not beaten by another cell, by rising cost: {_list_or_ends(said)}."


def _budget(evidence: Evidence, findings: Findings) -> tuple[str, str, str]:
    bands = len(make_style_map(evidence).styles) <= MAX_LINES_WITH_BANDS
    text = (
        f"{findings.evaluation_split} error against epochs, multiply-adds (three forward passes for every image of every epoch) "
        f"and time. {_lines_text(evidence, findings, bands=bands)}{_gray_text(evidence)}"
    )
    seconds = [cell.seconds for cell in findings.cells if cell.seconds is not None]
    took = f" A run took from {min(seconds):.3g} to {max(seconds):.3g} seconds." if seconds else ""
    return "What training takes", _sentence(text), f"{_errors_text(findings, evidence)}{took}"


def _responses(evidence: Evidence, findings: Findings) -> tuple[str, str, str]:
    text = (
        f"Standard deviation of each layer's output, by layer and by size. {_lines_text(evidence, findings)}{_gray_text(evidence)}"
    )
    return "Responses of layers", text, _medians_text(evidence, "responses", "std")


def _gradients(evidence: Evidence, findings: Findings) -> tuple[str, str, str]:
    text = f"Norm of each layer's gradient, by layer and by size. {_lines_text(evidence, findings)}{_gray_text(evidence)}"
    return "Gradients of layers", text, _medians_text(evidence, "gradients", "gradient_norm")


def _search_history(evidence: Evidence, findings: Findings) -> tuple[str, str, str]:
    text = (
        "Validation error of each trial in its last epoch, by number; lines are the best of those that completed so far. Hollow "
        f"marks were ended early, with the error they had then. {SCORES_ARE_NOT_RESULTS}"
    )
    return "What the search tried", text, f"{_outcomes_text(findings)} {_chosen_text(findings)}"


def _search_sensitivity(evidence: Evidence, findings: Findings) -> tuple[str, str, str]:
    field = main_field(search_design(evidence), findings) or ""
    text = (
        f"Validation error by {field}, other fields as the search had them. Lines join the medians of neighboring completed "
        f"trials, in as many groups as each has trials, from {MIN_TRIALS_FOR_MEDIANS} trials on. "
        f"Marks at the top diverged. {SCORES_ARE_NOT_RESULTS}"
    )
    return f"Sensitivity to {field}", text, f"{_outcomes_text(findings)} {_chosen_text(findings, field)}"


def _search_slices(evidence: Evidence, findings: Findings) -> tuple[str, str, str]:
    text = (
        "Validation error by each field that was searched: a trial is in every panel whose field it has, at the top if it "
        f"diverged. Dotted: the default. What one panel shows may be another field's doing. {SCORES_ARE_NOT_RESULTS}"
    )
    return (
        "Fields one by one",
        text,
        f"{len(search_design(evidence).fields)} fields. {_outcomes_text(findings)} {_chosen_text(findings)}",
    )


def _search_importances(evidence: Evidence, findings: Findings) -> tuple[str, str, str]:
    assert findings.search
    text = (
        "What moved the validation error within the space searched (PED-ANOVA): how differently the best completed trials and all "
        "of them are spread along a field. Bars are shares of the sum, lines 95 % intervals over resampled trials. They hold for "
        "this search only: a field that was searched in a narrow range moves little."
    )
    said = [
        _with_cell(cell.label, f"{each.field} {100 * each.share:.0f} % [{100 * each.low:.0f}, {100 * each.high:.0f}]")
        for cell in findings.search.cells
        for each in cell.importances[:1]
    ]
    return "Which fields moved the error", text, f"The largest share is {_list_or_ends(said)}."


def _search_parallel(evidence: Evidence, findings: Findings) -> tuple[str, str, str]:
    text = (
        "Each completed trial is a line from value to value to its validation error; the best of each cell are blue and on top. "
        f"A line that passes below an axis has no such field. {SCORES_ARE_NOT_RESULTS}"
    )
    return "All configurations", text, f"{_outcomes_text(findings)} {_chosen_text(findings)}"


def _search_pareto(evidence: Evidence, findings: Findings) -> tuple[str, str, str]:
    search = search_design(evidence)
    what = "multiply-adds" if search.objective == "flops" else "training time"
    text = (
        f"Validation error against {what} of each completed trial. Lines join those that no other of their cell beats in both; "
        f"stars are what is trained anew and tested, by number of the front. {SCORES_ARE_NOT_RESULTS}"
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
    said = [
        _with_cell(cell.label, ", ".join(f"{count} {outcome}" for outcome, count in cell.outcomes.items()))
        for cell in findings.search.cells
    ]
    return f"Trials: {_list_or_ends(said)}."


def _chosen_text(findings: Findings, field: str = "") -> str:
    """What the search chose, with its score and one value."""
    assert findings.search
    said = []
    for cell in findings.search.cells:
        for each in cell.chosen:
            value = f" ({field} {format_value(each.values[field])})" if field in each.values else ""
            said.append(_with_cell(cell.label, f"{each.level} trial {each.number}{value}, validation error {each.score:.2f} %"))
    return f"Chosen: {_list_or_ends(said)}." if said else "Nothing is chosen yet."


def _with_cell(cell: str, text: str) -> str:
    return f"{cell}: {text}" if cell else text


def _seeds_text(evidence: Evidence, findings: Findings) -> str:
    planned = max(cell.planned for cell in findings.cells)
    if planned == 1:
        return "of one seed"
    complete = all(cell.error.n == planned for cell in findings.cells)
    return f"means over {planned} seeds" if complete else f"means over the seeds that completed, of {planned}"


def _lines_text(evidence: Evidence, findings: Findings, *, bands: bool = True) -> str:
    seeds = _seeds_text(evidence, findings)
    return f"Lines are {seeds}{', bands go from the lowest to the highest seed' if bands and 'means' in seeds else ''}."


def _marks_text(evidence: Evidence, findings: Findings) -> str:
    seeds = _seeds_text(evidence, findings)
    return f"Marks are {seeds}{', bars 95 % intervals' if 'means' in seeds else ''}."


def _gray_text(evidence: Evidence) -> str:
    style_map = make_style_map(evidence)
    if not style_map.others:
        return ""
    baselines = "baselines and those" if evidence.design.baseline else "those"
    of = f"{len(style_map.styles)} of {len(evidence.design.cells)} cells"
    return f" {of} are told apart, {baselines} with the lowest errors; others are grey."


def _errors_text(findings: Findings, evidence: Evidence) -> str:
    cells = sorted((cell for cell in findings.cells if cell.error.n), key=lambda cell: cell.error.mean or 0)
    said = [f"{short_name(evidence.design, cell.levels) or cell.label} {cell.error.mean:.2f} %" for cell in cells]
    return f"In the final epoch, mean {findings.evaluation_split} error: {_list_or_ends(said)}."


def _medians_text(evidence: Evidence, probe: str, quantity: str) -> str:
    rows = evidence.probes[(evidence.probes["probe"] == probe) & (evidence.probes["quantity"] == quantity)]
    epoch = rows["epoch"].max()
    medians = rows[rows["epoch"] == epoch].groupby("cell")["value"].median().sort_values()
    return f"Median over layers after epoch {epoch}: {_list_or_ends([f'{cell} {value:.3g}' for cell, value in medians.items()])}."


def _list_or_ends(said: Sequence[str]) -> str:
    """All, or the ends of what is in order."""
    if len(said) <= MAX_NAMED:
        return "; ".join(said)
    return f"{said[0]}; {said[1]}; … {said[-1]} ({len(said)} in all)"


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:]
