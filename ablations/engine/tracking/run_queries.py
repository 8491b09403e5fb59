"""Which runs are done: MLflow, looked up by fingerprint. There is no other record."""

import gc
import logging
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pandas as pd
from mlflow import MlflowClient
from mlflow.entities import Run as MlflowRun
from mlflow.store.tracking.dbmodels.models import SqlMetric
from mlflow.store.tracking.rest_store import RestStore
from mlflow.utils.rest_utils import http_request, verify_rest_response
from sqlalchemy import select

from ablations.engine.study.design import Design
from ablations.engine.study.plan import Plan
from ablations.engine.tracking.mlflow_errors import check_experiment
from resnet_core import RunSpec
from resnet_core.data.datasets import Dataset
from resnet_core.fields import ConfigError
from resnet_core.renamed_fields import current_fields

logger = logging.getLogger(__name__)

PAGE_SIZE = 1000
MIN_RUNS_READ = 100
"""Runs that are read in any case when some are looked up."""
RUNS_READ_PER_LOOKUP = 2
"""For each that is looked up, so many are read. To read one takes 5 ms, to ask for one 28 ms, from a server on SQLite."""
MAX_COMPLETED_RUNS = 1000
"""Runs that are read to tell how long others will take: the newest."""
MAX_RUNS_PER_REQUEST = 100
"""Runs in one question to MLflow's server, at most."""
MAX_VALUES_PER_RESPONSE = 25_000
"""In one answer."""
DESIGN_ARTIFACT = "design.json"
"""Artifact of a study's run: what was last asked of it."""
DESIGN_TAG = "design"
"""Its hash."""
PROBES_ARTIFACT = "probes.csv"
"""Artifact of a run: what its probes saw."""


@dataclass(frozen=True)
class RunRecord:
    """What MLflow knows of one run."""

    run_id: str
    experiment_id: str
    status: str
    tags: Mapping[str, str]
    params: Mapping[str, str]
    metrics: Mapping[str, float]
    """Last value of each metric: that of the final epoch, once the run is done."""

    @property
    def has_result(self) -> bool:
        return self.status == "FINISHED"

    @property
    def outcome(self) -> str:
        return self.tags.get("outcome", "")

    @property
    def completed(self) -> bool:
        return self.has_result and self.outcome == "completed"

    @property
    def generation(self) -> int:
        return int(self.tags.get("generation", "1"))


@dataclass(frozen=True, kw_only=True)
class CompletedRun:
    """A completed run on the data of a plan, of whatever study."""

    spec: Mapping[str, str]
    """Its `RunSpec.flat()`, as text."""
    train_images: int
    seconds: float
    """Of its training and tests: `train_seconds`."""
    device: str
    on_gpu: bool


def find_plan_runs(client: MlflowClient, plan: Plan) -> dict[str, RunRecord]:
    """The entry of each of the plan's runs that MLflow knows, whichever study trained it; of repeated ones the newest."""
    return find_by_fingerprint(client, {run.fingerprint: plan.data_of(run).version for run in plan.runs})


def find_by_fingerprint(client: MlflowClient, wanted: Mapping[str, str]) -> dict[str, RunRecord]:
    """Return the entries of any runs.

    Args:
        wanted: data version by fingerprint.
    """
    found: dict[str, RunRecord] = {}
    for data in dict.fromkeys(wanted.values()):
        found |= _find(client, {fingerprint for fingerprint, version in wanted.items() if version == data}, data)
    return found


def _find(client: MlflowClient, wanted: Set[str], data: str) -> dict[str, RunRecord]:
    """Return those of `find_by_fingerprint` that were trained on one version of the data."""
    # Of runs trained like these, the newest first; then what is not among them, one by one. So a small study pays for its own
    # runs and not for all that there are.
    enough = max(MIN_RUNS_READ, RUNS_READ_PER_LOOKUP * len(wanted))
    like_these = search_runs(client, f"tags.data_version = '{data}'", page=min(PAGE_SIZE, enough))
    found = _newest(islice(like_these, enough), wanted)
    rest = wanted - found.keys()
    if rest and next(like_these, None) is not None:
        found |= _newest((run for one in rest for run in search_runs(client, f"tags.fingerprint = '{one}'")), rest)
    return found


def training_version_filter(training_version: str, code_version: str) -> str:
    """Return the filter of runs that one version of the training trained.

    Runs of before 2026-11-27 have no `training_version`: for them, the hash of the sources took its place.
    """
    return f"tags.training_version = '{training_version}'" if training_version else f"tags.code_version = '{code_version}'"


def _newest(runs: Iterable[MlflowRun], wanted: Set[str]) -> dict[str, RunRecord]:
    """By fingerprint, the last generation of those that are wanted."""
    found: dict[str, RunRecord] = {}
    for run in runs:
        fingerprint, entry = run.data.tags.get("fingerprint", ""), run_record(run)
        if fingerprint in wanted and entry.generation > (found[fingerprint].generation if fingerprint in found else 0):
            found[fingerprint] = entry
    return found


def with_result(known: Mapping[str, RunRecord]) -> dict[str, RunRecord]:
    """Those with a result."""
    return {fingerprint: entry for fingerprint, entry in known.items() if entry.has_result}


def completed_runs(client: MlflowClient, data: Iterable[Dataset]) -> Iterable[CompletedRun]:
    """The newest completed runs on each of these data sets, of all studies: they tell how long others take."""
    for version, images in {each.version: len(each.train.labels) for each in data}.items():
        where = f"tags.data_version = '{version}' and tags.outcome = 'completed' and attributes.status = 'FINISHED'"
        for run in islice(search_runs(client, where), MAX_COMPLETED_RUNS):
            metrics, tags = run.data.metrics, run.data.tags
            if "train_seconds" in metrics:
                yield CompletedRun(
                    spec=current_params(run),
                    train_images=images,
                    seconds=metrics["train_seconds"],
                    device=tags.get("device", ""),
                    on_gpu=metrics.get("gpu_hours", 0) > 0,
                )


def find_design(
    client: MlflowClient, study: str, preset: str, shared: Mapping[str, Any], *, whole: bool = False
) -> tuple[str, Design]:
    """The study's run in MLflow that has these settings, by its id, and what was last asked of it.

    Args:
        shared: `Plan.shared()`, or as much of it as is to be found. Of several, the newest counts.
        whole: whether there may be no other shared settings.

    Raises:
        ConfigError: there is none.
        DeletedInMlflow: its experiment was deleted.
    """
    experiment = client.get_experiment_by_name(study)
    check_experiment(client, experiment)
    where = f"tags.study = '{study}' and tags.preset = '{preset}'"
    runs = _pages(client.search_runs, experiment_ids=[experiment.experiment_id], filter_string=where) if experiment else ()
    wanted = {name: str(value) for name, value in shared.items()}
    defaults = {name: str(value) for name, value in RunSpec().flat().items()}
    for run in runs:
        params = current_params(run)
        # A study of before a field existed has the field's default.
        same = all(params.get(name, defaults.get(name)) == value for name, value in wanted.items())
        if DESIGN_TAG in run.data.tags and same and not (whole and params.keys() - wanted.keys()):
            with tempfile.TemporaryDirectory() as folder:
                path = client.download_artifacts(run.info.run_id, DESIGN_ARTIFACT, folder)
                return str(run.info.run_id), Design.from_json(Path(path).read_text(encoding="utf-8"))
    raise ConfigError(f"--report: MLflow has no study {study} with preset {preset} and these settings; submit it first")


def metric_histories(client: MlflowClient, run_ids: Sequence[str], metrics: Sequence[str]) -> pd.DataFrame:
    """Metrics of many runs by epoch: `run_id`, `metric`, `epoch`, `value`."""
    # MLflow's client asks for one metric of one run at a time, and makes an object of every value.
    store = client._tracking_client.store
    read = _history_by_http if isinstance(store, RestStore) else _history_from_database
    rows: list[tuple[str, str, int, float]] = []
    for start in range(0, len(run_ids), MAX_RUNS_PER_REQUEST):
        rows += read(store, run_ids[start : start + MAX_RUNS_PER_REQUEST], metrics)
    return pd.DataFrame(rows, columns=["run_id", "metric", "epoch", "value"]).drop_duplicates(["run_id", "metric", "epoch"])


def _history_from_database(store: Any, run_ids: Sequence[str], metrics: Sequence[str]) -> Iterable[tuple[str, str, int, float]]:
    with store.ManagedSessionMaker() as session:
        wanted = select(SqlMetric.run_uuid, SqlMetric.key, SqlMetric.step, SqlMetric.value)
        rows = session.execute(wanted.where(SqlMetric.run_uuid.in_(run_ids), SqlMetric.key.in_(metrics), ~SqlMetric.is_nan))
        return [tuple(row) for row in rows]


def _history_by_http(store: RestStore, run_ids: Sequence[str], metrics: Sequence[str]) -> Iterable[tuple[str, str, int, float]]:
    path = "/ajax-api/2.0/mlflow/metrics/get-history-bulk"
    rows = []
    for metric in metrics:
        question = {"run_id": list(run_ids), "metric_key": metric}
        answer = http_request(store.get_host_creds(), path, "GET", params=question)
        found = verify_rest_response(answer, path).json()["metrics"]
        if len(found) >= MAX_VALUES_PER_RESPONSE and len(run_ids) > 1:  # cut off there
            half = len(run_ids) // 2
            return [*_history_by_http(store, run_ids[:half], metrics), *_history_by_http(store, run_ids[half:], metrics)]
        rows += [(each["run_id"], metric, each["step"], each["value"]) for each in found]
    return rows


def search_runs(client: MlflowClient, where: str, page: int = PAGE_SIZE) -> Iterator[MlflowRun]:
    """Runs of all studies, those that began last first."""
    experiments = [e.experiment_id for e in _pages(client.search_experiments, max_results=PAGE_SIZE)]
    return _pages(client.search_runs, experiment_ids=experiments, filter_string=where, max_results=page)


def _pages(query: Any, **arguments: Any) -> Iterator[Any]:
    token = None
    while True:
        with _uncollected():
            page = query(**arguments, page_token=token)
        yield from page
        token = page.token
        if not token:
            return


@contextmanager
def _uncollected() -> Iterator[None]:
    """MLflow makes a hundred small objects of every run. That Python looks through all there are again and again meanwhile is three
    quarters of the time that reading from a database takes."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def run_record(run: MlflowRun) -> RunRecord:
    info, tags, metrics = run.info, run.data.tags, run.data.metrics
    return RunRecord(info.run_id, info.experiment_id, info.status, tags, current_params(run), metrics)


def current_params(run: MlflowRun) -> dict[str, str]:
    """Return the parameters of a run, under the current names and values of renamed fields."""
    return {name: str(value) for name, value in current_fields(run.data.params).items()}
