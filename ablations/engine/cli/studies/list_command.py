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
    """Number of runs by outcome, without those that MLflow does not have."""
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
    """Return a study with its counts: those of its report if that is current, otherwise counted from its runs."""
    if summary := entry.summary:
        counts = {name: count for name, count in summary["outcomes"].items() if name != "missing"}
        planned, dataset, answers = summary["planned"], summary["dataset"], summary["answers"]
    elif found := read_runs(reader, entry):
        counts = {name: count for name, count in found.counts.items() if name != "missing"}
        planned, dataset, answers = len(found.runs), found.design.dataset, []
    else:
        planned, dataset, answers, counts = None, entry.preset, [], {}
    return ListedStudy(entry=entry, selector=selector, dataset=dataset, planned=planned, counts=counts, answers=answers)


def answer_in_a_line(answers: Sequence[Mapping[str, str]]) -> str:
    """Return the verdicts: `shortcut matters; depth: no difference shown`."""
    words = (each["verdict"] for each in answers)
    return "; ".join(
        f"{each['factor']} {verdict}" if verdict.endswith("matters") or verdict == "may matter" else f"{each['factor']}: {verdict}"
        for each, verdict in zip(answers, words, strict=True)
    )


def runs_in_words(planned: int | None, counts: Mapping[str, int]) -> str:
    """Return how many runs have a result and what became of the others: `22 of 24, 1 diverged, 1 failed`."""
    if planned is None:
        return "not known"
    diverged, failed = counts.get("diverged", 0), sum(counts.get(name, 0) for name in FAILED)
    parts = [f"{counts.get('completed', 0) + diverged} of {planned}"]
    parts += [f"{count} {word}" for count, word in ((diverged, "diverged"), (failed, "failed")) if count]
    return ", ".join(parts)


def _document(listed: ListedStudy) -> dict[str, Any]:
    entry, counts = listed.entry, listed.counts
    diverged, failed = counts.get("diverged", 0), sum(counts.get(name, 0) for name in FAILED)
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
        "done": counts.get("completed", 0) + diverged,
        "diverged": diverged,
        "failed": failed,
        "running": counts.get("running", 0) if entry.is_running else 0,
        "holder": entry.holder.get("name", "") if entry.is_running else None,
        "answers": [dict(each) for each in listed.answers],
    }


def _print_table(found: Sequence[ListedStudy]) -> None:
    from rich.table import Table
    from rich.text import Text

    from ablations.engine.environment.console import make_console

    table = Table(box=None, header_style="dim", padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column("study", overflow="fold")
    for name in ("data", "state", "runs", "when"):
        table.add_column(name, no_wrap=True)
    table.add_column("answer", overflow="fold", min_width=20)
    for each in found:
        latest = each.entry.ended or each.entry.started
        row = [each.selector, each.dataset, each.entry.state, runs_in_words(each.planned, each.counts), catalog.format_time(latest)]
        table.add_row(*(Text(printable(text)) for text in (*row, answer_in_a_line(each.answers))))
    console = make_console()
    console.print(table)
    console.print(Text(f"{studies(len(found))}; ablations show NAME has the details.", "dim"))
