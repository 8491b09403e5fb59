"""The report of a study: one self-contained HTML page for screen, phone and print.

Templates escape all text, since names and messages may come from anyone; only figures are markup. The content security policy of
the page forbids loading anything.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from ablations.engine.analysis import number_format
from ablations.engine.analysis.evidence import CONDITION_COLUMNS, Evidence
from ablations.engine.analysis.findings import Findings
from ablations.engine.analysis.statistics.estimate import Estimate, FailureTest
from ablations.engine.analysis.statistics.inference import effect_size_interval
from ablations.engine.analysis.trial_table import format_configuration, format_range
from ablations.engine.analysis.verdicts.sentences import sentence
from ablations.engine.report import designs, tables
from ablations.engine.report.examples import template_values
from ablations.engine.report.page import rows
from ablations.engine.report.page.figures import ReportFigure, inline_figure
from ablations.engine.report.page.files import MlflowPlace, TextFile, links
from ablations.engine.study.design import Design
from ablations.engine.study.factors import format_level
from resnet_core.fields import counted, printable

if TYPE_CHECKING:
    from ablations.engine.report.paper_comparison import PaperRow

VERDICT_SYMBOLS = {
    "matters": "●",
    "may matter": "◐",
    "no effect within margin": "◎",
    "no difference shown": "○",
    "cannot be said": "?",
    "cannot be said yet": "?",
    "survives": "●",
    "reverses": "●",
    "changes": "◐",
    "no change shown": "○",
    "no order shown": "○",
}
"""Symbols of the verdicts on factors and on the ranking, so that a verdict does not depend on color alone."""
DESIGN_FIGURES = ("effect-sizes", "half-normal", "ladder", "effects", "seed-path")
"""Names of the figures that sections about the design have, in place of the section of figures."""
DESIGN_TEXTS: Mapping[str, Any] = {
    "fraction_sentence": designs.fraction_sentence,
    "alias_sentence": designs.alias_sentence,
    "cell_name": designs.cell_name,
    "contrast_name": designs.contrast_name,
    "path_sentence": designs.path_sentence,
    "higher_order": designs.HIGHER_ORDER,
}
"""Functions and texts of the sections about the design, by the name that templates use."""
FILES = ("table.csv", "table.md", "table.tex", "runs.csv", "curves.csv", "findings.json", "figures")
"""Files and folders one folder above the page."""
CONFIGURATION_SECTIONS = {"model": "network", "data": "data", "optim": "training"}
"""Headings of the sections of a run's configuration; other fields are about its execution."""


def render(
    evidence: Evidence,
    findings: Findings,
    figures: Sequence[ReportFigure],
    *,
    published: Sequence["PaperRow"],
    written_at: str,
    progress: str = "",
    place: MlflowPlace | None = None,
) -> str:
    """Return the report as HTML.

    Args:
        published: Published results of the same networks.
        written_at: Time of writing, as the page shows it.
        progress: The progress of a study that still runs, such as `12 of 24 runs`; empty for a finished study.
        place: Place of the page in MLflow; None for a page in a folder.
    """
    name = evidence.design.study
    made = (
        TextFile(name=f"{name}.csv", about="CSV with every digit", text=tables.csv(findings)),
        TextFile(name=f"{name}.md", about="Markdown", text=tables.markdown(findings)),
        TextFile(name=f"{name}.tex", about="LaTeX", text=tables.latex(findings)),
    )
    return (
        template_environment(
            number_format.ValueFormat.of(findings), score=number_format.ValueFormat.of(findings.search or findings).number
        )
        .get_template("report.html.j2")
        .render(
            design=evidence.design,
            findings=findings,
            rows=rows.result_rows(findings),
            figures=[figure for figure in figures if figure.name not in DESIGN_FIGURES],
            design_figures={figure.name: figure for figure in figures if figure.name in DESIGN_FIGURES},
            **DESIGN_TEXTS,
            published=published,
            written_at=written_at,
            progress=progress,
            shared=_shared_settings(evidence.design),
            varied=_varied_settings(evidence.design),
            conditions=_condition_counts(evidence),
            runs=rows.run_rows(evidence.runs.to_dict("records")),
            downloads=made,
            links=links(FILES, place),
            verdicts=VERDICT_SYMBOLS,
            defaults=_searched_defaults(evidence.design),
            metric=findings.metric,
            examples=f"{evidence.design.example}s",
            trained=tables.reports_training(findings),
            costs=rows.shown_costs(findings),
            cost_headings=[rows.COST_HEADINGS[name] for name in rows.shown_costs(findings)],
            limits=_limits_sentence(findings),
            adjusted=tables.adjustment(findings),
            **template_values(evidence, findings),
        )
    )


def template_environment(formats: number_format.ValueFormat, **more: Any) -> Environment:
    """Return an environment whose filters format values of a study.

    Args:
        formats: formats of the values.
        **more: further filters.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: printable(value) if type(value) is str else value,
    )
    functions = (number_format.number, number_format.scaled, number_format.p_value, tables.completed_of_planned, sentence)
    environment.filters |= {function.__name__: function for function in functions}
    environment.filters |= {
        "value": formats.number,
        "signed": formats.signed,
        "mean_std": formats.mean_std,
        "interval": formats.interval,
        "signed_interval": formats.signed_interval,
        **more,
        "effect_size": _effect_size,
        "failures": _failures,
        "correlation": _correlation,
        "inline_figure": inline_figure,
        "sort_key": sort_key,
        "multiline": _multiline,
        "counted": counted,
        "format_range": format_range,
        "format_configuration": format_configuration,
    }
    return environment


def _limits_sentence(findings: Findings) -> str:
    """Return a note on intervals that are cut off at what the metric can be; empty if none is."""
    metric = findings.metric
    values = [cell.value for cell in findings.cells]
    ends = metric.limits(each.mean for each in values if each.mean is not None)
    low = ends[0] in [each.low for each in values]
    high = ends[1] in [each.high for each in values]
    if not (low or high):
        return ""
    least, largest = (f"{end:g}{' ' * bool(metric.unit)}{metric.unit}" for end in ends)
    quantity = metric.quantity.replace("_", " ")
    if low and high:
        return f"Intervals are cut off at {least} and {largest}, between which every {quantity} lies."
    return (
        f"Intervals are cut off at {least}: no {quantity} is lower."
        if low
        else f"Intervals are cut off at {largest}: no {quantity} is higher."
    )


def _shared_settings(design: Design) -> dict[str, list[tuple[str, str]]]:
    """Return the fields in which all cells agree, by section."""
    first = design.cells[0].spec
    sections: dict[str, list[tuple[str, str]]] = {}
    for name, value in first.items():
        if all(cell.spec.get(name) == value for cell in design.cells):
            prefix, _, rest = name.rpartition(".")
            sections.setdefault(CONFIGURATION_SECTIONS.get(prefix, "execution"), []).append((rest, _setting_text(value)))
    return sections


def _varied_settings(design: Design) -> list[tuple[str, list[str]]]:
    """Return the fields in which cells differ, with their values: factors and the fields that depend on them."""
    names = dict.fromkeys(name for cell in design.cells for name in cell.spec)
    values = {name: list(dict.fromkeys(_setting_text(cell.spec.get(name)) for cell in design.cells)) for name in names}
    return [(name, different) for name, different in values.items() if len(different) > 1]


def _searched_defaults(design: Design) -> dict[str, list[str]]:
    """Return the default values of the searched fields."""
    if not design.search:
        return {}
    cells = design.search.cells
    return {field: list(dict.fromkeys(_setting_text(cell.spec.get(field)) for cell in cells)) for field in design.search.fields}


def _setting_text(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_setting_text, value)) or "none"
    return "none" if value is None else format_level(value)


def _condition_counts(evidence: Evidence) -> list[tuple[str, dict[str, int]]]:
    """Return the values of each condition of the runs, with the number of runs."""
    conditions = []
    for name in CONDITION_COLUMNS:
        counts = Counter(str(value) for value in evidence.runs[name].fillna(""))
        conditions.append((name, {value: count for value, count in counts.most_common() if value}))
    return conditions


def _effect_size(difference: Estimate) -> str:
    """Return the standardized difference with its interval: `1.20 [0.31, 2.05]`."""
    interval = effect_size_interval(difference)
    text = number_format.number(difference.effect_size)
    return text if interval is None else f"{text} [{', '.join(map(number_format.number, interval))}]"


def _correlation(found: tuple[float, float, float] | None) -> str:
    """Return a correlation with its interval: `0.23 [−0.24, 0.61]`."""
    if found is None:
        return number_format.MISSING
    r, low, high = map(number_format.number, found)
    return f"{r} [{low}, {high}]"


def _failures(test: FailureTest | None) -> str:
    """Return failures to train beside those of the reference: `2 of 5, 0 of 5 (p 0.444)`; empty without any."""
    if test is None:
        return ""
    p = number_format.p_value(test.p if test.p_adjusted is None else test.p_adjusted)
    return f"{test.failed} of {test.runs}, {test.reference_failed} of {test.reference_runs} (p {p})"


def sort_key(number: float | None) -> str:
    """Return a number with every digit, for sorting; empty if there is none."""
    return "" if number is None or number != number else repr(float(number))


def _multiline(text: str) -> Markup:
    """Return text with its line breaks, each line escaped."""
    return Markup("\n").join(printable(line) for line in text.split("\n"))
