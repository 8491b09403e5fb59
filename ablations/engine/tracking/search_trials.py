"""Trials of a search, read from MLflow, which is the only memory of a search."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from ablations.engine.study.design import SearchDesign
from ablations.engine.study.plan import Run, SearchTrial
from ablations.engine.tracking import run_queries
from ablations.engine.tracking.run_queries import RunRecord
from resnet_core.renamed_fields import current_fields

UNFINISHED_OUTCOMES = ("running", "stopped", "killed", "failed", "oom")
"""Outcomes of trials that the next submission continues."""
COLUMNS = ("cell", "number", "run_id", "outcome", "epochs", "value", "seconds", "gpu_hours", "flops", "changes", "attempts")


@dataclass(frozen=True, kw_only=True)
class PastTrial:
    """A trial of a search, as MLflow has it."""

    cell: str
    """Label of the cell that is searched."""
    trial: SearchTrial
    record: RunRecord
    epochs: Mapping[int, Mapping[str, float]]
    """`value` (of the search's metric) and `seconds` by epoch, from 1."""

    @property
    def outcome(self) -> str:
        return "running" if self.record.status == "RUNNING" else self.record.outcome or self.record.status.lower()

    @property
    def seconds(self) -> float:
        """Training time in seconds, excluding epochs taken over from the trial from which this one branched."""
        return sum(epoch["seconds"] for number, epoch in self.epochs.items() if number > self.start)

    @property
    def start(self) -> int:
        """Number of epochs taken over from the trial from which this one branched."""
        return self.trial.branch[1] if self.trial.branch else 0


def trial_tag_value(run: Run) -> str:
    """Return the value of the tag that makes a run a trial of a search. A run that several searches share has one tag for each."""
    assert run.trial is not None
    number, values, branch = run.trial.number, dict(run.trial.values), run.trial.branch
    return json.dumps({"cell": str(run.cell), "number": number, "values": values, "branch": branch})


def read_trials(client: MlflowClient, search: SearchDesign, training_version_filter: str) -> list[PastTrial]:
    """Return the trials of a search that MLflow has, within its cells and its budget, sorted by cell and number.

    Args:
        client: MLflow client.
        search: the search.
        training_version_filter: filter of the training code that counts, from `run_queries.training_version_filter`.
    """
    where = f"tags.`{search.tag}` LIKE '%' and {training_version_filter}"
    where += f" and tags.data_version = '{search.data_version}' and params.seed = '{search.seed}'"
    records = [run_queries.run_record(run) for run in run_queries.search_runs(client, where)]
    epochs = _epochs(client, records, search)
    past = [
        _past_trial(search.tag, record, json.loads(record.tags[search.tag]), epochs.get(record.run_id, {})) for record in records
    ]
    cells = {cell.label for cell in search.cells}
    most = math.inf if search.scheduler == "pbt" else search.trials or math.inf  # earlier budgets may have been larger
    found = [each for each in past if each.cell in cells and each.trial.number < most]
    return sorted(found, key=lambda each: (each.cell, each.trial.number))


class SharedTrialLookup:
    """Finished trials of other searches, which this one can adopt instead of training them again."""

    def __init__(self, client: MlflowClient, search: SearchDesign, training_version_filter: str) -> None:
        self.client, self.search = client, search
        where = f"{training_version_filter} and tags.data_version = '{search.data_version}'"
        where += f" and params.seed = '{search.seed}' and attributes.status = 'FINISHED'"
        self._trained = {
            run.data.tags.get("fingerprint", ""): run_queries.run_record(run) for run in run_queries.search_runs(client, where)
        }

    def adopt(self, run: Run) -> PastTrial | None:
        """Make a run that another search has trained a trial of this search; return None if there is no such run."""
        record = self._trained.get(run.fingerprint)
        if record is None:
            return None
        try:
            self.client.set_tag(record.run_id, self.search.tag, trial_tag_value(run))
            return _past_trial(
                self.search.tag,
                record,
                json.loads(trial_tag_value(run)),
                _epochs(self.client, [record], self.search).get(record.run_id, {}),
            )
        except MlflowException:
            return None  # this search then trains it again, which costs only time


def _epochs(client: MlflowClient, records: Sequence[RunRecord], search: SearchDesign) -> dict[str, dict[int, dict[str, float]]]:
    """Return `value` and `seconds` by run ID and epoch."""
    names = {search.metric.name: "value", "epoch_seconds": "seconds"}
    epochs: dict[str, dict[int, dict[str, float]]] = {}
    histories = run_queries.metric_histories(client, [record.run_id for record in records], list(names))
    for run_id, metric, epoch, value in histories.itertuples(index=False, name=None):
        epochs.setdefault(run_id, {}).setdefault(epoch, {})[names[metric]] = value
    return epochs


def _past_trial(tag: str, record: RunRecord, content: Mapping[str, Any], epochs: Mapping[int, Mapping[str, float]]) -> PastTrial:
    """Return a trial from its run and the parsed content of its tag, leaving out epochs with incomplete metrics."""
    branch = tuple(content["branch"]) if content["branch"] else None
    trial = SearchTrial(number=content["number"], tag=tag, values=current_fields(content["values"]), branch=branch)
    whole = {epoch: values for epoch, values in sorted(epochs.items()) if values.keys() == {"value", "seconds"}}
    return PastTrial(cell=content["cell"], trial=trial, record=record, epochs=whole)


def trial_tables(
    past: Sequence[PastTrial], search: SearchDesign, outcome: Callable[[RunRecord], str]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return trials as `Evidence.trials` and `Evidence.trial_curves`; `outcome` returns that of a record."""
    rows, curves = [], []
    completed = [each.record.metrics for each in past if each.record.completed]
    gpus = max((each["gpu_hours"] / each["train_seconds"] for each in completed if "gpu_hours" in each), default=math.nan)
    for each in past:
        metrics, newest = each.record.metrics, max(each.epochs, default=0)
        last = each.epochs.get(newest, {})
        row: dict[str, Any] = {"cell": each.cell, "number": each.trial.number, "run_id": each.record.run_id}
        row |= {"outcome": outcome(each.record), "epochs": max(newest - each.start, 0)}
        row |= {"attempts": int(each.record.tags.get("attempts", 0))}
        row |= {"value": last.get("value", math.nan), "seconds": each.seconds}
        row |= {"gpu_hours": each.seconds * gpus, "flops": metrics.get("flops", math.nan)}
        row |= {"changes": ", ".join(each.trial.values.get("optim.changes", ()))}
        rows.append(row | {name: each.trial.values.get(name) for name in search.fields})
        curves += [
            {"cell": each.cell, "number": each.trial.number, "epoch": epoch, "value": values["value"]}
            for epoch, values in each.epochs.items()
        ]
    columns = [*COLUMNS, *search.fields]
    return pd.DataFrame(rows, columns=columns), pd.DataFrame(curves, columns=["cell", "number", "epoch", "value"])
