"""Which runs are done: MLflow, looked up by fingerprint. There is no other record."""

import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd
from mlflow import MlflowClient
from mlflow.entities import Run as MlflowRun

from ablations.engine.study import Plan
from resnet_core.identity import code_version

PAGE = 1000
PROBES = "probes.csv"
"""Artifact of a run: what its probes saw."""


@dataclass(frozen=True)
class Entry:
    """What MLflow knows of one run."""

    run_id: str
    experiment_id: str
    status: str
    tags: Mapping[str, str]
    metrics: Mapping[str, float]
    """Last value of each metric: that of the final epoch, once the run is done."""

    @property
    def done(self) -> bool:
        return self.status == "FINISHED"

    @property
    def outcome(self) -> str:
        return self.tags.get("outcome", "")

    @property
    def generation(self) -> int:
        return int(self.tags.get("generation", "1"))


def find(client: MlflowClient, plan: Plan) -> dict[str, Entry]:
    """The entry of each of the plan's runs that MLflow knows, whichever study trained it; of repeated ones the newest."""
    # Runs of other code or data cannot match: the server leaves them out.
    where = f"tags.code_version = '{code_version()}' and tags.data_version = '{plan.dataset.version}'"
    wanted = {run.fingerprint for run in plan.runs}
    found: dict[str, Entry] = {}
    for run in search(client, where):
        fingerprint, entry = run.data.tags.get("fingerprint", ""), _entry(run)
        if fingerprint in wanted and entry.generation > (found[fingerprint].generation if fingerprint in found else 0):
            found[fingerprint] = entry
    return found


def curves(client: MlflowClient, plan: Plan, entries: Mapping[str, Entry]) -> pd.DataFrame:
    """Errors of completed runs by epoch: `cell`, `seed`, `epoch`, `quantity`, `value`."""
    rows = []
    for run in plan.runs:
        entry = entries.get(run.fingerprint)
        if entry and entry.outcome == "completed":
            for name in ("train/error", f"{plan.base.data.scored_on}/error"):
                history = client.get_metric_history(entry.run_id, name)
                rows += [(str(run.cell), run.seed, metric.step, name, metric.value) for metric in history]
    return pd.DataFrame(rows, columns=["cell", "seed", "epoch", "quantity", "value"])


def probes(client: MlflowClient, plan: Plan, entries: Mapping[str, Entry]) -> pd.DataFrame:
    """What the probes of completed runs saw: the columns of `resnet_core.probes.Row`, with `cell` and `seed`."""
    frames = []
    with tempfile.TemporaryDirectory() as folder:
        for run in plan.runs:
            entry = entries.get(run.fingerprint)
            if entry and entry.outcome == "completed" and run.spec.probes:
                path = client.download_artifacts(entry.run_id, PROBES, folder)
                frames.append(pd.read_csv(path).assign(cell=str(run.cell), seed=run.seed))
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=["probe"])


def search(client: MlflowClient, where: str) -> Iterable[MlflowRun]:
    """Runs of all studies."""
    experiments = [e.experiment_id for e in _pages(client.search_experiments, max_results=PAGE)]
    return _pages(client.search_runs, experiment_ids=experiments, filter_string=where, max_results=PAGE)


def _pages(query: Any, **arguments: Any) -> Iterable[Any]:
    token = None
    while True:
        page = query(**arguments, page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def _entry(run: MlflowRun) -> Entry:
    return Entry(run.info.run_id, run.info.experiment_id, run.info.status, run.data.tags, run.data.metrics)
