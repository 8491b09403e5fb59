"""The trials of a search, read back from MLflow: its only memory."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from ablations.engine.study.design import SearchDesign
from ablations.engine.study.plan import Run, Trial
from ablations.engine.tracking import run_queries
from ablations.engine.tracking.run_queries import RunRecord
from resnet_core.renamed_fields import current_fields

METRICS = {"validation/error": "error", "validation/loss": "loss", "epoch_seconds": "seconds"}
UNFINISHED_OUTCOMES = ("running", "stopped", "killed", "failed", "oom")
"""Outcomes of trials that the next submission trains."""
COLUMNS = ("cell", "number", "run_id", "outcome", "epochs", "error", "loss", "seconds", "gpu_hours", "flops", "changes", "attempts")


@dataclass(frozen=True, kw_only=True)
class PastTrial:
    """A trial as MLflow has it."""

    cell: str
    """Label of the search's cell."""
    trial: Trial
    record: RunRecord
    epochs: Mapping[int, Mapping[str, float]]
    """By epoch, from 1: `error`, `loss`, `seconds`."""

    @property
    def outcome(self) -> str:
        return "running" if self.record.status == "RUNNING" else self.record.outcome or self.record.status.lower()

    @property
    def seconds(self) -> float:
        """Training time, without that of the trial it branched from."""
        return sum(epoch["seconds"] for number, epoch in self.epochs.items() if number > self.start)

    @property
    def start(self) -> int:
        """Epochs that it has from the trial it branched from."""
        return self.trial.branch[1] if self.trial.branch else 0


def trial_tag_value(run: Run) -> str:
    """What the tag of a trial says. A run that several searches share has one of each."""
    assert run.trial is not None
    number, values, branch = run.trial.number, dict(run.trial.values), run.trial.branch
    return json.dumps({"cell": str(run.cell), "number": number, "values": values, "branch": branch})


def read_trials(client: MlflowClient, search: SearchDesign, training_version_filter: str) -> list[PastTrial]:
    """Return the trials in a search's cells and within its budget that MLflow knows, by cell and number.

    Args:
        training_version_filter: which version of the training counts, from `run_queries.training_version_filter`.
    """
    where = f"tags.`{search.tag}` LIKE '%' and {training_version_filter}"
    where += f" and tags.data_version = '{search.data_version}' and params.seed = '{search.seed}'"
    entries = [run_queries.run_record(run) for run in run_queries.search_runs(client, where)]
    epochs = _epochs(client, entries)
    past = [_past(search.tag, entry, json.loads(entry.tags[search.tag]), epochs.get(entry.run_id, {})) for entry in entries]
    cells = {cell.label for cell in search.cells}
    most = math.inf if search.scheduler == "pbt" else search.trials or math.inf  # an earlier submission may have had more
    found = [each for each in past if each.cell in cells and each.trial.number < most]
    return sorted(found, key=lambda each: (each.cell, each.trial.number))


class SharedTrialLookup:
    """Trials that other searches have trained already. To call it is to make one a trial of this search too."""

    def __init__(self, client: MlflowClient, search: SearchDesign, training_version_filter: str) -> None:
        self.client, self.search = client, search
        where = f"{training_version_filter} and tags.data_version = '{search.data_version}'"
        where += f" and params.seed = '{search.seed}' and attributes.status = 'FINISHED'"
        self._trained = {
            run.data.tags.get("fingerprint", ""): run_queries.run_record(run) for run in run_queries.search_runs(client, where)
        }

    def __call__(self, run: Run) -> PastTrial | None:
        entry = self._trained.get(run.fingerprint)
        if entry is None:
            return None
        try:
            self.client.set_tag(entry.run_id, self.search.tag, trial_tag_value(run))
            return _past(
                self.search.tag, entry, json.loads(trial_tag_value(run)), _epochs(self.client, [entry]).get(entry.run_id, {})
            )
        except MlflowException:
            return None  # trained here: its last checkpoint is there, or it takes the time it takes


def _epochs(client: MlflowClient, entries: Sequence[RunRecord]) -> dict[str, dict[int, dict[str, float]]]:
    """Metrics by run and epoch."""
    epochs: dict[str, dict[int, dict[str, float]]] = {}
    histories = run_queries.metric_histories(client, [entry.run_id for entry in entries], list(METRICS))
    for run_id, metric, epoch, value in histories.itertuples(index=False, name=None):
        epochs.setdefault(run_id, {}).setdefault(epoch, {})[METRICS[metric]] = value
    return epochs


def _past(tag: str, entry: RunRecord, said: Mapping[str, Any], epochs: Mapping[int, Mapping[str, float]]) -> PastTrial:
    branch = tuple(said["branch"]) if said["branch"] else None
    trial = Trial(number=said["number"], tag=tag, values=current_fields(said["values"]), branch=branch)
    whole = {epoch: values for epoch, values in sorted(epochs.items()) if len(values) == len(METRICS)}
    return PastTrial(cell=said["cell"], trial=trial, record=entry, epochs=whole)


def trial_tables(past: Sequence[PastTrial], search: SearchDesign) -> tuple[pd.DataFrame, pd.DataFrame]:
    """`Evidence.trials` and `Evidence.trial_curves`."""
    rows, curves = [], []
    completed = [each.record.metrics for each in past if each.record.completed]
    gpus = max((each["gpu_hours"] / each["train_seconds"] for each in completed if "gpu_hours" in each), default=math.nan)
    for each in past:
        metrics, newest = each.record.metrics, max(each.epochs, default=0)
        last = each.epochs.get(newest, {})
        row: dict[str, Any] = {"cell": each.cell, "number": each.trial.number, "run_id": each.record.run_id}
        row |= {"outcome": each.outcome, "epochs": max(newest - each.start, 0)}
        row |= {"attempts": int(each.record.tags.get("attempts", 0))}
        row |= {"error": last.get("error", math.nan), "loss": last.get("loss", math.nan), "seconds": each.seconds}
        row |= {"gpu_hours": each.seconds * gpus, "flops": metrics.get("flops", math.nan)}
        row |= {"changes": ", ".join(each.trial.values.get("optim.changes", ()))}
        rows.append(row | {name: each.trial.values.get(name) for name in search.fields})
        curves += [
            {"cell": each.cell, "number": each.trial.number, "epoch": epoch, "error": values["error"]}
            for epoch, values in each.epochs.items()
        ]
    columns = [*COLUMNS, *search.fields]
    return pd.DataFrame(rows, columns=columns), pd.DataFrame(curves, columns=["cell", "number", "epoch", "error"])
