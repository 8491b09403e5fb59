"""What a figure of a study shows, in words: how to read it, and what is to be seen for those who do not see it."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from ablations.engine.analysis.evidence import Evidence
from ablations.engine.analysis.findings import CellFinding, Findings
from ablations.engine.analysis.trial_table import brief, search_of
from ablations.engine.report.figures.curves import divisions
from ablations.engine.report.figures.forest import against, largest, signed
from ablations.engine.report.figures.levels import MAX_LINES, numeric_factor, pairs
from ablations.engine.report.figures.pareto import by_multiply_adds, pareto_points
from ablations.engine.report.figures.search_fields import MIN_GROUPED, main_field
from ablations.engine.report.figures.styles import MAX_BANDS, short_name, style_map_of

SCORES = "These errors chose the configuration: they are no results."
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
    title, text, alt = WORDS[name](evidence, findings)
    return Caption(title, text, f"{title}. {alt}")


def _curves(evidence: Evidence, findings: Findings) -> tuple[str, str, str]:
    scheme = style_map_of(evidence)
    on = findings.evaluation_split
    text = (
        f"{on} error after each epoch." if scheme.crowded else f"Error after each epoch: dashed in training, solid on {on} images."
    )
    alt = f"Lines over {evidence.curves['epoch'].max()} epochs. {_errors(findings, evidence)}"
    divided = " At dotted lines the learning rate is divided." if divisions(evidence.design) else ""
    over = _over(evidence, findings, bands=not scheme.crowded)
    return "Learning curves", f"{_sentence(text)} {over}{divided}{_grey(evidence)}", alt


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
    text = f"Error in the final epoch: dashed in training, solid on {findings.evaluation_split} images. {_bars(evidence, findings)}"
    more = f" {MAX_LINES} of {len(lines)} lines, those with the lowest errors, are told apart." if len(lines) > MAX_LINES else ""
    return f"Error by {factor}", text + more, f"Mean {findings.evaluation_split} error, {_listed(said)}."


def _differences(evidence: Evidence, findings: Findings) -> tuple[str, str, str]:
    shown = largest(findings)
    left_out = len(findings.comparisons) - len(shown)
    by_size = sorted(findings.comparisons, key=lambda each: -abs(each.difference.mean or 0))
    certain = sum(each.difference.certain for each in findings.comparisons)
    text = (
        f"Difference in {findings.evaluation_split} error to {against(findings)}, seed by seed, with 95 % intervals; left is "
        "better. Filled marks differ from zero with all comparisons considered, hollow ones may not."
    )
    more = f" The {len(shown)} largest differences; {left_out} smaller ones are in the table." if left_out else ""
    said = [f"{each.cell} {signed(each.difference)}" for each in by_size]
    alt = f"{certain} of {len(findings.comparisons)} differences are certain. In points, {_listed(said)}."
    return "Differences to the baseline", text + more, alt


def _interaction(evidence: Evidence, findings: Findings) -> tuple[str, str, str]:
    drawn = pairs(evidence.design, findings)
    text = f"Where lines are not parallel, the effect of one factor depends on the other. {_bars(evidence, findings)}"
    said = []
    for pair in drawn:
        of_pair = [each for each in findings.interactions if set(each.factors) == set(pair) and each.difference.mean is not None]
        if of_pair:
            most = max(of_pair, key=lambda each: abs(each.difference.mean or 0))
            there = " and ".join(f"{name}={level}" for name, level in zip(most.factors, most.levels, strict=True))
            said.append(f"{' × '.join(pair)}: {signed(most.difference)} at {there}")
    named = "; ".join(" × ".join(pair) for pair in drawn)
    alt = f"In points beyond the sum of both effects, {_listed(said)}." if said else f"Mean error by {named}."
    return "Interactions", text, alt


def _cost(evidence: Evidence, findings: Findings) -> tuple[str, str, str]:
    scheme = style_map_of(evidence)
    said = [
        f"{scheme.name(point.cell)} ({point.cost:.3g} multiply-adds, {point.error:.2f} %)"
        for point in pareto_points(by_multiply_adds(findings))
    ]
    text = (
        "Error against what a network costs. The line joins the cells that no other one beats in both. "
        f"{_bars(evidence, findings)}{_grey(evidence)}"
    )
    return "Error against cost", text, f"Not beaten by another cell, by rising cost: {_listed(said)}."


def _budget(evidence: Evidence, findings: Findings) -> tuple[str, str, str]:
    bands = len(style_map_of(evidence).looks) <= MAX_BANDS
    text = (
        f"{findings.evaluation_split} error against epochs, multiply-adds (three forward passes for every image of every epoch) "
        f"and time. {_over(evidence, findings, bands=bands)}{_grey(evidence)}"
    )
    seconds = [cell.seconds for cell in findings.cells if cell.seconds is not None]
    took = f" A run took from {min(seconds):.3g} to {max(seconds):.3g} seconds." if seconds else ""
    return "What training takes", _sentence(text), f"{_errors(findings, evidence)}{took}"


def _responses(evidence: Evidence, findings: Findings) -> tuple[str, str, str]:
    text = f"Standard deviation of each layer's output, by layer and by size. {_over(evidence, findings)}{_grey(evidence)}"
    return "Responses of layers", text, _medians(evidence, "responses", "std")


def _gradients(evidence: Evidence, findings: Findings) -> tuple[str, str, str]:
    text = f"Norm of each layer's gradient, by layer and by size. {_over(evidence, findings)}{_grey(evidence)}"
    return "Gradients of layers", text, _medians(evidence, "gradients", "gradient_norm")


def _search_history(evidence: Evidence, findings: Findings) -> tuple[str, str, str]:
    text = (
        "Validation error of each trial in its last epoch, by number; lines are the best of those that completed so far. Hollow "
        f"marks were ended early, with the error they had then. {SCORES}"
    )
    return "What the search tried", text, f"{_outcomes(findings)} {_chosen(findings)}"


def _search_sensitivity(evidence: Evidence, findings: Findings) -> tuple[str, str, str]:
    field = main_field(search_of(evidence), findings) or ""
    text = (
        f"Validation error by {field}, other fields as the search had them. Lines join the medians of neighbouring completed "
        f"trials, in as many groups as each has trials, from {MIN_GROUPED} trials on. Marks at the top diverged. {SCORES}"
    )
    return f"Sensitivity to {field}", text, f"{_outcomes(findings)} {_chosen(findings, field)}"


def _search_slices(evidence: Evidence, findings: Findings) -> tuple[str, str, str]:
    text = (
        "Validation error by each field that was searched: a trial is in every panel whose field it has, at the top if it "
        f"diverged. Dotted: the default. What one panel shows may be another field's doing. {SCORES}"
    )
    return "Fields one by one", text, f"{len(search_of(evidence).fields)} fields. {_outcomes(findings)} {_chosen(findings)}"


def _search_importances(evidence: Evidence, findings: Findings) -> tuple[str, str, str]:
    assert findings.search
    text = (
        "What moved the validation error within the space searched (PED-ANOVA): how differently the best completed trials and all "
        "of them are spread along a field. Bars are shares of the sum, lines 95 % intervals over resampled trials. They hold for "
        "this search only: a field that was searched in a narrow range moves little."
    )
    said = [
        _of(cell.label, f"{each.field} {100 * each.share:.0f} % [{100 * each.low:.0f}, {100 * each.high:.0f}]")
        for cell in findings.search.cells
        for each in cell.importances[:1]
    ]
    return "Which fields moved the error", text, f"The largest share is {_listed(said)}."


def _search_parallel(evidence: Evidence, findings: Findings) -> tuple[str, str, str]:
    text = (
        "Each completed trial is a line from value to value to its validation error; the best of each cell are blue and on top. "
        f"A line that passes below an axis has no such field. {SCORES}"
    )
    return "All configurations", text, f"{_outcomes(findings)} {_chosen(findings)}"


def _search_pareto(evidence: Evidence, findings: Findings) -> tuple[str, str, str]:
    search = search_of(evidence)
    what = "multiply-adds" if search.against == "flops" else "training time"
    text = (
        f"Validation error against {what} of each completed trial. Lines join those that no other of their cell beats in both; "
        f"stars are what is trained anew and tested, by number of the front. {SCORES}"
    )
    return f"Error against {what}, in the search", text, f"{_outcomes(findings)} {_chosen(findings)}"


WORDS: dict[str, Callable[[Evidence, Findings], tuple[str, str, str]]] = {
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


def _outcomes(findings: Findings) -> str:
    assert findings.search
    said = [
        _of(cell.label, ", ".join(f"{count} {outcome}" for outcome, count in cell.outcomes.items()))
        for cell in findings.search.cells
    ]
    return f"Trials: {_listed(said)}."


def _chosen(findings: Findings, field: str = "") -> str:
    """What the search chose, with its score and one value."""
    assert findings.search
    said = []
    for cell in findings.search.cells:
        for each in cell.chosen:
            value = f" ({field} {brief(each.values[field])})" if field in each.values else ""
            said.append(_of(cell.label, f"{each.level} trial {each.number}{value}, validation error {each.score:.2f} %"))
    return f"Chosen: {_listed(said)}." if said else "Nothing is chosen yet."


def _of(cell: str, text: str) -> str:
    return f"{cell}: {text}" if cell else text


def _seeds(evidence: Evidence, findings: Findings) -> str:
    planned = max(cell.planned for cell in findings.cells)
    if planned == 1:
        return "of one seed"
    complete = all(cell.error.n == planned for cell in findings.cells)
    return f"means over {planned} seeds" if complete else f"means over the seeds that completed, of {planned}"


def _over(evidence: Evidence, findings: Findings, *, bands: bool = True) -> str:
    seeds = _seeds(evidence, findings)
    return f"Lines are {seeds}{', bands go from the lowest to the highest seed' if bands and 'means' in seeds else ''}."


def _bars(evidence: Evidence, findings: Findings) -> str:
    seeds = _seeds(evidence, findings)
    return f"Marks are {seeds}{', bars 95 % intervals' if 'means' in seeds else ''}."


def _grey(evidence: Evidence) -> str:
    scheme = style_map_of(evidence)
    if not scheme.others:
        return ""
    baselines = "baselines and those" if evidence.design.baseline else "those"
    of = f"{len(scheme.looks)} of {len(evidence.design.cells)} cells"
    return f" {of} are told apart, {baselines} with the lowest errors; others are grey."


def _errors(findings: Findings, evidence: Evidence) -> str:
    cells = sorted((cell for cell in findings.cells if cell.error.n), key=lambda cell: cell.error.mean or 0)
    said = [f"{short_name(evidence.design, cell.levels) or cell.label} {cell.error.mean:.2f} %" for cell in cells]
    return f"In the final epoch, mean {findings.evaluation_split} error: {_listed(said)}."


def _medians(evidence: Evidence, probe: str, quantity: str) -> str:
    rows = evidence.probes[(evidence.probes["probe"] == probe) & (evidence.probes["quantity"] == quantity)]
    epoch = rows["epoch"].max()
    medians = rows[rows["epoch"] == epoch].groupby("cell")["value"].median().sort_values()
    return f"Median over layers after epoch {epoch}: {_listed([f'{cell} {value:.3g}' for cell, value in medians.items()])}."


def _listed(said: Sequence[str]) -> str:
    """All, or the ends of what is in order."""
    if len(said) <= MAX_NAMED:
        return "; ".join(said)
    return f"{said[0]}; {said[1]}; … {said[-1]} ({len(said)} in all)"


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:]
