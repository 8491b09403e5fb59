"""The command `ablations show NAME`: one study with its cells, its answers, its failures and how to continue."""

import argparse
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ablations.engine.cli import options
from ablations.engine.cli.studies import catalog
from ablations.engine.cli.studies.catalog import StudyEntry
from ablations.engine.cli.studies.documents import print_document
from ablations.engine.cli.studies.list_command import runs_in_words
from ablations.engine.cli.studies.reader import Reader, add_reading_options, read, tracking_uri
from ablations.engine.cli.studies.run_rows import MISSING, CellRow, StoredRuns, cell_rows, read_runs
from ablations.engine.tracking import mlflow_internals
from ablations.engine.tracking.relocation import artifact_file
from ablations.engine.tracking.run_queries import EARLIER, REPORT_TAG, STOPPED_TAG
from resnet_core.fields import counted, printable, reject

HELP = "show a study: its cells, its answers, its failures, its report"
SCHEMA = "ablations-study/1"
REPORT, FINDINGS = "report/report.html", "findings.json"
"""Artifacts of a study's run."""
MAX_MESSAGES = 10
"""Maximum number of different reasons of failures that are printed."""


@dataclass(frozen=True, kw_only=True)
class ShownStudy:
    """A study with everything that the command prints."""

    found: StoredRuns
    selector: str
    others: Sequence[str]
    """Selectors of other studies of this name."""
    report: str
    """Address of its report; empty if there is none."""
    findings: Mapping[str, Any] = field(default_factory=dict)
    """Its `findings.json`; empty without a report of the design as it was last submitted."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.description = options.fill("Show a study as MLflow has it, also while it runs.")
    parser.add_argument("name", metavar="NAME", help="study: a name of `ablations list`, NAME@PRESET, or a run ID")
    add_reading_options(parser)


def run(given: argparse.Namespace) -> int:
    """Print the study; return the exit code."""
    uri = tracking_uri(given)
    shown = read(uri, lambda reader: _show(reader, given.name))
    if given.json:
        print_document(_document(shown))
    else:
        _print(shown)
    return 0


def _show(reader: Reader, name: str) -> ShownStudy:
    entries = catalog.list_studies(reader)
    entry, others = catalog.find_study(entries, name)
    found = stored_runs(reader, entry)
    return ShownStudy(
        found=found,
        selector=catalog.selectors(entries)[entry.run_id],
        others=others,
        report=_report_address(reader, entry),
        findings=_current_findings(reader, found),
    )


def stored_runs(reader: Reader, entry: StudyEntry, *, trials: bool = False) -> StoredRuns:
    """Return a study with its runs; raise ConfigError if its design cannot be read."""
    found = read_runs(reader, entry, trials=trials)
    if found is None:
        raise reject("NAME", entry.name, f"MLflow has no design of it that this version reads (run {entry.run_id})")
    return found


def _current_findings(reader: Reader, found: StoredRuns) -> Mapping[str, Any]:
    """Return `findings.json` if it has as many runs with each outcome as MLflow has now."""
    text = reader.artifact(found.entry.run, FINDINGS)
    try:
        document: dict[str, Any] = json.loads(text or "{}")
    except ValueError:
        return {}
    reported = [run["outcome"] for cell in document.get("cells", ()) for run in cell["runs"]]
    return document if Counter(reported) == Counter(row.outcome for row in found.runs) else {}


def _report_address(reader: Reader, entry: StudyEntry) -> str:
    if REPORT_TAG not in entry.tags:
        return ""
    info = entry.run.info
    if reader.uri.startswith("http"):
        return f"{reader.uri.rstrip('/')}/{mlflow_internals.artifact_page(info.experiment_id, info.run_id, REPORT)}"
    address = f"{info.artifact_uri}/{REPORT}"
    return str(artifact_file(address) or address)


def _document(shown: ShownStudy) -> dict[str, Any]:
    found, entry = shown.found, shown.found.entry
    design, origin = found.design, found.design.origin
    return {
        "schema": SCHEMA,
        "name": entry.name,
        "selector": shown.selector,
        "run_id": entry.run_id,
        "question": design.question,
        "preset": design.preset,
        "dataset": design.dataset,
        "design": design.kind,
        "metric": design.metric.to_dict(),
        "state": entry.state,
        "holder": entry.holder.get("name", "") if entry.is_running else None,
        "started": catalog.iso_time(entry.started),
        "ended": catalog.iso_time(entry.ended),
        "command": origin.get("command", ""),
        "commit": origin.get("git.commit", ""),
        "report": shown.report or None,
        "planned": found.planned,
        "outcomes": found.counts,
        "factors": {name: list(levels) for name, levels in design.factors.items()},
        "baseline": dict(design.baseline),
        "cells": [_cell_document(row) for row in cell_rows(found)],
        "answers": [{name: each[name] for name in ("factor", "verdict", "text")} for each in shown.findings.get("answers", ())],
        "failures": [{"reason": reason, "runs": count} for reason, count in _reasons(found).items()],
        "settings": dict(entry.settings),
    }


def _cell_document(row: CellRow) -> dict[str, Any]:
    return {
        "cell": row.cell.label,
        "levels": dict(row.cell.levels),
        "planned": row.planned,
        "n": row.n,
        "mean": row.mean,
        "std": row.std,
        "seconds": row.seconds,
        "outcomes": dict(row.outcomes),
    }


def _reasons(found: StoredRuns) -> dict[str, int]:
    """Return the number of runs by outcome and reason, the most frequent reason first."""
    ended = Counter(f"{row.outcome}: {row.message}" for row in found.runs if row.message)
    return dict(ended.most_common())


def _print(shown: ShownStudy) -> None:
    from rich.text import Text

    from ablations.engine.environment.console import Paragraph, make_console, print_line

    console, found, entry = make_console(), shown.found, shown.found.entry
    design, origin = found.design, found.design.origin
    console.print(Text(printable(f"{design.title}: {design.question}"), "bold"))
    until = f" to {catalog.format_time(entry.ended)}" if entry.ended else ""
    stopped = f" ({entry.tags[STOPPED_TAG]})" if entry.state == "stopped" else ""
    by = f", held by {entry.holder['name']}" if entry.is_running else stopped
    print_line(
        console, f"{entry.state}{by}; {catalog.format_time(entry.started)}{until}; preset {design.preset}; run {entry.run_id}"
    )
    counts = {name: count for name, count in found.counts.items() if name not in ("completed", "diverged", "failed", "oom")}
    rest = "".join(f", {count} {outcome}" for outcome, count in counts.items())
    print_line(console, f"Runs with a result: {runs_in_words(found.planned, found.counts)}{rest}")
    console.print()
    console.print(_table(found))
    for answer in shown.findings.get("answers", ()):
        console.print(Paragraph(answer["text"]))
    reasons = _reasons(found)
    for reason, count in list(reasons.items())[:MAX_MESSAGES]:
        print_line(console, f"{counted(count, 'run')} {reason}")
    if len(reasons) > MAX_MESSAGES:
        print_line(console, f"{counted(len(reasons) - MAX_MESSAGES, 'more reason')}: ablations runs {shown.selector} --csv")
    console.print()
    if shown.report:
        earlier = " (of an earlier submission)" if shown.found.entry.tags[REPORT_TAG] == EARLIER else ""
        print_line(console, f"Report{earlier}: {shown.report}")
    if command := origin.get("command"):
        continues = not entry.is_running and (entry.state != "complete" or found.counts.get(MISSING))
        print_line(console, f"{'Continue with' if continues else 'Command'}: {command}")
    if shown.others:
        print_line(console, f"Other studies of this name: {', '.join(shown.others)}")


def _table(found: StoredRuns) -> Any:
    from ablations.engine.analysis import number_format
    from ablations.engine.analysis.statistics.estimate import Estimate
    from ablations.engine.report.fitted_table import FittedTable

    design, rows = found.design, cell_rows(found)
    means = [row.mean for row in rows if row.mean is not None]
    formats = number_format.ValueFormat(design.metric, number_format.decimals_for(design.metric, means))
    columns = [design.metric.heading, "n", "s / run", "other runs"]
    table = FittedTable(list(design.factors) or ["cell"], columns, optional=columns[:0:-1])
    for row in rows:
        named = list(row.cell.levels.values()) if design.factors else [row.cell.label]
        mean = formats.mean_std(Estimate(n=row.n, mean=row.mean, std=row.std))
        seconds = number_format.number(row.seconds, 1)
        others = ", ".join(f"{count} {outcome}" for outcome, count in row.outcomes.items())
        of_planned = str(row.n) if row.planned is None else f"{row.n} of {row.planned}"
        table.add_row([*named, mean, of_planned, seconds, others or number_format.MISSING])
    return table
