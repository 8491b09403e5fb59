"""Replay: train a finished run again from its record in MLflow, and compare the results."""

import re
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Run as MlflowRun
from mlflow.exceptions import MlflowException
from pyarrow import fs
from rich.console import Console

from ablations.engine.analysis.reproducibility import Training, compare_trainings, environment_changes
from ablations.engine.environment import paths
from ablations.engine.environment.console import make_console, print_line
from ablations.engine.environment.provenance import git_state
from ablations.engine.environment.storage import check_storage, make_storage, open_storage
from ablations.engine.scheduling import gpu_choice
from ablations.engine.scheduling.capacity import RunResources, starts_local_ray
from ablations.engine.task.metric import error_metric
from ablations.engine.tracking import run_queries
from ablations.engine.tracking.connection import connect, is_new_database
from ablations.engine.tracking.mlflow_errors import describe_error
from ablations.engine.trial.job import PROCESS_TAG, Job
from resnet_core import RunSpec, fingerprint, override
from resnet_core.data.datasets import Dataset, load_dataset
from resnet_core.fields import ConfigError, reject
from resnet_core.identity import IN_DATA_VERSION, NOT_IDENTITY, TRAINING_VERSION, code_version
from resnet_core.overrides import from_flat

RUN_NAME = re.compile("[0-9a-f]{6,32}")
"""The ID of a run or its fingerprint, or at least the first 6 characters."""
PROGRESS_INTERVAL_SECONDS = 5.0
"""Minimum time between two lines of progress, in seconds."""


@dataclass(frozen=True, kw_only=True)
class ReplayRequest:
    """A run to train again, and the resources to use."""

    run: str
    """ID of the run in MLflow, or its fingerprint, or at least the first 6 characters of either."""
    tracking_uri: str
    data_root: str | None = None
    """Folder of the data; None: the folder from which the recorded run read them."""
    cpus_per_worker: float = 1.0
    """CPUs of each worker."""
    gpus_per_worker: float | None = None
    """GPUs of each worker; below 1, runs share a GPU. None: as the recorded run, whose kind of device is used if there is one."""
    download: bool = False
    """True if missing data may be downloaded."""
    storage: str = field(default_factory=paths.default_storage)
    """Storage for checkpoints, in a folder that is removed at the end."""


@dataclass(frozen=True, kw_only=True)
class RecordedRun:
    """A finished run as MLflow has it."""

    run_id: str
    tags: Mapping[str, str]
    spec: RunSpec
    training: Training
    on_gpu: bool
    replicate_values: tuple[float, ...]
    """Final values of all completed replicates of the run, which differ in the seed only, including its own."""


def replay(request: ReplayRequest) -> int:
    """Train a run again without writing to MLflow, and print how the result compares.

    Returns:
        The exit code: 0 if the result is equal or within seed noise, 1 if it differs or cannot be compared.

    Raises:
        ConfigError: the run does not exist, has not finished, or cannot be trained here.
    """
    console = make_console()
    try:
        recorded = _read_recorded_run(request)
        dataset = _dataset(recorded, download=request.download)
        tags = recorded.tags
        print_line(console, f"replay of {tags['mlflow.runName']}, fingerprint {tags['fingerprint']}, run {recorded.run_id}")
        if tags.get("training_version") != str(TRAINING_VERSION):
            by = f"version {tags['training_version']}" if "training_version" in tags else "an earlier version"
            print_line(console, f"trained by {by} of the training code, not {TRAINING_VERSION}: results may differ")
        listener = _Listener(console, recorded, dataset)
        _train(recorded, request, listener)
    except KeyboardInterrupt:
        print_line(console, "interrupted: this replay has no result")
        return 1
    same, lines = compare_trainings(
        recorded.training, listener.training, recorded.replicate_values, error_metric(recorded.spec.data.evaluation_split)
    )
    versions = {"training_version": str(TRAINING_VERSION), "code_version": code_version()}
    conditions = {name: value for name, value in listener.conditions.items() if name != PROCESS_TAG}
    here = {**versions, **conditions, "git.commit": _commit(git_state())}
    for line in (*lines, environment_changes({**tags, "git.commit": _commit(tags)}, here)):
        print_line(console, line)
    return 0 if same else 1


def find_run(client: MlflowClient, named: str) -> MlflowRun:
    """Return the finished run with this ID or fingerprint, or with these first characters, in its latest generation.

    Raises:
        ConfigError: there is no such run, or more than one, or it has not finished.
    """
    if not RUN_NAME.fullmatch(named):
        raise reject("run", named, "accepted: a run ID or a fingerprint, or at least its first 6 characters")
    fields = ("attributes.run_id", "tags.fingerprint")
    found = [run for name in fields for run in run_queries.search_runs(client, f"{name} LIKE '{named}%'")]
    fingerprints = sorted({run.data.tags.get("fingerprint", "") for run in found})
    if not found:
        raise reject("run", named, "MLflow has no such run")
    if fingerprints == [""]:
        raise reject("run", named, "is a study; accepted: one of its runs")
    if len(fingerprints) > 1:
        raise reject("run", named, f"ambiguous; accepted: {', '.join(filter(None, fingerprints))}")
    run = max(found, key=_generation)
    if run.info.status != "FINISHED":
        raise reject("run", named, f"has no result to compare with, it is {run.info.status.lower()}")
    return run


def _generation(run: MlflowRun) -> int:
    return int(run.data.tags.get("generation", "1"))


def _read_recorded_run(request: ReplayRequest) -> RecordedRun:
    uri = request.tracking_uri
    if is_new_database(uri):
        raise reject("--tracking-uri", uri, "the database does not exist")
    try:
        client = connect(uri)
        run = find_run(client, request.run)
        if run.data.tags.get("task") or "-" in run.data.tags.get("training_version", ""):
            raise reject("run", request.run, "was trained by a network or task of one's own; accepted: --rerun on its study file")
        spec = read_spec(run)
        if spec.data.name == "own":
            raise reject("run", request.run, "was trained on images of a reader of one's own; accepted: --rerun on its study file")
        if request.data_root is not None:
            spec = override(spec, {"data.root": request.data_root})
        epochs: dict[int, dict[str, float]] = {}
        for name in compared_metrics(spec):
            for metric in client.get_metric_history(run.info.run_id, name):
                epochs.setdefault(metric.step, {})[name] = metric.value
        values = replicate_values(client, run, error_metric(spec.data.evaluation_split).name)
    except MlflowException as error:
        raise reject("--tracking-uri", uri, describe_error(error)) from error
    tags = run.data.tags
    return RecordedRun(
        run_id=run.info.run_id,
        tags=tags,
        spec=spec,
        training=Training(tags["outcome"], epochs),
        on_gpu=run.data.metrics.get("gpu_hours", 0) > 0,
        replicate_values=values,
    )


def read_spec(run: MlflowRun) -> RunSpec:
    """Return the specification of a run.

    Raises:
        ConfigError: this code cannot read it, or it does not match the run's fingerprint.
    """
    tags, defaults, texts = run.data.tags, RunSpec().flat(), dict(run.data.params)
    for name in texts:
        if isinstance(defaults.get(name), tuple):  # MLflow has the text that Python prints for a tuple: ('responses',)
            texts[name] = texts[name].replace("'", "")
    try:
        spec = from_flat(texts)
    except ConfigError as error:
        raise reject("run", run.info.run_id, f"this version of the code cannot read its specification ({error})") from error
    unaltered = fingerprint(spec, data_version=tags["data_version"]) == tags["fingerprint"]
    if tags.get("training_version") == str(TRAINING_VERSION) and not unaltered:
        raise reject("run", run.info.run_id, "its parameters in MLflow do not match its fingerprint")
    return spec


def compared_metrics(spec: RunSpec) -> tuple[str, ...]:
    """Return the names of the metrics to compare in each epoch."""
    return tuple(f"{images}/{quantity}" for images in ("train", spec.data.evaluation_split) for quantity in ("loss", "error"))


def replicate_values(client: MlflowClient, run: MlflowRun, scored: str) -> tuple[float, ...]:
    """Return the final values of all completed runs that differ in the seed only, each in its latest generation."""
    tags = run.data.tags
    where = run_queries.training_version_filter(tags.get("training_version", ""), tags["code_version"])
    where += f" and tags.data_version = '{tags['data_version']}'"
    where += " and tags.outcome = 'completed' and attributes.status = 'FINISHED'"
    wanted = _params_without_seed(run)
    found = [other for other in run_queries.search_runs(client, where) if _params_without_seed(other) == wanted]
    newest = {other.data.tags["fingerprint"]: other for other in sorted(found, key=_generation)}
    newest[tags["fingerprint"]] = run
    return tuple(other.data.metrics[scored] for other in newest.values() if other.data.tags["outcome"] == "completed")


def _params_without_seed(run: MlflowRun) -> dict[str, str]:
    left_out = ("seed", *NOT_IDENTITY, *IN_DATA_VERSION)
    return {name: text for name, text in run_queries.current_params(run).items() if name not in left_out}


def _dataset(recorded: RecordedRun, *, download: bool) -> Dataset:
    data, wanted = recorded.spec.data, recorded.tags["data_version"]
    dataset = load_dataset(data, paths.data_cache(), download=download)
    if dataset.version != wanted:
        accepted = f"accepted: data of the recorded version {wanted}; these have version {dataset.version}"
        raise reject("data.root", data.root or data.name, accepted)
    return dataset


class _Listener:
    """A `run_queue.RunListener` that stores the results."""

    def __init__(self, console: Console, recorded: RecordedRun, dataset: Dataset) -> None:
        spec = recorded.spec
        self.console, self.names, self.evaluation_split = console, compared_metrics(spec), spec.data.evaluation_split
        self.total_epochs = spec.optim.total_epochs(len(dataset.train.labels))
        self.epochs: dict[int, dict[str, float]] = {}
        self.training = Training("", self.epochs)
        self.conditions: Mapping[str, str] = {}
        self.printed_at = -PROGRESS_INTERVAL_SECONDS

    halted = False

    def must_stop(self, fingerprint: str, report: Mapping[str, Any]) -> bool:
        return False

    def started(self, fingerprint: str) -> None: ...

    def reported(self, fingerprint: str, report: Mapping[str, Any]) -> None:
        if "outcome" in report:
            self.training = Training(report["outcome"], self.epochs, report.get("message", ""))
        elif "restart" in report:
            self.crashed(fingerprint, report["restart"], outcome=None)
        else:
            if "note" in report:
                print_line(self.console, report["note"])
            self.conditions = report["conditions"]
            self.epochs[report["epoch"]] = metrics = {name: report["metrics"][name] for name in self.names}
            if time.monotonic() > self.printed_at + PROGRESS_INTERVAL_SECONDS:
                errors = ", ".join(
                    f"{images} error {metrics[f'{images}/error']:.2f} %" for images in ("train", self.evaluation_split)
                )
                print_line(self.console, f"epoch {report['epoch']} of {self.total_epochs}: {errors}")
                self.printed_at = time.monotonic()

    def crashed(self, fingerprint: str, reason: str, *, outcome: str | None) -> None:
        if outcome:
            self.training = Training(outcome, self.epochs, reason)
        else:
            print_line(self.console, f"{reason}; the run continues from its last checkpoint")


def _train(recorded: RecordedRun, request: ReplayRequest, listener: _Listener) -> None:
    """Train the run as a study does; raise KeyboardInterrupt if interrupted."""
    from ablations.engine.scheduling import connection, tune_runner  # imports Ray, which only a valid request needs

    worker = RunResources(workers=recorded.spec.world_size, cpus_per_worker=request.cpus_per_worker)
    gpus = requested_gpus(recorded, request)
    if starts_local_ray():
        gpu_choice.choose_resources(worker, gpus, gpu_choice.this_machine()).resources.check_machine()
    check_storage(request.storage)
    connection.connect()
    choice = gpu_choice.choose_resources(worker, gpus, gpu_choice.joined_cluster())
    if choice.reason:
        print_line(listener.console, choice.describe())
    needs = choice.resources
    needs.check()
    connection.check_reachable("--storage", request.storage)
    make_storage(request.storage)
    with _temporary_folder(request.storage) as folder:
        job = Job(
            fingerprint=recorded.tags["fingerprint"],
            spec=recorded.spec.flat(),
            data_version=recorded.tags["data_version"],
            folder=folder,
            storage=request.storage,
            cache=str(paths.data_cache()),
            download=request.download,
            cpus_per_worker=needs.cpus_per_worker,
            gpus_per_worker=needs.gpus_per_worker,
        )
        tune_runner.train_runs([job], needs, max_concurrent=None, listener=listener, scratch=paths.home() / "tune")
    if not listener.training.outcome:
        raise KeyboardInterrupt


def requested_gpus(recorded: RecordedRun, request: ReplayRequest) -> float | None:
    """Return the GPUs of each worker; None: a GPU if there is one. Unless requested, a run that trained on CPUs gets none."""
    return request.gpus_per_worker if request.gpus_per_worker is not None or recorded.on_gpu else 0.0


@contextmanager
def _temporary_folder(storage: str) -> Iterator[str]:
    """Yield the name of a new folder in the storage, which is removed at the end."""
    name = f"replay-{uuid.uuid4().hex}"
    try:
        yield name
    finally:
        files, root, _ = open_storage(storage)
        if files.get_file_info(f"{root}/{name}").type is not fs.FileType.NotFound:
            files.delete_dir(f"{root}/{name}")


def _commit(tags: Mapping[str, str]) -> str:
    return tags["git.commit"][:12] + {"true": " with changes"}.get(tags["git.dirty"], "")
