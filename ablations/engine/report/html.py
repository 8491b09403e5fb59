"""The report of a study: one self-contained HTML page for screen, phone and print.

Templates escape all text, since names and messages may come from anyone; only figures are markup. The content security policy of
the page forbids loading anything.
"""

import base64
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
THEME_COLORS = {"#1f2328": "var(--ink)", "#57606a": "var(--muted)", "#d8dee4": "var(--grid)", "#ffffff": "var(--paper)"}
"""Colors in figures that the page replaces by the colors of its theme."""
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
MAX_NOTE_CHARACTERS = 300
"""Maximum length of a note in the table of results, in characters; the list of runs has the whole message."""
CONFIGURATION_SECTIONS = {"model": "network", "data": "data", "optim": "training"}
"""Headings of the sections of a run's configuration; other fields are about its execution."""


@dataclass(frozen=True)
class ReportFigure:
    """A figure of the report with its texts."""

    name: str
    """Unique name of letters, digits, `-` and `_`."""
    title: str
    text: str
    """How to read the figure."""
    alt: str
    """Alternative text: what the figure shows."""
    svg: str


def render(
    evidence: Evidence,
    findings: Findings,
    figures: Sequence[ReportFigure],
    *,
    published: Sequence["PaperRow"],
    written_at: str,
    progress: str = "",
) -> str:
    """Return the report as HTML.

    Args:
        published: Published results of the same networks.
        written_at: Time of writing, as the page shows it.
        progress: The progress of a study that still runs, such as `12 of 24 runs`; empty for a finished study.
    """
    made = {"csv": tables.csv(findings), "md": tables.markdown(findings), "tex": tables.latex(findings)}
    return (
        template_environment(
            number_format.ValueFormat.of(findings), score=number_format.ValueFormat.of(findings.search or findings).number
        )
        .get_template("report.html.j2")
        .render(
            design=evidence.design,
            findings=findings,
            rows=_result_rows(findings),
            figures=[figure for figure in figures if figure.name not in DESIGN_FIGURES],
            design_figures={figure.name: figure for figure in figures if figure.name in DESIGN_FIGURES},
            **DESIGN_TEXTS,
            published=published,
            written_at=written_at,
            progress=progress,
            shared=_shared_settings(evidence.design),
            varied=_varied_settings(evidence.design),
            conditions=_condition_counts(evidence),
            runs=evidence.runs.to_dict("records"),
            downloads={f"{evidence.design.study}.{suffix}": data_url(text) for suffix, text in made.items()},
            verdicts=VERDICT_SYMBOLS,
            defaults=_searched_defaults(evidence.design),
            metric=findings.metric,
            examples=f"{evidence.design.example}s",
            trained=tables.reports_training(findings),
            costs=tables.reported_costs(findings),
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
        "inline_svg": inline_svg,
        "sort_key": sort_key,
        "multiline": _multiline,
        "counted": counted,
        "format_range": format_range,
        "format_configuration": format_configuration,
    }
    return environment


def inline_svg(picture: ReportFigure) -> Markup:
    """Return a figure as inline SVG with an alternative text, the colors of the page's theme, and IDs unique within the page."""
    svg = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>", "", picture.svg[picture.svg.index("<svg") :], flags=re.DOTALL)
    opening, drawing = svg.split(">", 1)
    name = f"figure-{picture.name}"
    used = set(re.findall(r'(?:href="|url\()#([^")]+)', drawing))
    drawing = re.sub(r' id="([^"]*)"', lambda id_: f' id="{name}-{id_[1]}"' if id_[1] in used else "", drawing)
    drawing = re.sub(r'(href="|url\()#', rf"\1#{name}-", drawing)
    drawing = re.sub(r"(<style[^>]*>)\s*\*", rf"\1#{name} *", drawing)
    drawing = re.sub(
        r' d="[^"]*"', lambda path: re.sub(r"(\.\d\d)\d+", r"\1", path[0]), drawing
    )  # two decimals are finer than any screen
    for color, variable in THEME_COLORS.items():
        drawing = re.sub(color, variable, drawing, flags=re.IGNORECASE)
    shape = re.search(r'viewBox="0 0 ([\d.]+) [\d.]+"', opening)
    assert shape, "matplotlib writes the size of a figure"
    head = Markup('<svg id="{}" role="img" aria-label="{}" style="--width: {}" ').format(name, printable(picture.alt), shape[1])
    return head + Markup(f"{shape[0]}>{drawing}")  # noqa: S704 - drawn by this project, from text that matplotlib escapes


def _result_rows(findings: Findings) -> list[dict[str, Any]]:
    """Return the rows of the table of results: cells with their comparisons."""
    by_cell = tables.comparisons_by_cell(findings)
    baselines = {comparison.baseline for comparison in findings.comparisons}
    rows = []
    for cell in findings.cells:
        comparison = by_cell.get(cell.label)
        note = tables.cell_note(cell, comparison, number_format.ValueFormat.of(findings))
        if len(note) > MAX_NOTE_CHARACTERS:
            note = f"{note[:MAX_NOTE_CHARACTERS]} …"
        difference = comparison.difference if comparison else Estimate(n=0)
        rows.append(
            {"cell": cell, "difference": difference, "baseline": comparison is None and cell.label in baselines, "note": note}
        )
    return rows


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


def data_url(text: str) -> str:
    """Return a data URL that holds a text file within the page."""
    return f"data:text/plain;base64,{base64.b64encode(text.encode()).decode()}"


def sort_key(number: float | None) -> str:
    """Return a number with every digit, for sorting; empty if there is none."""
    return "" if number is None or number != number else repr(float(number))


def _multiline(text: str) -> Markup:
    """Return text with its line breaks, each line escaped."""
    return Markup("\n").join(printable(line) for line in text.split("\n"))
