"""Terminal output: tables that fit the width of the terminal, and the results of a study."""

from rich.console import Console, Group, RenderableType
from rich.text import Text

from ablations.engine.analysis import number_format
from ablations.engine.analysis.evidence import FAILED_OUTCOMES, Evidence
from ablations.engine.analysis.examples import scope_sentence
from ablations.engine.analysis.findings import Findings
from ablations.engine.analysis.seed_path import path_sentences
from ablations.engine.analysis.statistics.estimate import Estimate
from ablations.engine.analysis.trial_table import format_configuration
from ablations.engine.environment.console import Paragraph, print_line
from ablations.engine.report import tables
from ablations.engine.report.designs import cell_name, design_lines
from ablations.engine.report.fitted_table import FittedTable
from ablations.engine.study.design import Design
from ablations.engine.study.designs import FACTORIAL
from resnet_core.fields import counted, printable


def show_results(console: Console, evidence: Evidence, findings: Findings, retry_command: str) -> None:
    """Print the table, the answers, the failures of runs, and the command that trains the missing runs."""
    console.print()
    console.print(result_view(evidence.design, findings))
    for line in [*search_lines(findings), *([findings.cost] if findings.cost else [])]:
        print_line(console, line)
    for line in failure_lines(evidence):
        print_line(console, line)
    without = sum(cell.without_result for cell in findings.cells)
    if without:
        have, those = ("has", "this run") if without == 1 else ("have", "these runs")
        print_line(
            console, f"{without} of {counted(len(evidence.runs), 'run')} {have} no result. To train only {those}: {retry_command}"
        )


def failure_lines(evidence: Evidence) -> list[str]:
    """Return a line for the runs of a cell that failed for the same reason: `depth=20 seeds=0,1: failed, disk full`."""
    bad = evidence.runs[evidence.runs["outcome"].isin(FAILED_OUTCOMES)]
    lines = []
    for (cell, outcome, message), seeds in bad.groupby(["cell", "outcome", "message"], sort=False)["seed"]:
        named = f"seed{'s' * (len(seeds) > 1)}={','.join(map(str, seeds))}"
        lines.append(f"{cell} {named}: {outcome}, {message}")
    return lines


def search_lines(findings: Findings) -> list[str]:
    """Return lines with the choice of the search in each cell and the verdict on the ranking; none without a search."""
    if findings.search is None:
        return []
    lines, formats = [], number_format.ValueFormat.of(findings.search)
    for cell in findings.search.cells:
        for each in cell.chosen:
            where = f" for {cell.label}" if cell.label else ""
            level = f" as {each.level}" if len(cell.chosen) > 1 else ""
            scored = f"{findings.search.metric.label}, {formats.with_unit(each.score)}"
            score = f"trial {each.number} of {cell.trials}; its {scored}, is no result"
            lines.append(f"The search chose{where}{level}: {format_configuration(each)} ({score})")
    return [*lines, findings.search.ranking.text] if findings.search.ranking else lines


def result_view(design: Design, findings: Findings) -> RenderableType:
    """Return the table of results (mean ± standard deviation, differences to the baseline), the answers and the caveats."""
    notes = any(cell.problems for cell in findings.cells)
    compared = tables.comparisons_by_cell(findings)
    formats, train = number_format.ValueFormat.of(findings), findings.metric.training.heading
    trained, costs = tables.reports_training(findings), tables.reported_costs(findings)
    columns = [findings.metric.heading, *([train] if trained else []), "n"]
    tested = tables.has_p_values(findings)
    columns += ["difference [95 %]"] if compared else []
    columns += ["p, adjusted"] if tested else []
    columns += [name for cost, name in (("parameters", "parameters"), ("seconds", "s / run")) if cost in costs]
    columns += ["note"] if notes else []
    optional = ("s / run", "parameters", train, "note", "p, adjusted", "difference [95 %]", "n")
    factorial = design.kind == FACTORIAL
    naming = list(design.factors) if factorial else ["cell"]
    table = FittedTable(naming, columns, optional=optional, elsewhere="see the report, or a wider terminal")
    for cell in findings.cells:
        named = cell.levels.values() if factorial else [cell_name(design, cell.levels)]
        row = [*named, formats.mean_std(cell.value), *([formats.mean_std(cell.train_value)] if trained else [])]
        row.append(tables.completed_of_planned(cell))
        if compared:
            difference = compared[cell.label].difference if cell.label in compared else Estimate(n=0)
            row.append(formats.signed_with_interval(difference))
            row += [number_format.p_value(difference.p_adjusted)] if tested else []
        row += [number_format.number(cell.parameters, 0)] if "parameters" in costs else []
        row += [number_format.number(cell.seconds, 1)] if "seconds" in costs else []
        if notes:
            row.append(", ".join(f"{count} {word}" for word, count in cell.problems.items()))
        table.add_row(row)
    answers = [Paragraph(answer.text) for answer in findings.answers]
    answers += [Paragraph(line) for line in design_lines(design, findings)]
    flags = [Paragraph(f"Caveat: {flag}") for flag in findings.flags]
    scope = Paragraph(scope_sentence(design), "dim")
    path = [Paragraph(text, "dim") for text in path_sentences(findings.path)] if findings.path else []
    return Group(Text(printable(f"{design.title}: {design.question}"), "bold"), table, scope, *path, Text(), *answers, *flags)
