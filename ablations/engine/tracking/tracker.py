"""Everything written to MLflow: one parent run per study and base configuration, one nested run per fingerprint.

Only the job's driver writes, from one thread, so that training never waits for the tracking server.
"""

import getpass
import hashlib
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import replace
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Param, RunTag
from mlflow.entities import Run as MlflowRun
from mlflow.exceptions import MlflowException
from mlflow.utils import mlflow_tags

from ablations.engine.environment import paths
from ablations.engine.environment.provenance import git_state
from ablations.engine.study.design import Design
from ablations.engine.study.plan import Plan, Run
from ablations.engine.tracking import search_trials
from ablations.engine.tracking.journal import Record, study_is_locked_error
from ablations.engine.tracking.lease import RUN_HOLDER_TAG, StudyLease, get_holder
from ablations.engine.tracking.mlflow_errors import check_experiment
from ablations.engine.tracking.run_delivery import MLFLOW_STATUS
from ablations.engine.tracking.run_queries import DESIGN_ARTIFACT, DESIGN_TAG, RunRecord, search_runs
from ablations.engine.tracking.writer import JOB_KILLED, Writer
from resnet_core.identity import TRAINING_VERSION, code_version

REPORT_TAG, WHOLE = "report", "whole"
"""Tag of a study's run: how far the study was when its report was made."""


class Tracker:
    """Writes a study to MLflow while it runs.

    Args:
        client: where to.
        writer: takes the records of runs there.
        plan: the study, which this process holds.
        known: what the ledger found of the plan's runs; unfinished ones are continued, not repeated.
        rerun: start every run as a new generation, next to what is there (`--fresh`).
        on_lease_lost: is called once, from any thread, when another process has taken the study over.

    Raises:
        ConfigError: a process on another machine holds the study.
    """

    def __init__(
        self,
        client: MlflowClient,
        writer: Writer,
        plan: Plan,
        known: Mapping[str, RunRecord],
        *,
        rerun: bool = False,
        on_lease_lost: Callable[[], object] = lambda: None,
    ) -> None:
        self.client, self.writer, self.plan = client, writer, plan
        self.experiment_id = _experiment(client, plan.study.name)
        self._tags = origin_tags()
        self.report_is_current = False
        """Whether a report of just what is asked for was stored at the study's end."""
        self.parent_id = self._open_parent(on_lease_lost)
        self._experiments: dict[str, str] = {}
        self._attempts: dict[str, int] = {}
        self._generations: dict[str, int] = {}
        self._started: set[str] = set()
        self.add_known_runs(known, rerun=rerun)

    def add_known_runs(self, known: Mapping[str, RunRecord], *, rerun: bool = False) -> None:
        """Takes note of runs that are there."""
        for fingerprint, entry in known.items():
            self._generations[fingerprint] = entry.generation + rerun
            if not rerun:
                self._experiments[fingerprint] = entry.experiment_id
                self._attempts[fingerprint] = int(entry.tags.get("attempts", 0))

    def generation(self, run: Run) -> int:
        """1, or more after `--fresh`."""
        return self._generations.get(run.fingerprint, 1)

    def started(self, run: Run, reason: str = "") -> None:
        """A trial of the run has started: the first, or another one because of `reason`."""
        self._attempts[run.fingerprint] = self._attempts.get(run.fingerprint, 0) + 1
        self._started.add(run.fingerprint)
        data = self.plan.data_of(run)
        source = run.spec.data.root or data.name
        self._put(
            "start",
            run,
            tags=self._identity(run),
            params={name: str(value) for name, value in run.spec.flat().items()},
            dataset={"name": data.name, "digest": data.version, "source_type": "local", "source": source},
            attempts=self._attempts[run.fingerprint],
            reason=reason,
        )

    def epoch(
        self,
        run: Run,
        epoch: int,
        metrics: Mapping[str, float],
        conditions: Mapping[str, str],
        probes: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        """An epoch's metrics, under what they came about (`device`, `torch`, …), and what probes saw so far.

        Epochs that MLflow has already are passed over.
        """
        # With each epoch, since a run may go on under other sources of the same training version.
        under = {**conditions, "code_version": code_version()}
        self._put("epoch", run, epoch=epoch, metrics=dict(metrics), conditions=under)
        if probes:
            self._put("probes", run, rows=list(probes))

    def ended(self, run: Run, outcome: str, message: str = "", traceback: str = "") -> None:
        """The run is over: see `delivery.MLFLOW_STATUS` for outcomes."""
        if run.fingerprint not in self._started:
            self.started(run)  # it ended before its process had started
        self._put("end", run, outcome=outcome, message=message, traceback=traceback)

    def log_design(self, design: Design) -> None:
        """What is asked of the study, for reports: from these, MLflow alone makes them again."""
        asked = hashlib.sha256(replace(design, origin={}).to_json().encode()).hexdigest()
        tags = self.client.get_run(self.parent_id).data.tags
        self.report_is_current = tags.get(DESIGN_TAG) == asked and tags.get(REPORT_TAG) == WHOLE
        if not self.report_is_current:
            self.check()
            self.client.log_text(self.parent_id, design.to_json(), DESIGN_ARTIFACT)
            self.client.set_tag(self.parent_id, DESIGN_TAG, asked)

    @property
    def lost_to(self) -> str:
        """Who holds the study instead of this process; empty while that is not so."""
        return self._beat.lost_to

    def check(self) -> None:
        """Raise HoldLost if another process has taken the study over."""
        self._beat.check()

    def close(self, status: str) -> None:
        """Ends the parent run, unless another process has taken the study over."""
        self.check()
        self._beat.stop()
        self.client.set_terminated(self.parent_id, status)

    def _put(self, kind: str, run: Run, **values: Any) -> None:
        record = Record(
            kind=kind,
            fingerprint=run.fingerprint,
            generation=self.generation(run),
            experiment_id=self._experiments.get(run.fingerprint, self.experiment_id),
            run=str(run),
            time_ms=now_ms(),
            values=values,
            study_run=self.parent_id,
            token=self._beat.token,
        )
        self.writer.put(record)

    def _open_parent(self, on_lease_lost: Callable[[], object]) -> str:
        plan = self.plan
        where = f"tags.base = '{plan.base_id}' and tags.study = '{plan.study.name}'"
        found = self.client.search_runs([self.experiment_id], where, max_results=1)
        run = found[0] if found else self._create_parent()
        run_id = str(run.info.run_id)
        if not run.data.params:  # also of one whose maker died before it had logged them: reports look for these
            self.client.log_batch(run_id, params=[Param(name, str(value)) for name, value in plan.shared().items()])
        self._beat = StudyLease(self.client, run_id, plan.study.name, on_lease_lost)
        if not found:
            self._check_only(run_id, where)
        self.writer.set_lease(self._beat)
        if found:
            self.client.update_run(run_id, status="RUNNING")
            self._end_orphaned_runs(run_id)
        return run_id

    def _check_only(self, run_id: str, where: str) -> None:
        """Give way if another process made a run for this study at the same moment, and made it last."""
        last = self.client.search_runs([self.experiment_id], where, max_results=1)[0].info.run_id
        if last != run_id:
            self._beat.stop()
            self.client.delete_run(run_id)
            raise study_is_locked_error(self.plan.study.name, get_holder(self.client, last).get("name", "another process"))

    def _create_parent(self) -> MlflowRun:
        plan = self.plan
        tags = {
            **self._tags,
            "study": plan.study.name,
            "base": plan.base_id,
            "preset": plan.preset,
            mlflow_tags.MLFLOW_RUN_NOTE: plan.study.question,
        }
        return self.client.create_run(self.experiment_id, tags=tags, run_name=plan.title)

    def _end_orphaned_runs(self, parent_id: str) -> None:
        """Runs of a submission that was killed do not run."""
        where = f"tags.`{mlflow_tags.MLFLOW_PARENT_RUN_ID}` = '{parent_id}' and attributes.status = 'RUNNING'"
        # Asked before the search: what is no longer on its way then has arrived.
        alive = self.writer.pending_fingerprints() | self.writer.journal.claimed_elsewhere().keys()
        if self._beat.expired_token:
            self._fence(self._beat.expired_token, alive)
        for run in self.client.search_runs([self.experiment_id], where):
            if MLFLOW_STATUS.get(run.data.tags.get("outcome", "")) == "FINISHED":  # its model was being logged
                self.client.set_terminated(run.info.run_id, "FINISHED")
            elif run.data.tags.get("fingerprint") not in alive:
                self.client.log_batch(run.info.run_id, tags=[RunTag("outcome", "stopped"), RunTag("message", JOB_KILLED)])
                self.client.set_terminated(run.info.run_id, "KILLED")

    def _fence(self, token: str, alive: Set[str]) -> None:
        """Delete the unfinished runs of a holder that may be alive: it cannot write to them, not even what is on its way.

        All of their epochs come again, to a new run, wherever their training goes on from.
        """
        for run in search_runs(self.client, f"tags.`{RUN_HOLDER_TAG}` = '{token}' and attributes.status = 'RUNNING'"):
            tags = run.data.tags
            if MLFLOW_STATUS.get(tags.get("outcome", "")) != "FINISHED" and tags.get("fingerprint") not in alive:
                self.client.delete_run(run.info.run_id)

    def _identity(self, run: Run) -> dict[str, str]:
        return {
            mlflow_tags.MLFLOW_PARENT_RUN_ID: self.parent_id,
            mlflow_tags.MLFLOW_RUN_NAME: str(run),
            "study": self.plan.study.name,
            "cell": str(run.cell),
            "seed": str(run.seed),
            "world_size": str(run.spec.world_size),
            "training_version": str(TRAINING_VERSION),
            "code_version": code_version(),
            "data_version": self.plan.data_of(run).version,
            **({run.trial.tag: search_trials.trial_tag_value(run)} if run.trial else {}),
            **self._tags,
        }


def origin_tags() -> dict[str, str]:
    """Who runs which program, at which commit of this project."""
    return {
        **git_state(),
        mlflow_tags.MLFLOW_USER: _user(),
        mlflow_tags.MLFLOW_SOURCE_NAME: Path(sys.argv[0]).name,
    }


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container may run under a number that has no name
        return f"uid {os.getuid()}"


def _experiment(client: MlflowClient, name: str) -> str:
    if found := client.get_experiment_by_name(name):
        check_experiment(client, found)
        return str(found.experiment_id)
    # Without a server, artifacts would land in the current folder.
    served = client.tracking_uri.startswith("http")
    folder = None if served else (paths.home() / "artifacts" / name).as_uri()
    try:
        return str(client.create_experiment(name, folder, {"mlflow.experimentKind": "custom_model_development"}))
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
        return _experiment(client, name)  # another process has just made it


def now_ms() -> int:
    return int(time.time() * 1000)
