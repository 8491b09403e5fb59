"""The command `ablations list`: every study that MLflow has, with its state and its answer."""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ablations.engine.cli import options
from ablations.engine.cli.studies import catalog
from ablations.engine.cli.studies.catalog import StudyEntry
from ablations.engine.cli.studies.documents import print_document, studies
from ablations.engine.cli.studies.reader import Reader, add_reading_options, read, tracking_uri
from ablations.engine.cli.studies.run_rows import FAILED, read_runs
from resnet_core.fields import printable

HELP = "list the studies that MLflow has: when, on what, how far, and the answer"
SCHEMA = "ablations-studies/1"
FINISHED = "finished"
"""Outcome of runs that have completed or diverged, if it is not known which."""


@dataclass(frozen=True, kw_only=True)
class ListedStudy:
    """A study with its number of runs by outcome, and its answers."""

    entry: StudyEntry
    selector: str
    """Text by which other commands find exactly this study."""
    dataset: str
    planned: int | None
    """Number of runs of the study; None if it is not known."""
    counts: Mapping[str, int]
    """Number of runs by outcome."""
    answers: Sequence[Mapping[str, str]]
    """Factor, verdict and sentence of each answer; empty while the study runs."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.description = options.fill(
        "List the studies that MLflow has, the latest first. NAME in other commands is the name in the first column."
    )
    parser.add_argument("--running", action="store_true", help="list only studies that run now")
    add_reading_options(parser)


def run(given: argparse.Namespace) -> int:
    """Print the studies; return the exit code."""
    found = read(tracking_uri(given), lambda reader: list_studies(reader, running=given.running))
    if given.json:
        print_document({"schema": SCHEMA, "studies": [_document(each) for each in found]})
    elif found:
        _print_table(found)
    else:
        print("No study runs now." if given.running else "MLflow has no study yet.")
    return 0


def list_studies(reader: Reader, *, running: bool) -> list[ListedStudy]:
    """Return all studies, or those that run now."""
    entries = catalog.list_studies(reader)
    texts = catalog.selectors(entries)
    return [_listed(reader, entry, texts[entry.run_id]) for entry in entries if entry.is_running or not running]


def _listed(reader: Reader, entry: StudyEntry, selector: str) -> ListedStudy:
    """Return a study with its counts: those of its report if that is current, otherwise counted from its runs.

    A complete study of an earlier version, which stored no summary, is not counted: reading its runs may take a server minutes.
    """
    planned, dataset, answers, counts = None, entry.preset, [], {}
    if summary := entry.summary:
        planned, dataset, answers, counts = (summary[name] for name in ("planned", "dataset", "answers", "outcomes"))
    elif entry.state == "complete":
        if design := catalog.read_design(reader, entry):
            planned, dataset = sum(len(cell.fingerprints) for cell in design.cells), design.dataset
            counts = {FINISHED: planned}
    elif found := read_runs(reader, entry):
        planned, dataset, counts = found.planned, found.design.dataset, found.counts
    return ListedStudy(entry=entry, selector=selector, dataset=dataset, planned=planned, counts=counts, answers=answers)


def answer_in_a_line(answers: Sequence[Mapping[str, str]]) -> str:
    """Return the verdicts: `shortcut matters; depth: no difference shown`."""
    return "; ".join(
        f"{each['factor']}{'' if each['verdict'] in ('matters', 'may matter') else ':'} {each['verdict']}" for each in answers
    )


def runs_in_words(planned: int | None, counts: Mapping[str, int]) -> str:
    """Return how many runs have a result and what became of the others: `22 of 24, 1 diverged, 1 failed`.

    Without counts, the study was not read. Without a planned number only, it is an adaptive study that has not ended.
    """
    if not counts and planned is None:
        return "not known"
    diverged, failed = counts.get("diverged", 0), sum(counts.get(name, 0) for name in FAILED)
    parts = [f"{_done(counts)} so far" if planned is None else f"{_done(counts)} of {planned}"]
    parts += [f"{count} {word}" for count, word in ((diverged, "diverged"), (failed, "failed")) if count]
    return ", ".join(parts)


def _done(counts: Mapping[str, int]) -> int:
    """Return the number of runs with a result."""
    return sum(counts.get(name, 0) for name in ("completed", "diverged", FINISHED))


def _document(listed: ListedStudy) -> dict[str, Any]:
    entry, counts = listed.entry, listed.counts
    return {
        "name": entry.name,
        "selector": listed.selector,
        "run_id": entry.run_id,
        "preset": entry.preset,
        "dataset": listed.dataset,
        "state": entry.state,
        "started": catalog.iso_time(entry.started),
        "ended": catalog.iso_time(entry.ended),
        "planned": listed.planned,
        "done": _done(counts),
        "diverged": None if FINISHED in counts else counts.get("diverged", 0),
        "failed": sum(counts.get(name, 0) for name in FAILED),
        "running": counts.get("running", 0) if entry.is_running else 0,
        "holder": entry.holder.get("name", "") if entry.is_running else None,
        "answers": [dict(each) for each in listed.answers],
    }


def _print_table(found: Sequence[ListedStudy]) -> None:
    from rich.table import Table
    from rich.text import Text

    from ablations.engine.analysis.number_format import MISSING
    from ablations.engine.environment.console import make_console

    table = Table(box=None, header_style="dim", padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column("study", overflow="fold")
    for name in ("data", "state", "runs", "when"):
        table.add_column(name, no_wrap=True)
    table.add_column("answer", overflow="fold", min_width=20)
    for each in found:
        latest = each.entry.ended or each.entry.started
        row = [each.selector, each.dataset, each.entry.state, runs_in_words(each.planned, each.counts), catalog.format_time(latest)]
        table.add_row(*(Text(printable(text) or MISSING) for text in (*row, answer_in_a_line(each.answers))))
    console = make_console()
    console.print(table)
    console.print(Text(f"{studies(len(found))}; ablations show NAME has the details.", "dim"))
