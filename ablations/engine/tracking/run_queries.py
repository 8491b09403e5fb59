"""Queries for runs in MLflow, by fingerprint. MLflow is the only record of which runs are done."""

import gc
import math
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd
    from mlflow import MlflowClient
    from mlflow.entities import Run as MlflowRun

from ablations.engine.study.design import Design
from ablations.engine.study.designs import FACTORIAL
from ablations.engine.study.plan import Plan
from ablations.engine.tracking import mlflow_internals
from resnet_core.fields import ConfigError
from resnet_core.renamed_fields import current_fields

ReadingClient = Any
"""An `MlflowClient`, or another object with its methods `search_experiments` and `search_runs`, such as `QuickClient`."""
PAGE_SIZE = 1000
"""Number of runs in one page of a search."""
MIN_RUNS_READ = 100
"""Minimum number of runs to read in one lookup."""
RUNS_READ_PER_LOOKUP = 2
"""Number of runs to read per run that is looked up. A server on SQLite needs 5 ms for a run in a large page, and 28 ms for a
request that returns a single run."""
MAX_COMPLETED_RUNS = 1000
"""Maximum number of runs, newest first, from which the duration of others is estimated."""
MAX_SINGLE_LOOKUPS = 50
"""Maximum number of runs that are looked up by a request each, rather than by reading the newest runs on the same data."""
PARENT_TAG = "mlflow.parentRunId"
"""MLflow's tag of a run: ID of its parent, the study's own run."""
DESIGN_ARTIFACT = "design.json"
"""Artifact of a study's run: the design that was last submitted."""
DESIGN_TAG = "design"
"""Tag of a study's run: hash of that design."""
SUMMARY_TAG = "summary"
"""Tag of a study's run: what its latest report says, as `findings_json.summary` returns it."""
REPORT_TAG = "report"
"""Tag of a study's run: what its report covers. In the report of a study that runs, it is the progress, `12 of 24 runs`."""
WHOLE = "whole"
"""Value of that tag if the report covers the completed study."""
EARLIER = "of an earlier submission"
"""Value of that tag if the study was since submitted with another design, which has no report yet."""
KIND_TAG = "design_kind"
"""Tag of a study's run: kind of that design; runs of earlier versions, which were all factorial, lack it."""
STOP_TAG, STOPPED_TAG = "stop", "stopped"
"""Tag that asks a running study or run to stop, and the tag that says who asked and when. The value of `stop` names who or why."""
PROBES_ARTIFACT = "probes.csv"
"""Artifact of a run: the measurements of its probes."""
PREDICTIONS_ARTIFACT = "predictions.npz"
"""Artifact of a run: its predictions on the test set, as `Predictions.to_bytes` returns them."""
PREDICTIONS_TAG = "predictions"
"""Tag of runs that have this artifact: its name. Reports send no request for the others."""


@dataclass(frozen=True)
class RunRecord:
    """One run as MLflow has it."""

    run_id: str
    experiment_id: str
    status: str
    tags: Mapping[str, str]
    params: Mapping[str, str]
    metrics: Mapping[str, float]
    """Last value of each metric. For a finished run, this is the value of the final epoch."""
    artifact_uri: str = ""
    """Address of its artifacts, so that reading one takes no further query."""
    started_ms: int | None = None
    """Start, in milliseconds since 1970; None if it is not known."""

    @property
    def has_result(self) -> bool:
        return self.status == "FINISHED"

    @property
    def outcome(self) -> str:
        return self.tags.get("outcome", "")

    @property
    def completed(self) -> bool:
        return self.has_result and self.outcome == "completed"

    def outcome_in(self, study_run_id: str, *, is_running: bool) -> str:
        """Return the outcome of the latest attempt, as a study shows it whose own run has this ID.

        It is `running` whatever the outcome of an earlier attempt, and `interrupted` where the study, which is not running, was
        killed before it could record an end.
        """
        if self.status != "RUNNING":
            return self.outcome or self.status.lower()
        is_own = self.tags.get(PARENT_TAG) == study_run_id  # otherwise another study trains it
        return "interrupted" if is_own and not is_running else "running"

    @property
    def generation(self) -> int:
        return int(self.tags.get("generation", "1"))


@dataclass(frozen=True, kw_only=True)
class CompletedRun:
    """A completed run of any study. It serves as a measurement of training time."""

    spec: Mapping[str, str]
    """Its flattened `RunSpec`, as text."""
    train_examples: int
    """Number of training examples; 0 if it is not known."""
    seconds: float
    """Duration of training and tests, in seconds."""
    device: str
    on_gpu: bool
    peak_memory_mb: float | None = None
    """Peak memory of a worker, in MiB: on a GPU, what PyTorch reserved there. None if it was not recorded."""


def find_plan_runs(client: ReadingClient, plan: Plan) -> dict[str, RunRecord]:
    """Return the plan's runs that MLflow has, from any study, by fingerprint. The latest generation of a run counts."""
    return find_by_fingerprint(client, {run.fingerprint: plan.dataset_for_run(run).version for run in plan.runs})


def find_by_fingerprint(client: ReadingClient, wanted: Mapping[str, str]) -> dict[str, RunRecord]:
    """Return the runs that MLflow has, by fingerprint.

    Args:
        wanted: data version by fingerprint.
    """
    found: dict[str, RunRecord] = {}
    for data in dict.fromkeys(wanted.values()):
        found |= _find(client, {fingerprint for fingerprint, version in wanted.items() if version == data}, data)
    return found


def _find(client: ReadingClient, wanted: Set[str], data: str) -> dict[str, RunRecord]:
    """Return runs by fingerprint, among those trained on one version of the data."""
    # Read the newest runs on the same data first, then send one request for each run that is not among them. The cost of a small
    # study therefore depends on its own runs, not on all runs that MLflow has.
    enough = max(MIN_RUNS_READ, RUNS_READ_PER_LOOKUP * len(wanted))
    like_these = search_runs(client, f"tags.data_version = '{data}'", page=min(PAGE_SIZE, enough))
    found = _newest(islice(like_these, enough), wanted)
    rest = wanted - found.keys()
    if rest and next(like_these, None) is not None:
        found |= _newest((run for one in rest for run in search_runs(client, f"tags.fingerprint = '{one}'")), rest)
    return found


def find_study_runs(client: ReadingClient, study_run_id: str, wanted: Mapping[str, str]) -> dict[str, RunRecord]:
    """Return the runs of a study that MLflow has, by fingerprint, at a cost that does not depend on other studies.

    Args:
        client: MLflow client.
        study_run_id: ID of the study's own run, whose children most of the runs are.
        wanted: data version by fingerprint.
    """
    if getattr(client, "filters_by_several_values", False):
        names, found = sorted(wanted), dict[str, RunRecord]()
        for start in range(0, len(names), PAGE_SIZE):
            some = ", ".join(f"'{name}'" for name in names[start : start + PAGE_SIZE])
            found |= _newest(search_runs(client, f"tags.fingerprint IN ({some})"), wanted.keys())
        return found
    found = _newest(search_runs(client, f"tags.`{PARENT_TAG}` = '{study_run_id}'"), wanted.keys())
    rest = {name: version for name, version in wanted.items() if name not in found}
    if len(rest) > MAX_SINGLE_LOOKUPS:
        return found | find_by_fingerprint(client, rest)
    return found | _newest((run for name in rest for run in search_runs(client, f"tags.fingerprint = '{name}'")), rest.keys())


def training_version_filter(training_version: str, code_version: str) -> str:
    """Return the MLflow filter of runs that were trained by one version of the training code.

    Runs from before 2026-11-27 have no `training_version`; the hash of the sources identifies their training code.
    """
    return f"tags.training_version = '{training_version}'" if training_version else f"tags.code_version = '{code_version}'"


def _newest(runs: "Iterable[MlflowRun]", wanted: Set[str]) -> dict[str, RunRecord]:
    """Return the latest generation of each wanted run, by fingerprint."""
    found: dict[str, RunRecord] = {}
    for run in runs:
        fingerprint, record = run.data.tags.get("fingerprint", ""), run_record(run)
        if fingerprint in wanted and record.generation > (found[fingerprint].generation if fingerprint in found else 0):
            found[fingerprint] = record
    return found


def with_result(known: Mapping[str, RunRecord]) -> dict[str, RunRecord]:
    """Return the runs that have a result."""
    return {fingerprint: record for fingerprint, record in known.items() if record.has_result}


def completed_runs(client: ReadingClient, plan: Plan) -> Iterable[CompletedRun]:
    """Yield the newest completed runs of all studies with a plan's task, at most `MAX_COMPLETED_RUNS` for each data set.

    Runs of a network of the user's own count only for the same code: two networks may have equal fields.
    """
    workload = plan.workload
    code = _own_code(workload.training_version)
    for version, examples in {each.version: workload.training_examples(each) for each in plan.data.values()}.items():
        where = f"tags.data_version = '{version}' and tags.outcome = 'completed' and attributes.status = 'FINISHED'"
        where += f" and tags.task = '{workload.task_name}'" if workload.task_name else ""
        comparable = (run for run in search_runs(client, where) if _is_comparable(run.data.tags, workload.task_name, code))
        for run in islice(comparable, MAX_COMPLETED_RUNS):
            metrics, tags = run.data.metrics, run.data.tags
            if "train_seconds" in metrics:
                yield CompletedRun(
                    spec=current_params(run),
                    train_examples=examples,
                    seconds=metrics["train_seconds"],
                    device=tags.get("device", ""),
                    on_gpu=metrics.get("gpu_hours", 0) > 0,
                    peak_memory_mb=metrics.get("peak_memory_mb"),
                )


def _is_comparable(tags: Mapping[str, str], task: str, code: str) -> bool:
    """Return whether a run is of a task and of a user's network with this hash."""
    return tags.get("task", "") == task and _own_code(tags.get("training_version") or tags.get("code_version", "")) == code


def _own_code(training_version: str) -> str:
    """Return the hash of the user's network in a training version of image classification; empty for one of `resnet_core`."""
    return training_version.partition("-")[2]


def find_design(
    client: "MlflowClient",
    study: str,
    preset: str,
    shared: Mapping[str, Any],
    *,
    kind: str = FACTORIAL,
    defaults: Mapping[str, Any] = MappingProxyType({}),
    whole: bool = False,
) -> tuple[str, Design]:
    """Return the ID of a study's own run in MLflow and the design that was last submitted for it.

    Args:
        client: MLflow client.
        study: name of the study.
        preset: name of its preset.
        shared: settings to match: `Plan.shared_fields()` or a part of it. The newest match counts.
        kind: kind of its design.
        defaults: default of every field. A study that was submitted before a field existed has its default.
        whole: reject runs that have further shared settings.

    Raises:
        ConfigError: there is no such run.
        DeletedInMlflow: the study's experiment was deleted.
    """
    from ablations.engine.tracking.mlflow_errors import check_experiment

    experiment = client.get_experiment_by_name(study)
    check_experiment(client, experiment)
    where = f"tags.study = '{study}' and tags.preset = '{preset}'"
    runs = _pages(client.search_runs, experiment_ids=[experiment.experiment_id], filter_string=where) if experiment else ()
    wanted = {name: str(value) for name, value in shared.items()}
    texts = {name: str(value) for name, value in defaults.items()}
    others = set()
    for run in runs:
        params = current_params(run)
        same = all(params.get(name, texts.get(name)) == value for name, value in wanted.items())
        if DESIGN_TAG in run.data.tags and same and not (whole and params.keys() - wanted.keys()):
            if (its_kind := run.data.tags.get(KIND_TAG, FACTORIAL)) != kind:
                others.add(its_kind)
                continue
            with tempfile.TemporaryDirectory() as folder:
                path = client.download_artifacts(run.info.run_id, DESIGN_ARTIFACT, folder)
                return str(run.info.run_id), Design.from_json(Path(path).read_text(encoding="utf-8"))
    design = f" as {kind}; accepted: --design {' or '.join(sorted(others))}" if others else ""
    raise ConfigError(
        f"--report: MLflow has no study {study} with preset {preset} and these settings{design or '; submit it first'}"
    )


def metric_histories(client: "MlflowClient", run_ids: Sequence[str], metrics: Sequence[str]) -> "pd.DataFrame":
    """Return metrics of many runs by epoch, with columns `run_id`, `metric`, `epoch` and `value`.

    MLflow's public API returns one metric of one run per request, so a faster private way is tried first.
    """
    import pandas as pd

    rows = mlflow_internals.read_histories(client.tracking_uri, run_ids, metrics)
    if rows is None:
        rows = [
            (run_id, name, metric.step, metric.value)
            for run_id in run_ids
            for name in metrics
            for metric in client.get_metric_history(run_id, name)
            if not math.isnan(metric.value)
        ]
    return pd.DataFrame(rows, columns=["run_id", "metric", "epoch", "value"]).drop_duplicates(["run_id", "metric", "epoch"])


def search_runs(client: ReadingClient, where: str, page: int = PAGE_SIZE) -> "Iterator[MlflowRun]":
    """Yield the runs of all studies that match an MLflow filter, the latest start first."""
    experiments = [e.experiment_id for e in _pages(client.search_experiments, max_results=PAGE_SIZE)]
    return _pages(client.search_runs, experiment_ids=experiments, filter_string=where, max_results=page)


def _pages(query: Any, **arguments: Any) -> Iterator[Any]:
    token = None
    while True:
        with _without_garbage_collection():
            page = query(**arguments, page_token=token)
        yield from page
        token = page.token
        if not token:
            return


@contextmanager
def _without_garbage_collection() -> Iterator[None]:
    """Suspend Python's garbage collector.

    MLflow creates a hundred small objects for each run. Scanning them repeatedly takes three quarters of the time of a read.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def run_record(run: "MlflowRun") -> RunRecord:
    """Return a run of MLflow's client as a plain record."""
    info, tags, metrics = run.info, run.data.tags, run.data.metrics
    params, where = current_params(run), info.artifact_uri
    return RunRecord(info.run_id, info.experiment_id, info.status, tags, params, metrics, where, info.start_time)


def current_params(run: "MlflowRun") -> dict[str, str]:
    """Return the parameters of a run, under the current names and values of renamed fields."""
    return {name: str(value) for name, value in current_fields(run.data.params).items()}
