"""A study's report: one page that needs nothing else, for a screen, a phone or paper.

Everything shown is text, whoever wrote it: templates escape all but figures, and the page's own policy lets it load nothing.
"""

import base64
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from ablations.engine.analysis import number_format
from ablations.engine.analysis.evidence import CONDITION_COLUMNS, Evidence
from ablations.engine.analysis.findings import Estimate, Findings
from ablations.engine.analysis.trial_table import format_configuration, format_range
from ablations.engine.report import tables
from ablations.engine.study.design import Design
from ablations.engine.study.factors import format_level
from resnet_core.fields import printable

if TYPE_CHECKING:
    from ablations.engine.report.paper_comparison import PaperRow

VERDICT_SYMBOLS = {"matters": "●", "may matter": "◐", "no effect shown": "○", "cannot be said yet": "?"}
RANKINGS = {"survives": "●", "reverses": "●", "changes": "◐", "no change shown": "○", "no order shown": "○"}
RANKINGS["cannot be said yet"] = VERDICT_SYMBOLS["cannot be said yet"]
"""How sure an answer is, to be seen without colour; and that about the order of variants."""
THEME_COLORS = {"#1f2328": "var(--ink)", "#57606a": "var(--muted)", "#d8dee4": "var(--grid)", "#ffffff": "var(--paper)"}
"""Colours of figures that follow the page's theme."""
MAX_NOTE_CHARACTERS = 300
"""Characters in the table of results; the list of runs has all."""
CONFIGURATION_SECTIONS = {"model": "network", "data": "data", "optim": "training"}
"""Parts of a run's configuration; fields outside of them say how it is executed."""


@dataclass(frozen=True)
class ReportFigure:
    """A figure with what is said of it."""

    name: str
    """Of letters, digits, - and _; unique in a report."""
    title: str
    text: str
    """How to read it."""
    alt: str
    """What is to be seen, for those who do not see it."""
    svg: str


def render(
    evidence: Evidence,
    findings: Findings,
    figures: Sequence[ReportFigure],
    *,
    published: Sequence["PaperRow"],
    written_at: str,
    running: str = "",
) -> str:
    """The report as HTML.

    Args:
        published: what the paper and others found, beside what was found here.
        written_at: when, as shown.
        running: how far the study is, where it is not at its end: `12 of 24 runs`.
    """
    made = {"csv": tables.csv(findings), "md": tables.markdown(findings), "tex": tables.latex(findings)}
    return (
        _template_environment()
        .get_template("report.html.j2")
        .render(
            design=evidence.design,
            findings=findings,
            rows=_result_rows(findings),
            figures=figures,
            published=published,
            written_at=written_at,
            running=running,
            shared=_shared_settings(evidence.design),
            varied=_varied_settings(evidence.design),
            conditions=_condition_counts(evidence),
            runs=evidence.runs.to_dict("records"),
            downloads={f"{evidence.design.study}.{suffix}": _data_url(text) for suffix, text in made.items()},
            verdicts=VERDICT_SYMBOLS | RANKINGS,
            defaults=_searched_defaults(evidence.design),
        )
    )


def _template_environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: printable(value) if type(value) is str else value,
    )
    written = (
        number_format.number,
        number_format.signed,
        number_format.scaled,
        number_format.mean_std,
        number_format.interval,
        number_format.signed_interval,
    )
    environment.filters |= {
        function.__name__: function for function in (*written, number_format.p_value, tables.completed_of_planned)
    }
    environment.filters |= {
        "inline_svg": inline_svg,
        "sort_key": _sort_key,
        "multiline": _multiline,
        "format_range": format_range,
        "format_configuration": format_configuration,
    }
    return environment


def inline_svg(picture: ReportFigure) -> Markup:
    """A figure as part of a page: said in words too, in the page's colours, every name in it its own."""
    svg = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>", "", picture.svg[picture.svg.index("<svg") :], flags=re.DOTALL)
    opening, drawing = svg.split(">", 1)
    name = f"figure-{picture.name}"
    used = set(re.findall(r'(?:href="|url\()#([^")]+)', drawing))
    drawing = re.sub(r' id="([^"]*)"', lambda id_: f' id="{name}-{id_[1]}"' if id_[1] in used else "", drawing)
    drawing = re.sub(r'(href="|url\()#', rf"\1#{name}-", drawing)
    drawing = re.sub(r"(<style[^>]*>)\s*\*", rf"\1#{name} *", drawing)
    drawing = re.sub(r' d="[^"]*"', lambda path: re.sub(r"(\.\d\d)\d+", r"\1", path[0]), drawing)  # finer than any screen
    for colour, variable in THEME_COLORS.items():
        drawing = re.sub(colour, variable, drawing, flags=re.IGNORECASE)
    shape = re.search(r'viewBox="0 0 ([\d.]+) [\d.]+"', opening)
    assert shape, "a figure of matplotlib has its size"
    head = Markup('<svg id="{}" role="img" aria-label="{}" style="--width: {}" ').format(name, printable(picture.alt), shape[1])
    return head + Markup(f"{shape[0]}>{drawing}")  # noqa: S704 - drawn by this project, from text that matplotlib escapes


def _result_rows(findings: Findings) -> list[dict[str, Any]]:
    """Cells with their comparisons, for the table of results."""
    by_cell = tables.comparisons_by_cell(findings)
    baselines = {comparison.baseline for comparison in findings.comparisons}
    rows = []
    for cell in findings.cells:
        comparison = by_cell.get(cell.label)
        note = tables.cell_note(cell, comparison)
        if len(note) > MAX_NOTE_CHARACTERS:
            note = f"{note[:MAX_NOTE_CHARACTERS]} …"
        difference = comparison.difference if comparison else Estimate(n=0)
        rows.append({"cell": cell, "difference": difference, "baseline": cell.label in baselines, "note": note})
    return rows


def _shared_settings(design: Design) -> dict[str, list[tuple[str, str]]]:
    """Fields in which all cells agree, by what they are about."""
    first = design.cells[0].spec
    sections: dict[str, list[tuple[str, str]]] = {}
    for name, value in first.items():
        if all(cell.spec.get(name) == value for cell in design.cells):
            prefix, _, rest = name.rpartition(".")
            sections.setdefault(CONFIGURATION_SECTIONS.get(prefix, "execution"), []).append((rest, _setting_text(value)))
    return sections


def _varied_settings(design: Design) -> list[tuple[str, list[str]]]:
    """Fields in which cells differ, with their values: factors, and what follows from them."""
    names = dict.fromkeys(name for cell in design.cells for name in cell.spec)
    values = {name: list(dict.fromkeys(_setting_text(cell.spec.get(name)) for cell in design.cells)) for name in names}
    return [(name, different) for name, different in values.items() if len(different) > 1]


def _searched_defaults(design: Design) -> dict[str, list[str]]:
    """Of the fields that are searched, the values that cells have without a search."""
    if not design.search:
        return {}
    cells = design.search.cells
    return {field: list(dict.fromkeys(_setting_text(cell.spec.get(field)) for cell in cells)) for field in design.search.fields}


def _setting_text(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_setting_text, value)) or "none"
    return "none" if value is None else format_level(value)


def _condition_counts(evidence: Evidence) -> list[tuple[str, dict[str, int]]]:
    """Under what runs were trained: values of each condition, and of how many runs."""
    conditions = []
    for name in CONDITION_COLUMNS:
        counts = Counter(str(value) for value in evidence.runs[name].fillna(""))
        conditions.append((name, {value: count for value, count in counts.most_common() if value}))
    return conditions


def _data_url(text: str) -> str:
    """A file within the page."""
    return f"data:text/plain;base64,{base64.b64encode(text.encode()).decode()}"


def _sort_key(number: float | None) -> str:
    """Every digit, for sorting; empty where there is none."""
    return "" if number is None or number != number else repr(float(number))


def _multiline(text: str) -> Markup:
    """Text of several lines."""
    return Markup("\n").join(printable(line) for line in text.split("\n"))
