"""Traces of a study, as far as they must not depend on what happened while it ran."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import torch
from mlflow import MlflowClient
from mlflow.entities import Metric, Run

from ablations.engine.trial.checkpoints import CheckpointFolder

CLOCKED = {"images_per_second", "epoch_seconds", "peak_memory_mb", "train_seconds", "gpu_hours"}
"""Metrics that differ from one training to the next."""

Found = Counter[tuple[str, ...]]
"""Facts, and how often each is there."""


@dataclass(frozen=True)
class Evidence:
    """Everything that counts of a study, flat: what it is, and how often it is there."""

    found: Found
    logged_at: Sequence[float] = field(compare=False)
    """When epochs were logged first, in seconds since 1970."""

    @classmethod
    def read(cls, home: Path, printed: str) -> "Evidence":
        """Read a home's database, checkpoints and journals, and the table that a submission printed."""
        client = MlflowClient(f"sqlite:///{home}/mlflow.db")
        found: Found = Counter(("journal", path.name) for path in (home / "journals").iterdir())
        runs = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
        histories = {run.info.run_id: _histories(client, run) for run in runs}
        for run in runs:
            found.update(_of_run(run, histories[run.info.run_id]))
        for folder in (home / "checkpoints").iterdir():
            found["checkpoint", folder.name, _digest(folder)] += 1
        found.update(("table", *row) for row in _table(printed))
        return cls(found, sorted(point.timestamp / 1000 for points in histories.values() for point in points))

    def resumed(self, began: Sequence[float]) -> list[float]:
        """Seconds from each submission but the first to its first epoch, where it logged one."""
        spans = list(pairwise((*began, float("inf"))))[1:]
        times = ([at for at in self.logged_at if start <= at < end] for start, end in spans)
        return [logged[0] - start for (start, _), logged in zip(spans, times, strict=True) if logged]

    def lost(self, undisturbed: "Evidence") -> Found:
        """Return what an undisturbed study has and this one has not, or has less often."""
        return undisturbed.found - self.found

    def doubled(self, undisturbed: "Evidence") -> Found:
        """Return what this study has more often than an undisturbed one, or with another value."""
        return self.found - undisturbed.found


def _histories(client: MlflowClient, run: Run) -> list[Metric]:
    """All values of all metrics. The study's own run says the same at the end of each submission: it has none here."""
    # The next process reports an epoch that a killed one had saved but not reported, and has not measured it.
    names = [name for name in run.data.metrics if not name.startswith("system/")] if "fingerprint" in run.data.tags else ()
    return [point for name in names for point in client.get_metric_history(run.info.run_id, name)]


def _of_run(run: Run, history: Sequence[Metric]) -> Found:
    tags = run.data.tags
    name = tags.get("fingerprint", tags["study"])  # the study's own run has no fingerprint
    found: Found = Counter({("run", name, run.info.status, tags.get("outcome", "")): 1})
    found.update(("data set", name, given.dataset.digest) for given in run.inputs.dataset_inputs)
    found.update(("parameter", name, *item) for item in run.data.params.items())
    for point in history:
        found["metric", name, point.key, str(point.step), "" if point.key in CLOCKED else repr(point.value)] += 1
    return found


def _digest(folder: Path) -> str:
    """Return a digest of the final weights."""
    saved = CheckpointFolder(str(folder.parent), folder.name).latest()
    digest = hashlib.sha256()
    for name, value in sorted(saved["model"].items() if saved else ()):
        digest.update(name.encode() + value.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _table(printed: str) -> list[list[str]]:
    """The rows of the table, without its last column: the seconds of a run. Ray's messages may come at any time."""
    lines = (line for line in printed.splitlines() if "(raylet)" not in line)
    header = next((line for line in lines if "s / run" in line), None)
    return [line.split()[:-1] for line in lines if header and not line.startswith(("MLflow:", "Figures:"))]
