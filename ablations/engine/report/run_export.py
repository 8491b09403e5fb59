"""Export of the runs of a study from MLflow to the files of other experiment trackers."""

import math
import os
import re
import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.utils import mlflow_tags

from ablations.engine.tracking.mlflow_errors import check_experiment
from ablations.engine.tracking.run_queries import current_params, search_runs
from resnet_core.fields import ConfigError, reject

OWN_FIELDS = ("cell", "seed")
"""Tags of a run that are exported beside its parameters."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """A value of a metric."""

    step: int
    value: float
    seconds: float
    """Time at which it was measured, in seconds since 1970."""


@dataclass(frozen=True, kw_only=True)
class ExportedRun:
    """A run of a study as MLflow has it."""

    run_id: str
    group: str
    """Name of the study's run with its data and settings, such as `shortcuts · digits`."""
    name: str
    outcome: str
    params: Mapping[str, bool | float | str]
    """Fields of the run that have a value, with `cell` and `seed`."""
    metrics: tuple[str, ...]
    client: MlflowClient

    def history(self) -> dict[str, list[Point]]:
        """Return all values of each metric, by step."""
        found = {}
        for name in self.metrics:
            values = self.client.get_metric_history(self.run_id, name)
            points = {each.step: Point(step=each.step, value=each.value, seconds=each.timestamp / 1000) for each in values}
            found[name] = [points[step] for step in sorted(points)]
        return found


def read_runs(client: MlflowClient, study: str, preset: str | None, studies: Collection[str] | None = None) -> list[ExportedRun]:
    """Return the runs of a study that have a metric.

    Args:
        client: MLflow.
        study: name of the study.
        preset: preset of the runs; None for all.
        studies: IDs of the study's own runs, one for each data set and setting; None for all.

    Raises:
        ConfigError: MLflow has no such study, or no such run.
    """
    experiment = client.get_experiment_by_name(study)
    check_experiment(client, experiment)
    if experiment is None:
        known = sorted(each.name for each in client.search_experiments() if each.name != "Default")
        raise reject(
            "export", study, f"MLflow has no such study; accepted: {', '.join(known) or 'none, since MLflow has none yet'}"
        )
    parents = {}
    found = []
    for run in search_runs(client, f"tags.study = '{study}'"):
        parent, tags = run.data.tags.get(mlflow_tags.MLFLOW_PARENT_RUN_ID), run.data.tags
        if not parent or not run.data.metrics or "fingerprint" not in tags:
            continue
        if studies is not None and parent not in studies:
            continue
        if parent not in parents:
            parents[parent] = client.get_run(parent)
        if preset in (None, parents[parent].data.tags.get("preset")):
            own = {name: _typed(tags[name]) for name in OWN_FIELDS if name in tags}
            found.append(
                ExportedRun(
                    run_id=run.info.run_id,
                    group=str(parents[parent].info.run_name),
                    name=str(run.info.run_name),
                    outcome=tags.get("outcome", ""),
                    params=own | {name: _typed(text) for name, text in current_params(run).items() if text != "None"},
                    metrics=tuple(sorted(run.data.metrics)),
                    client=client,
                )
            )
    if not found and preset is None:
        raise reject("export", study, "has no run with a metric; accepted: a study of which a run has trained an epoch")
    if not found:
        presets = sorted({each.data.tags.get("preset", "") for each in parents.values()})
        raise reject("--preset", preset, f"{study} has no runs with a metric; accepted: {', '.join(presets) or 'run it first'}")
    return sorted(found, key=lambda each: (each.group, each.name))


def to_tensorboard(runs: Sequence[ExportedRun], folder: Path) -> int:
    """Write a folder with an event file for each run, with its curves and its fields; return the number of values.

    The fields in which runs differ are hyperparameters in TensorBoard's sense.
    """
    from tensorboardX import SummaryWriter
    from tensorboardX.summary import hparams

    count = 0
    varied = _varied(runs)
    for run, path in zip(runs, _paths(runs, folder), strict=True):
        history = run.history()
        with SummaryWriter(logdir=str(path)) as writer:
            fields = {name: run.params[name] for name in varied if name in run.params}
            for summary in hparams(fields, dict.fromkeys(run.metrics, 0.0)):
                writer.file_writer.add_summary(summary)
            for name, points in history.items():
                for point in points:
                    writer.add_scalar(name, point.value, point.step, walltime=point.seconds)
                    count += 1
    return count


def to_wandb(runs: Sequence[ExportedRun], study: str, folder: Path) -> int:
    """Write an offline run of Weights & Biases for each run, which `wandb sync` uploads; return the number of values."""
    import wandb

    os.environ["WANDB_SILENT"] = "true"
    count = 0
    for run in runs:
        settings = wandb.Settings(console="off", x_disable_stats=True, x_disable_meta=True, disable_git=True, save_code=False)
        with wandb.init(
            mode="offline",
            dir=str(folder),
            project=study,
            group=run.group,
            name=run.name,
            id=run.run_id,
            config=dict(run.params),
            settings=settings,
        ) as written:
            by_step: dict[int, dict[str, float]] = {}
            for name, points in run.history().items():
                for point in points:
                    by_step.setdefault(point.step, {})[name] = point.value
                    count += 1
            for step in sorted(by_step):
                written.log(by_step[step], step=step)
    return count


def check_wandb() -> None:
    """Raise ConfigError if the package `wandb` is not installed."""
    try:
        import wandb  # noqa: F401
    except ImportError as error:
        raise ConfigError("--wandb: needs the package wandb, which is not installed; accepted: pip install wandb") from error


def check_new_folder(option: str, folder: Path) -> None:
    """Create a folder; raise ConfigError if it holds anything, since an export adds no run twice, or cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise reject(option, str(folder), "is not empty; accepted: a new or empty folder")
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise reject(option, str(folder), f"cannot be written ({error.strerror or error}); accepted: a folder") from error


def _varied(runs: Iterable[ExportedRun]) -> list[str]:
    """Return the fields in which runs differ."""
    seen: dict[str, set[Any]] = {}
    runs = list(runs)
    for run in runs:
        for name, value in run.params.items():
            seen.setdefault(name, set()).add(value)
    return [name for name, values in seen.items() if len(values) > 1 or name in OWN_FIELDS]


def _paths(runs: Sequence[ExportedRun], folder: Path) -> Iterator[Path]:
    """Yield a folder for each run: group and name, and the run's ID where two are the same."""
    used: set[Path] = set()
    for run in runs:
        path = folder / _file_name(run.group) / _file_name(run.name)
        if path in used:
            path = path.with_name(f"{path.name} {run.run_id[:8]}")
        used.add(path)
        yield path


def _file_name(text: str) -> str:
    return re.sub(r"[^\w.,=+()\[\] -]+", "-", text.replace(" · ", " ")).strip(" .") or "run"


def _typed(text: str) -> bool | float | str:
    """Return a parameter of MLflow, which is text, as a number or truth value if it is one."""
    if text in ("True", "False"):
        return text == "True"
    try:
        number = float(text)
    except ValueError:
        return text
    return number if math.isfinite(number) else text
