"""From the ledger's entries to one line per cell."""

import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ablations.engine.ledger import Entry
from ablations.engine.study import Cell, Plan


@dataclass(frozen=True)
class CellSummary:
    """What the seeds of one cell say together. Diverged and missing runs are counted, never averaged."""

    cell: Cell
    planned: int
    """Seeds that the study asks for."""
    test_error: Sequence[float]
    """Final error of each completed run on the images that runs are scored on, in percent."""
    train_error: Sequence[float]
    parameters: int | None
    seconds: float | None
    """Mean training time of a completed run."""
    problems: Mapping[str, int]
    """How many runs diverged, failed, …, or are missing."""

    @property
    def n(self) -> int:
        return len(self.test_error)

    @property
    def without_result(self) -> int:
        """Runs that the study still owes: a diverged run is a result."""
        return self.planned - self.n - self.problems.get("diverged", 0)


def summarise(plan: Plan, entries: Mapping[str, Entry]) -> list[CellSummary]:
    """One summary per cell, in the plan's order. The reported value is that of the final epoch, never the best."""
    scored = f"{plan.base.data.scored_on}/error"
    summaries = []
    for cell in plan.cells:
        of_cell = [entries.get(run.fingerprint) for run in plan.runs if run.cell == cell]
        completed = [e.metrics for e in of_cell if e and e.done and e.outcome == "completed"]
        problems: dict[str, int] = {}
        for entry in of_cell:
            if entry is None or entry.outcome != "completed":
                word = (entry.outcome or entry.status.lower()) if entry else "missing"
                problems[word] = problems.get(word, 0) + 1
        summaries.append(
            CellSummary(
                cell=cell,
                planned=len(of_cell),
                test_error=[metrics[scored] for metrics in completed],
                train_error=[metrics["train/error"] for metrics in completed],
                parameters=int(completed[0]["parameters"]) if completed else None,
                seconds=statistics.fmean(metrics["train_seconds"] for metrics in completed) if completed else None,
                problems=problems,
            )
        )
    return summaries


def mean_and_std(values: Sequence[float]) -> tuple[float | None, float | None]:
    """Mean and sample standard deviation; None where there are too few values for one."""
    mean = statistics.fmean(values) if values else None
    return mean, statistics.stdev(values) if len(values) > 1 else None


def cell_metrics(summaries: Sequence[CellSummary], scored_on: str) -> dict[str, float]:
    """The summaries as MLflow metrics of the parent run: `test_error_mean/shortcut A depth 20`, …"""
    metrics: dict[str, float] = {}
    for summary in summaries:
        # MLflow takes letters, digits, _ - . and spaces in names, not the = and + of a cell.
        cell = re.sub(r"[^\w\-. ]", "", " ".join(f"{name} {level}" for name, level in summary.cell.levels))
        mean, std = mean_and_std(summary.test_error)
        values = {"mean": mean, "std": std, "n": float(summary.n)}
        metrics |= {f"{scored_on}_error_{name}/{cell}": value for name, value in values.items() if value is not None}
    return metrics
