"""Everything written to MLflow: one parent run per study and base configuration, one nested run per fingerprint.

Only the job's driver writes, from one thread, so that training never waits for the tracking server.
"""

import getpass
import logging
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.utils import mlflow_tags

from ablations.engine import paths
from ablations.engine.ledger import PROBES, Entry
from ablations.engine.study import Plan, Run
from resnet_core.fields import reject
from resnet_core.identity import code_version

logger = logging.getLogger(__name__)

RETRY_SECONDS = 2.0
CLOSE_SECONDS = 60.0
"""How long the end of a study waits for a tracking server that does not answer."""

STATUS = {"completed": "FINISHED", "diverged": "FINISHED", "oom": "FAILED", "failed": "FAILED", "stopped": "KILLED"}
"""MLflow's status for each outcome: a run has FINISHED if it has a result."""


@dataclass(frozen=True)
class _Record:
    """Something to deliver: plain values, so that the order is the only state."""

    kind: str
    run: Run
    time_ms: int
    values: Mapping[str, Any] = field(default_factory=dict)


def is_new(uri: str) -> bool:
    """Whether this is a database that does not exist yet: no run can be known."""
    return uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).exists()


def connect(uri: str) -> MlflowClient:
    """A client of a tracking server that answers, or of a database; raises ConfigError otherwise."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"  # two lines for every run; the study says it once
    for name in ("alembic", "mlflow.store.db.utils"):
        logging.getLogger(name).setLevel(logging.WARNING)  # they report every table of a new database
    try:
        if uri.startswith("sqlite:///"):
            Path(uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
        client = MlflowClient(uri)
        client.search_experiments(max_results=1)
    except (MlflowException, OSError, ValueError) as error:
        raise reject("--tracking-uri", uri, f"MLflow does not answer ({str(error).splitlines()[0][:200]})") from error
    return client


class Tracker:
    """Writes a study to MLflow while it runs.

    Args:
        client: where to.
        plan: the study.
        known: what the ledger found of the plan's runs; unfinished ones are continued, not repeated.
        again: start every run as a new generation, next to what is there (`--fresh`).
    """

    def __init__(self, client: MlflowClient, plan: Plan, known: Mapping[str, Entry], *, again: bool = False) -> None:
        self.client, self.plan = client, plan
        self.experiment_id = _experiment(client, plan.study.name)
        self._tags = origin_tags()
        self.was_finished = False
        """Whether the study had come to its end before."""
        self.parent_id = self._open_parent()
        self.run_ids = {} if again else {fingerprint: entry.run_id for fingerprint, entry in known.items()}
        self._attempts = {f: int(e.tags.get("attempts", 0)) for f, e in known.items() if not again}
        self._generations = {f: e.generation + again for f, e in known.items()}
        self._logged = {f: self._last_epoch(run_id) for f, run_id in self.run_ids.items() if not known[f].done}
        self._queue: queue.SimpleQueue[_Record | None] = queue.SimpleQueue()
        self._deadline = float("inf")
        self._lost: list[_Record] = []
        self._undescribed: set[str] = set()
        self._writer = threading.Thread(target=self._deliver_all, name="mlflow-writer", daemon=True)
        self._writer.start()

    def generation(self, run: Run) -> int:
        """1, or more after `--fresh`."""
        return self._generations.get(run.fingerprint, 1)

    def started(self, run: Run) -> None:
        """A trial of the run has started, the first or another."""
        self._put("start", run)

    def epoch(
        self, run: Run, epoch: int, metrics: Mapping[str, float], device: str, probes: Sequence[Mapping[str, Any]] = ()
    ) -> None:
        """An epoch's metrics, and what probes saw so far. Epochs that MLflow has already are passed over."""
        self._put("epoch", run, epoch=epoch, metrics=dict(metrics), device=device)
        if probes:
            self._put("probes", run, rows=probes)

    def ended(self, run: Run, outcome: str, message: str = "", traceback: str = "") -> None:
        """The run is over: see `STATUS` for outcomes."""
        self._put("end", run, outcome=outcome, message=message, traceback=traceback)

    def flush(self) -> int:
        """Waits until everything is delivered; returns how many records could not be."""
        self._deadline = time.monotonic() + CLOSE_SECONDS
        self._queue.put(None)
        self._writer.join()
        return len(self._lost)

    def log_folder(self, folder: str, name: str) -> None:
        """A folder's files, as artifacts of the parent run."""
        self.client.log_artifacts(self.parent_id, folder, name)

    def close(self, status: str, cell_metrics: Mapping[str, float]) -> None:
        """Ends the parent run with metrics per cell."""
        now = _now_ms()
        metrics = [Metric(name, value, now, 0) for name, value in cell_metrics.items()]
        for start in range(0, len(metrics), 1000):
            self.client.log_batch(self.parent_id, metrics=metrics[start : start + 1000])
        self.client.set_terminated(self.parent_id, status)

    def _put(self, kind: str, run: Run, **values: Any) -> None:
        self._queue.put(_Record(kind, run, _now_ms(), values))

    def _open_parent(self) -> str:
        plan = self.plan
        where = f"tags.base = '{plan.base_id}' and tags.study = '{plan.study.name}'"
        found = self.client.search_runs([self.experiment_id], where, max_results=1)
        if found:
            self.was_finished = found[0].info.status == "FINISHED"
            self.client.update_run(found[0].info.run_id, status="RUNNING")
            return str(found[0].info.run_id)
        tags = {
            **self._tags,
            "study": plan.study.name,
            "base": plan.base_id,
            "preset": plan.preset,
            mlflow_tags.MLFLOW_RUN_NOTE: plan.study.question,
        }
        run = self.client.create_run(self.experiment_id, tags=tags, run_name=plan.title)
        self.client.log_batch(run.info.run_id, params=_params(plan.shared()))
        return str(run.info.run_id)

    def _last_epoch(self, run_id: str) -> int:
        history = self.client.get_metric_history(run_id, "epoch_seconds")
        return max((metric.step for metric in history), default=0)

    def _deliver_all(self) -> None:
        while (record := self._queue.get()) is not None:
            while True:
                try:
                    getattr(self, f"_deliver_{record.kind}")(record)
                    break
                except Exception as error:  # whatever a store's own library raises; this thread must live
                    if time.monotonic() > self._deadline:
                        self._lost.append(record)
                        break
                    logger.warning("MLflow does not take %s of %s, trying again: %s", record.kind, record.run, error)
                    time.sleep(RETRY_SECONDS)

    def _deliver_start(self, record: _Record) -> None:
        run = record.run
        attempts = self._attempts.get(run.fingerprint, 0) + 1
        if run.fingerprint not in self.run_ids:
            self.run_ids[run.fingerprint] = self._create(run)
            self._undescribed.add(run.fingerprint)
        else:
            self.client.update_run(self.run_ids[run.fingerprint], status="RUNNING")
        if run.fingerprint in self._undescribed:  # a step of its own: what fails here does not create a second run
            self._describe(run, self.run_ids[run.fingerprint])
            self._undescribed.discard(run.fingerprint)
        self.client.set_tag(self.run_ids[run.fingerprint], "attempts", str(attempts))
        self._attempts[run.fingerprint] = attempts

    def _create(self, run: Run) -> str:
        tags = {
            mlflow_tags.MLFLOW_PARENT_RUN_ID: self.parent_id,
            mlflow_tags.MLFLOW_RUN_NAME: str(run),
            "study": self.plan.study.name,
            "cell": str(run.cell),
            "seed": str(run.seed),
            "fingerprint": run.fingerprint,
            "generation": str(self.generation(run)),
            "world_size": str(run.spec.world_size),
            "code_version": code_version(),
            "data_version": self.plan.dataset.version,
            **self._tags,
        }
        return str(self.client.create_run(self.experiment_id, tags=tags).info.run_id)

    def _describe(self, run: Run, run_id: str) -> None:
        self.client.log_batch(run_id, params=_params(run.spec.flat()))
        data = self.plan.dataset
        self.client.log_inputs(
            run_id,
            [
                DatasetInput(
                    Dataset(data.name, data.version, "local", run.spec.data.root or data.name),
                    [InputTag(mlflow_tags.MLFLOW_DATASET_CONTEXT, "train and test")],
                )
            ],
        )

    def _deliver_epoch(self, record: _Record) -> None:
        run, epoch = record.run, record.values["epoch"]
        logged = self._logged.get(run.fingerprint, 0)
        if epoch <= logged:
            return
        metrics = [Metric(name, value, record.time_ms, epoch) for name, value in record.values["metrics"].items()]
        tags = [] if logged else [RunTag("device", record.values["device"])]
        self.client.log_batch(self.run_ids[run.fingerprint], metrics=metrics, tags=tags)
        self._logged[run.fingerprint] = epoch

    def _deliver_probes(self, record: _Record) -> None:
        table = pd.DataFrame(record.values["rows"]).to_csv(index=False)
        self.client.log_text(self.run_ids[record.run.fingerprint], table, PROBES)

    def _deliver_end(self, record: _Record) -> None:
        if record.run.fingerprint not in self.run_ids:  # it ended before its process had started
            self._deliver_start(record)
        run_id, values = self.run_ids[record.run.fingerprint], record.values
        if any(lost.run.fingerprint == record.run.fingerprint for lost in self._lost):
            # Not done: the next submission reports again what its checkpoint holds.
            values = {"outcome": "stopped", "message": "MLflow did not take all of its records", "traceback": ""}
        tags = [RunTag("outcome", values["outcome"]), RunTag("message", values["message"][:4000])]
        self.client.log_batch(run_id, tags=tags)
        if values["traceback"] and STATUS[values["outcome"]] == "FAILED":
            self.client.log_text(run_id, values["traceback"], "traceback.txt")
        self.client.set_terminated(run_id, STATUS[values["outcome"]], record.time_ms)


def origin_tags() -> dict[str, str]:
    """Who runs which program, at which commit of this project and whether files differ from it; `unknown` without git."""

    def git(*arguments: str) -> str | None:
        folder = Path(__file__).parent
        done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=False)  # noqa: S603, S607
        return done.stdout.strip() if done.returncode == 0 else None

    try:
        commit, changes = git("rev-parse", "HEAD"), git("status", "--porcelain")
    except OSError:
        commit = changes = None
    return {
        "git.commit": commit or "unknown",
        "git.dirty": "unknown" if changes is None else str(bool(changes)).lower(),
        mlflow_tags.MLFLOW_USER: getpass.getuser(),
        mlflow_tags.MLFLOW_SOURCE_NAME: Path(sys.argv[0]).name,
    }


def _experiment(client: MlflowClient, name: str) -> str:
    found = client.get_experiment_by_name(name)
    if found:
        return str(found.experiment_id)
    # Without a server, artifacts would land in the current folder.
    served = client.tracking_uri.startswith("http")
    folder = None if served else (paths.home() / "artifacts" / name).as_uri()
    return str(client.create_experiment(name, folder, {"mlflow.experimentKind": "custom_model_development"}))


def _params(values: Mapping[str, Any]) -> list[Param]:
    return [Param(name, str(value)) for name, value in values.items()]


def _now_ms() -> int:
    return int(time.time() * 1000)
