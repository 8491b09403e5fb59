"""The command `ablations runs NAME`: one row per run, as a table, CSV or JSON."""

import argparse
from collections.abc import Sequence
from typing import Any

from ablations.engine.cli import options
from ablations.engine.cli.studies import catalog
from ablations.engine.cli.studies.documents import print_csv, print_document
from ablations.engine.cli.studies.reader import Reader, add_reading_options, read, tracking_uri
from ablations.engine.cli.studies.run_rows import RunRow, StoredRuns
from ablations.engine.cli.studies.show_command import stored_runs
from resnet_core.fields import ConfigError

HELP = "list the runs of a study, one row each, as a table, CSV or JSON"
SCHEMA = "ablations-runs/1"
SHORT = 8
"""Number of characters of an ID that the table shows. Other commands accept 6 or more."""

MAX_REASON_CHARACTERS = 60
"""Maximum length of a reason in the table. `--csv` has it whole."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.description = options.fill("List the runs of a study: factors, seed, outcome, metric, training time and run ID.")
    parser.add_argument("name", metavar="NAME", help="study: a name of `ablations list`, NAME@PRESET, or a run ID")
    parser.add_argument("--csv", action="store_true", help="print CSV to standard output")
    parser.add_argument("--trials", action="store_true", help="list the trials of a search as well")
    add_reading_options(parser)


def run(given: argparse.Namespace) -> int:
    """Print the runs; return the exit code."""
    if given.csv and given.json:
        raise ConfigError("--csv, --json: accepted: one of them")
    found, others = read(tracking_uri(given), lambda reader: _find(reader, given.name, trials=given.trials))
    if given.json:
        print_document(_document(found))
    elif given.csv:
        print_csv(*_csv(found))
    else:
        _print_table(found, others)
    return 0


def _find(reader: Reader, name: str, *, trials: bool) -> tuple[StoredRuns, Sequence[str]]:
    entry, others = catalog.find_study(catalog.list_studies(reader), name)
    return stored_runs(reader, entry, trials=trials), others


def _factors(found: StoredRuns) -> list[str]:
    """Return the factors, and the searched fields of trials."""
    return list(dict.fromkeys([*found.design.factors, *(name for row in found.rows for name in row.levels)]))


def _csv(found: StoredRuns) -> tuple[list[str], list[list[Any]]]:
    factors, design = _factors(found), found.design
    columns = [*factors, "seed", "outcome", design.metric.name, "train_seconds", "attempts", "started"]
    columns += ["run_id", "fingerprint", "message"]
    searched = design.search is not None and any(row.trial for row in found.rows)
    columns += ["trial"] if searched else []
    rows = []
    for row in found.rows:
        values = [*(row.levels.get(name) for name in factors), row.seed, row.outcome, row.value, row.seconds, row.attempts]
        values += [catalog.iso_time(row.started), row.run_id, row.fingerprint, row.message]
        rows.append([*values, *([str(row.trial).lower()] if searched else [])])
    return columns, rows


def _document(found: StoredRuns) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "study": found.entry.name,
        "study_run_id": found.entry.run_id,
        "metric": found.design.metric.to_dict(),
        "runs": [_run_document(row) for row in found.rows],
    }


def _run_document(row: RunRow) -> dict[str, Any]:
    return {
        "cell": row.cell,
        "levels": dict(row.levels),
        "seed": row.seed,
        "outcome": row.outcome,
        "value": row.value,
        "seconds": row.seconds,
        "attempts": row.attempts,
        "started": catalog.iso_time(row.started),
        "run_id": row.run_id or None,
        "fingerprint": row.fingerprint,
        "message": row.message,
        "trial": row.trial,
    }


def shorten(message: str) -> str:
    """Return a message as the table shows it, with an ellipsis if its end is left out."""
    return message if len(message) <= MAX_REASON_CHARACTERS else f"{message[: MAX_REASON_CHARACTERS - 1]}…"


def _print_table(found: StoredRuns, others: Sequence[str]) -> None:
    from ablations.engine.analysis import number_format
    from ablations.engine.environment.console import make_console, print_line
    from ablations.engine.report.fitted_table import FittedTable

    metric, factors = found.design.metric, _factors(found)
    values = [row.value for row in found.rows if row.value is not None]
    formats = number_format.ValueFormat(metric, number_format.decimals_for(metric, values))
    reasons = any(row.message for row in found.rows)
    columns = ["seed", "outcome", metric.heading, "seconds", "started", "run", *(["reason"] if reasons else [])]
    table = FittedTable(factors or ["cell"], columns, optional=("reason", "started", "seconds"), elsewhere="see --csv")
    for row in found.rows:
        named = [row.levels.get(name, "") for name in factors] or [row.cell]
        when = catalog.format_time(row.started)
        shown = [str(row.seed), row.outcome, formats.number(row.value), number_format.number(row.seconds, 1), when]
        cells = [*named, *shown, row.run_id[:SHORT], *([shorten(row.message)] if reasons else [])]
        table.add_row([cell or number_format.MISSING for cell in cells])
    console = make_console()
    console.print(table)
    if others:
        print_line(console, f"Other studies of this name: {', '.join(others)}")
