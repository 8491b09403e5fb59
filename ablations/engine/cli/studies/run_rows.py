"""The runs of a stored study as rows, and the counts and means of its cells, without pandas."""

import json
import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ablations.engine.cli.studies.catalog import StudyEntry, read_design
from ablations.engine.cli.studies.reader import Reader
from ablations.engine.study.design import Design, DesignCell
from ablations.engine.tracking import run_queries
from ablations.engine.tracking.run_queries import RunRecord

MISSING = "missing"
"""Outcome of a run that MLflow does not have."""
FAILED = ("failed", "oom")
"""Outcomes of runs without a result that ended by themselves."""


@dataclass(frozen=True, kw_only=True)
class RunRow:
    """A run of a study, whether or not MLflow has it."""

    cell: str
    """Label of its cell."""
    levels: Mapping[str, str]
    """Level of each factor; for a trial of a search also the values of the searched fields."""
    seed: int
    """Seed; for a trial of a search its number."""
    fingerprint: str
    outcome: str
    value: float | None
    """Value of the study's metric in the final epoch, or in the last epoch so far; None without one."""
    seconds: float | None
    """Training time."""
    attempts: int
    started: float | None
    """Start, in seconds since 1970."""
    run_id: str
    """ID in MLflow; empty without a run there."""
    message: str
    """Reason why the run has no result; empty if it has one."""
    trial: bool = False
    """True for a trial of a search, whose value is a score on validation data."""

    @property
    def completed(self) -> bool:
        return self.outcome == "completed"


@dataclass(frozen=True, kw_only=True)
class StoredRuns:
    """A study with its design and its runs."""

    entry: StudyEntry
    design: Design
    rows: Sequence[RunRow]

    @property
    def runs(self) -> list[RunRow]:
        """The runs that the study compares, without the trials of a search."""
        return [row for row in self.rows if not row.trial]

    @property
    def planned(self) -> int | None:
        """Number of planned runs; None for an adaptive study that has not ended, since its results decide how many it needs."""
        return None if self.design.seed_looks and self.entry.state != "complete" else len(self.runs)

    @property
    def counts(self) -> dict[str, int]:
        """Number of runs by outcome."""
        return dict(Counter(row.outcome for row in self.runs))


@dataclass(frozen=True, kw_only=True)
class CellRow:
    """A cell of a study with the mean over its completed runs."""

    cell: DesignCell
    planned: int | None
    """Number of planned runs; None in an adaptive study that has not ended."""
    n: int
    """Number of completed runs."""
    mean: float | None
    std: float | None
    """Standard deviation over seeds; None for fewer than two."""
    seconds: float | None
    """Mean training time of the completed runs."""
    outcomes: Mapping[str, int]


def read_runs(reader: Reader, entry: StudyEntry, *, trials: bool = False) -> StoredRuns | None:
    """Return a study with its runs; None if its design cannot be read.

    Args:
        reader: MLflow.
        entry: the study.
        trials: read the trials of a search as well.
    """
    design = read_design(reader, entry)
    if design is None:
        return None
    wanted = {name: cell.data_version for cell in design.cells for name in cell.fingerprints}
    records = run_queries.find_study_runs(reader.client, entry.run_id, wanted)
    rows = [
        _row(entry, design, cell, seed, records.get(name)) for cell in design.cells for seed, name in enumerate(cell.fingerprints)
    ]
    if design.seed_looks:  # the largest number of seeds is an upper bound, and most cells need fewer
        rows = [row for row in rows if row.run_id]
    if design.search and trials:
        rows += _trials(reader, entry, design)
    return StoredRuns(entry=entry, design=design, rows=rows)


def cell_rows(found: StoredRuns) -> list[CellRow]:
    """Return the cells of a study with the means of their completed runs."""
    of_cell: dict[str, list[RunRow]] = {cell.label: [] for cell in found.design.cells}
    for row in found.runs:
        of_cell[row.cell].append(row)
    return [_cell_row(found, cell, of_cell[cell.label]) for cell in found.design.cells]


def _cell_row(found: StoredRuns, cell: DesignCell, rows: Sequence[RunRow]) -> CellRow:
    values = [row.value for row in rows if row.completed and row.value is not None]
    seconds = [row.seconds for row in rows if row.completed and row.seconds is not None]
    return CellRow(
        cell=cell,
        planned=None if found.planned is None else len(rows),
        n=sum(row.completed for row in rows),
        mean=statistics.fmean(values) if values else None,
        std=statistics.stdev(values) if len(values) > 1 else None,
        seconds=statistics.fmean(seconds) if seconds else None,
        outcomes=dict(Counter(row.outcome for row in rows if not row.completed)),
    )


def _row(entry: StudyEntry, design: Design, cell: DesignCell, seed: int, record: RunRecord | None) -> RunRow:
    row: dict[str, Any] = {"cell": cell.label, "levels": cell.levels, "seed": seed, "fingerprint": cell.fingerprints[seed]}
    row |= _of_record(entry, record, design.metric.name)
    if not (record and record.completed):
        row["value"] = None  # that of an epoch before the last is no result
    return RunRow(**row)


def _of_record(entry: StudyEntry, record: RunRecord | None, metric: str) -> dict[str, Any]:
    """Return the values of a row that come from the run in MLflow."""
    if record is None:
        nothing = {"value": None, "seconds": None, "attempts": 0, "started": None}
        return {"outcome": MISSING, **nothing, "run_id": "", "message": ""}
    return {
        "outcome": record.outcome_in(entry.run_id, is_running=entry.is_running),
        "value": _number(record.metrics.get(metric)),
        "seconds": _number(record.metrics.get("train_seconds")),
        "attempts": int(record.tags.get("attempts", 0)),
        "started": record.started_ms / 1000 if record.started_ms else None,
        "run_id": record.run_id,
        "message": "" if record.status == "RUNNING" or record.completed else record.tags.get("message", ""),
    }


def _number(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)


def _trials(reader: Reader, entry: StudyEntry, design: Design) -> list[RunRow]:
    search = design.search
    assert search is not None
    found = []
    for run in run_queries.search_runs(reader.client, f"tags.`{search.tag}` LIKE '%'"):
        record = run_queries.run_record(run)
        content = json.loads(record.tags[search.tag])
        levels = next((cell.levels for cell in search.cells if cell.label == content["cell"]), {})
        row = {"cell": content["cell"], "seed": content["number"], "fingerprint": record.tags.get("fingerprint", "")}
        values = {name: str(value) for name, value in content["values"].items()}
        found.append(RunRow(**row, levels={**levels, **values}, **_of_record(entry, record, search.metric.name), trial=True))
    return sorted(found, key=lambda row: (row.cell, row.seed))
