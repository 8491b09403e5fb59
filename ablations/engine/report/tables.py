"""The table of results, with a row per cell: CSV with every digit, Markdown and LaTeX for people.

Names of factors and levels and messages of runs may hold any text, so they are escaped and cannot change the structure of a table.
"""

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import pandas as pd

from ablations.engine.analysis.evidence import COST_METRICS
from ablations.engine.analysis.findings import CellFinding, Comparison, Findings
from ablations.engine.analysis.number_format import ValueFormat, number, p_value, scaled
from ablations.engine.analysis.statistics.estimate import Estimate
from ablations.engine.analysis.verdicts.sentences import sentence
from ablations.engine.report.notes import cell_note
from resnet_core.fields import counted, printable

MAX_NAMED_CELLS = 4
"""Maximum number of cells that a note names. It gives the number of the others."""
LATEX_LEFT_OUT = ("train", "s / run")
"""Columns of the Markdown table that the LaTeX table leaves out, to fit on the page of a paper."""
COST_HEADINGS = {"parameters": "parameters", "flops": "multiply-adds", "seconds": "s / run"}
"""Costs in the Markdown table, with their headings."""
COST_COLUMNS = {"flops": "multiply_adds"}
"""Columns of `table.csv` for costs that have another name there."""
MARKDOWN_SPECIAL = re.compile(r"([\\`*_{}\[\]()<>#|~$&!])")
FORMULA_PREFIXES = ("=", "+", "-", "@")
"""Characters at which a spreadsheet starts a formula."""
LATEX_ESCAPES = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "'": r"\textquotesingle{}",
    "`": r"\textasciigrave{}",
    "–": r"\textendash{}",
    "−": "$-$",
    "…": r"\ldots{}",
    "±": r"$\pm$",
    "×": r"$\times$",
    "·": r"$\cdot$",
    "≥": r"$\geq$",
    "≤": r"$\leq$",
    "η": r"$\eta$",
    "²": r"\textsuperscript{2}",
    "“": "``",
    "”": "''",
    "’": "'",
}


def completed_of_planned(cell: CellFinding) -> str:
    """Return the number of completed runs: `3`, or `2 of 3` if some did not complete."""
    return str(cell.planned) if cell.value.n == cell.planned else f"{cell.value.n} of {cell.planned}"


def comparisons_by_cell(findings: Findings) -> Mapping[str, Comparison]:
    """Return the comparison of every cell that has one, by label."""
    return {comparison.cell: comparison for comparison in findings.comparisons}


def reported_costs(findings: Findings) -> list[str]:
    """Return the costs, by their names in `CellFinding`, that a run of any cell reports."""
    return [name for name in COST_METRICS if any(getattr(cell, name) is not None for cell in findings.cells)]


def reports_training(findings: Findings) -> bool:
    """Return whether runs report the metric on their training data."""
    return any(cell.train_value.n for cell in findings.cells)


def has_p_values(findings: Findings) -> bool:
    """Return whether a comparison has a p-value: they need three seeds."""
    return any(each.difference.p_adjusted is not None for each in findings.comparisons)


def adjustment(findings: Findings) -> str:
    """Return for what p-values are adjusted."""
    if findings.tests == 1:
        return "p is that of the only test of the study"
    tests = "both tests" if findings.tests == 2 else f"all {counted(findings.tests, 'test')}"
    return f"p is adjusted for {tests} of the study"


def rows(findings: Findings) -> list[dict[str, Any]]:
    """Return a row per cell in the order of the design. Numbers have full precision; a missing number is None.

    Columns of the metric are named after it: `test_error_mean`, in percent if its unit is `%`. Differences are in
    `Metric.difference_unit`. Costs are those of one run, and `multiply_adds` those of the forward pass of one example. What no run
    reports has no column. Readers of `table.csv` rely on the names of the columns.
    """
    by_cell = comparisons_by_cell(findings)
    scored, trained = findings.metric.key, findings.metric.training.key
    reported = {COST_COLUMNS.get(name, name) for name in reported_costs(findings)}
    table = []
    for cell in findings.cells:
        comparison = by_cell.get(cell.label)
        difference = comparison.difference if comparison else Estimate(n=0)
        row: dict[str, Any] = {f"{scored}_{name}": getattr(cell.value, name) for name in ("mean", "std", "low", "high")}
        row |= {"n": cell.value.n, "planned": cell.planned}
        if reports_training(findings):
            row |= {f"{trained}_mean": cell.train_value.mean, f"{trained}_std": cell.train_value.std}
        row |= {"baseline": comparison.baseline if comparison else ""}
        row |= {f"difference_{name}": getattr(difference, name) for name in ("mean", "low", "high")}
        row |= {"pairs": difference.n, "p": difference.p, "corrected_p": difference.p_adjusted, "effect": difference.effect_size}
        costs = {COST_COLUMNS.get(name, name): getattr(cell, name) for name in COST_METRICS}
        row |= {column: value for column, value in costs.items() if column in reported}
        row |= {"on_front": cell.on_pareto_front} if "multiply_adds" in reported else {}
        row |= {"note": cell_note(cell, comparison, ValueFormat.of(findings))}
        levels = {factor_column(name, {"cell", *row}): level for name, level in cell.levels.items()}
        table.append({"cell": cell.label, **levels, **row})
    return table


def factor_column(factor: str, others: Collection[str]) -> str:
    """Return the name of a factor's column beside other columns: `factor.p` if one of them is named `p`."""
    return f"factor.{factor}" if factor in others else factor


def csv(findings: Findings) -> str:
    """Return `rows` as CSV with a header. Text that a spreadsheet would run as a formula starts with an apostrophe."""
    return escape_formulas(pd.DataFrame(rows(findings))).to_csv(index=False, lineterminator="\n")


def escape_formulas(table: pd.DataFrame) -> pd.DataFrame:
    """Return a table in which text that a spreadsheet would run as a formula starts with an apostrophe."""
    return table.map(lambda value: _escape_formula(value) if isinstance(value, str) else value)


def markdown(findings: Findings) -> str:
    """Return the table as Markdown for GitHub and MLflow, followed by the notes on incomplete or mixed cells."""
    heads, lines = _text_table(findings)
    factors = len(list(_factor_names(findings)))
    rules = ["---"] * factors + ["---:"] * (len(heads) - factors)
    table = [[*map(escape_markdown, heads)], rules, *([*map(escape_markdown, line[:factors]), *line[factors:]] for line in lines)]
    notes = [f"- **{escape_markdown(label)}**: {escape_markdown(text)}" for label, text in _notes_with_cells(findings)]
    text = "\n".join("| " + " | ".join(line) + " |" for line in table)
    return "\n\n".join(filter(None, (text, escape_markdown(_legend(findings)), "\n".join(notes)))) + "\n"


def latex(findings: Findings) -> str:
    r"""Return a LaTeX float in the style of `booktabs`. Characters that pdfLaTeX may lack are named: `U+4E2D`."""
    heads, lines = _text_table(findings, *LATEX_LEFT_OUT)
    factors = len(list(_factor_names(findings)))
    columns = "l" * factors + "r" * (len(heads) - factors)
    label = "-".join(re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") for name in _factor_names(findings))
    notes = [
        rf"\par\smallskip\textbf{{{_escape_latex(cell)}}}: {_escape_latex(text)}." for cell, text in _notes_with_cells(findings)
    ]
    written = [
        r"% \usepackage[T1]{fontenc}, \usepackage{textcomp}, \usepackage{booktabs}",
        r"\begin{table}",
        r"\centering\small",
        rf"\caption{{{_escape_latex(_legend(findings))}}}",
        rf"\label{{tab:{label}}}",
        rf"\begin{{tabular}}{{{columns}}}",
        r"\toprule",
        " & ".join(map(_escape_latex, heads)) + r" \\",
        r"\midrule",
        *("{}" + " & ".join(map(_escape_latex, line)) + r" \\" for line in lines),  # {} because a row may not begin with [ or *
        r"\bottomrule",
        r"\end{tabular}",
        *([r"\par\footnotesize\raggedright", *notes] if notes else []),
        r"\end{table}",
    ]
    return "\n".join(written) + "\n"


def _text_table(findings: Findings, *left_out: str) -> tuple[list[str], list[list[str]]]:
    """Return the heads, and a line per cell: levels, then the columns except those left out. `train` is the training metric."""
    formats, metric = ValueFormat.of(findings), findings.metric
    columns = {"value": metric.heading, "n": "n"}
    columns |= {"difference": "difference"} if findings.comparisons else {}
    columns |= {"p": "p"} if has_p_values(findings) else {}
    columns |= {"train": metric.training.heading} if reports_training(findings) else {}
    columns |= {heading: heading for name, heading in COST_HEADINGS.items() if name in reported_costs(findings)}
    columns = {name: heading for name, heading in columns.items() if name not in left_out}
    by_cell = comparisons_by_cell(findings)
    baselines = {comparison.baseline for comparison in findings.comparisons}
    lines = []
    for cell in findings.cells:
        comparison = by_cell.get(cell.label)
        difference = comparison.difference if comparison else Estimate(n=0)
        shown = {
            "value": formats.mean_std(cell.value),
            "n": completed_of_planned(cell),
            "difference": "baseline"
            if comparison is None and cell.label in baselines
            else formats.signed_with_interval(difference),
            "p": p_value(difference.p_adjusted),
            "train": formats.mean_std(cell.train_value),
            "parameters": number(cell.parameters, 0),
            "multiply-adds": scaled(cell.flops),
            "s / run": number(cell.seconds, 1),
        }
        lines.append([*map(printable, cell.levels.values()), *(shown[column] for column in columns)])
    return [*map(printable, _factor_names(findings)), *map(printable, columns.values())], lines


def _factor_names(findings: Findings) -> Iterable[str]:
    return findings.cells[0].levels


def _legend(findings: Findings) -> str:
    metric, reference = findings.metric, "rung below" if findings.ladder else "baseline"
    unit = f" in {metric.unit_words}" if metric.unit_words else ""
    difference_unit = f" in {metric.difference_words}," if metric.difference_words else ""
    values = f"{sentence(metric.label)} in the final epoch{unit}, mean ± standard deviation over n seeds."
    if not findings.comparisons:
        return values
    adjusted = f" {adjustment(findings)}." if has_p_values(findings) else ""
    return f"{values} Differences to the {reference} are{difference_unit} paired by seed, with 95 % t intervals.{adjusted}"


def _notes_with_cells(findings: Findings) -> list[tuple[str, str]]:
    """Return each distinct note with the cells that it applies to."""
    by_cell = comparisons_by_cell(findings)
    about: dict[str, list[str]] = {}
    for cell in findings.cells:
        if text := cell_note(cell, by_cell.get(cell.label), ValueFormat.of(findings)):
            about.setdefault(printable(text), []).append(printable(cell.label))
    return [
        (", ".join(labels[:MAX_NAMED_CELLS]) + _more_text(len(labels) - MAX_NAMED_CELLS), text) for text, labels in about.items()
    ]


def _more_text(count: int) -> str:
    return f" and {count} more" if count > 0 else ""


def _escape_formula(text: str) -> str:
    text = printable(text)
    return f"'{text}" if text.startswith(FORMULA_PREFIXES) and not _is_number(text) else text


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def escape_markdown(text: str) -> str:
    """Return text that Markdown displays literally."""
    return MARKDOWN_SPECIAL.sub(r"\\\1", text)


def _escape_latex(text: str) -> str:
    text = "".join(
        LATEX_ESCAPES.get(c) or (c if c.isascii() or c in "àâäçéèêëîïôöùûüñßÀÄÇÉÈÖÜÑ°" else f"U+{ord(c):04X}") for c in text
    )
    return text.replace("--", "-{-}")  # LaTeX turns two hyphens into a dash
