"""Captions of the figures of a search: title, how to read the figure, and its main numbers for an alternative text."""

from collections.abc import Callable, Mapping

from ablations.engine.analysis.evidence import Evidence
from ablations.engine.analysis.findings import Findings
from ablations.engine.analysis.number_format import ValueFormat
from ablations.engine.analysis.trial_table import format_value, search_design
from ablations.engine.analysis.verdicts.sentences import sentence
from ablations.engine.report.figures.phrases import list_or_ends, short
from ablations.engine.report.figures.search_fields import MIN_TRIALS_FOR_MEDIANS, main_field
from resnet_core.fields import counted


def _search_history(evidence: Evidence, findings: Findings) -> tuple[str, str, str]:
    metric, quantity = search_design(evidence).metric, short(evidence)
    text = (
        f"{sentence(metric.label)} of each trial in its last epoch, by trial number. Lines show the {metric.best} {quantity} of "
        f"the trials completed so far. Hollow marks are trials that were stopped early, with their {quantity} at that time. "
        f"{_no_results_text(evidence)}"
    )
    return "Trials of the search", text, f"{_outcomes_text(findings)} {_chosen_text(findings)}"


def _search_sensitivity(evidence: Evidence, findings: Findings) -> tuple[str, str, str]:
    field = main_field(search_design(evidence), findings) or ""
    text = (
        f"{sentence(_scored(evidence))} by {field}; the other searched fields vary too. Lines join the medians of groups of "
        f"neighboring completed trials, for cells with at least {MIN_TRIALS_FOR_MEDIANS} of them. Crosses at the top are trials "
        "that diverged. "
        f"{_no_results_text(evidence)}"
    )
    return f"Sensitivity to {field}", text, f"{_outcomes_text(findings)} {_chosen_text(findings, field)}"


def _search_slices(evidence: Evidence, findings: Findings) -> tuple[str, str, str]:
    text = (
        f"{sentence(_scored(evidence))} by each searched field. A trial appears in the panel of every field that it has, at the "
        "top if it diverged. Dotted lines mark defaults. Fields vary together, so a trend in one panel may be the effect of "
        "another field. "
        f"{_no_results_text(evidence)}"
    )
    return (
        f"{sentence(_scored(evidence))} by field",
        text,
        f"{counted(len(search_design(evidence).fields), 'field')}. {_outcomes_text(findings)} {_chosen_text(findings)}",
    )


def _search_importances(evidence: Evidence, findings: Findings) -> tuple[str, str, str]:
    assert findings.search
    text = (
        f"Importance of each field for the {_scored(evidence)} (PED-ANOVA): how much the distribution of the best completed trials "
        "differs from that of all completed trials. Bars are shares of the total, lines their ranges over resamples of the trials. "
        "A dotted tick is the level that an irrelevant field exceeds in 5 % of searches; pale bars are not above it, so chance "
        "alone may give them. Shares hold for this search only: a field with a narrow searched range has a low importance."
    )
    items = [
        _with_cell(
            cell.label,
            f"{each.field} {100 * each.share:.0f} % (range over resamples {100 * each.low:.0f} to {100 * each.high:.0f} %, "
            f"{'above' if each.above_chance else 'not above'} chance)",
        )
        for cell in findings.search.cells
        for each in cell.importances[:1]
    ]
    return "Importance of fields", text, f"Largest share of each cell: {list_or_ends(items)}."


def _search_parallel(evidence: Evidence, findings: Findings) -> tuple[str, str, str]:
    text = (
        f"Each completed trial is a line through its values to its {_scored(evidence)}; the best trials of each cell are blue and "
        f"on top. A line passes below the axis of a field that its trial does not have. {_no_results_text(evidence)}"
    )
    return "All configurations", text, f"{_outcomes_text(findings)} {_chosen_text(findings)}"


def _search_pareto(evidence: Evidence, findings: Findings) -> tuple[str, str, str]:
    search = search_design(evidence)
    what = "multiply-adds" if search.objective == "flops" else "training time"
    text = (
        f"{sentence(search.metric.label)} against {what} of each completed trial. Lines are the Pareto front of each cell: the "
        "trials that no other trial beats in both; a single such trial has no line. Stars are the configurations "
        "that the study trains again and tests, numbered along the front. "
        f"{_no_results_text(evidence)}"
    )
    return (
        f"{sentence(short(evidence))} against {what}, in the search",
        text,
        f"{_outcomes_text(findings)} {_chosen_text(findings)}",
    )


def _outcomes_text(findings: Findings) -> str:
    assert findings.search
    items = [
        _with_cell(cell.label, ", ".join(f"{count} {outcome}" for outcome, count in cell.outcomes.items()))
        for cell in findings.search.cells
    ]
    return f"Outcomes of trials: {list_or_ends(items)}."


def _chosen_text(findings: Findings, field: str = "") -> str:
    """Return what the search chose, with its score and the value of one field."""
    assert findings.search
    items, metric, formats = [], findings.search.metric, ValueFormat.of(findings.search)
    for cell in findings.search.cells:
        for each in cell.chosen:
            value = f" ({field} {format_value(each.values[field])})" if field in each.values else ""
            items.append(
                _with_cell(cell.label, f"{each.level} trial {each.number}{value}, {metric.label} {formats.with_unit(each.score)}")
            )
    return f"Chosen configurations: {list_or_ends(items)}." if items else "The search has not chosen yet."


def _with_cell(cell: str, text: str) -> str:
    return f"{cell}: {text}" if cell else text


def _scored(evidence: Evidence) -> str:
    """Return the metric of the search in words."""
    return search_design(evidence).metric.label


def _no_results_text(evidence: Evidence) -> str:
    values = f"{_scored(evidence)} values" if evidence.design.task else f"{_scored(evidence)}s"
    return f"These {values} chose the configuration, so they are no results."


SEARCH_CAPTIONS: Mapping[str, Callable[[Evidence, Findings], tuple[str, str, str]]] = {
    "search-history": _search_history,
    "search-sensitivity": _search_sensitivity,
    "search-slices": _search_slices,
    "search-importances": _search_importances,
    "search-parallel": _search_parallel,
    "search-pareto": _search_pareto,
}
"""Functions that return title, text and alternative text, by name of the figure."""
