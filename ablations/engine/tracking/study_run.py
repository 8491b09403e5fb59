"""The run in MLflow that represents a study: the parent of the study's runs, with its lease, its design and its report."""

import getpass
import hashlib
import os
import sys
import tempfile
from collections.abc import Callable, Set
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Param, RunTag
from mlflow.entities import Run as MlflowRun
from mlflow.exceptions import MlflowException
from mlflow.utils import mlflow_tags

from ablations.engine.environment import paths
from ablations.engine.environment.provenance import git_state
from ablations.engine.study.design import Design
from ablations.engine.study.plan import Plan
from ablations.engine.tracking import mlflow_internals
from ablations.engine.tracking.journal import study_is_locked_error
from ablations.engine.tracking.lease import RUN_HOLDER_TAG, StudyLease, get_holder
from ablations.engine.tracking.looks import PLANNED_SEEDS_TAG, planned_seeds
from ablations.engine.tracking.mlflow_errors import check_experiment
from ablations.engine.tracking.run_delivery import MLFLOW_STATUS
from ablations.engine.tracking.run_queries import (
    DESIGN_ARTIFACT,
    DESIGN_TAG,
    EARLIER,
    KIND_TAG,
    REPORT_TAG,
    SUMMARY_TAG,
    WHOLE,
    search_runs,
)
from ablations.engine.tracking.writer import JOB_KILLED, Writer

EARLIER_NOTE = "⚠ What follows is the answer of an earlier submission. The latest one has another design and no report yet."
"""First line of the description of a run whose report is of an earlier submission."""


class StudyRun:
    """A study's own run in MLflow, which this process holds by a lease. There is one per study and base configuration.

    Opening it also ends runs that a killed submission left in state RUNNING.

    Args:
        client: MLflow client.
        writer: writer of the study's records, which stops when the lease is lost.
        plan: the study.
        on_lease_lost: called once, from any thread, when another process has taken the study over.

    Raises:
        ConfigError: a living process holds the study.
    """

    def __init__(
        self, client: MlflowClient, writer: Writer, plan: Plan, on_lease_lost: Callable[[], object] = lambda: None
    ) -> None:
        self.client, self.writer, self.plan = client, writer, plan
        self.experiment_id = _find_or_create_experiment(client, plan.study.name)
        self.report_is_current = False
        """True if MLflow has a report of exactly this design, made at the study's end."""
        self.left_out = 0
        """Number of runs of the previous submission's report that the design lacks."""
        self.previous_command = ""
        """Command of that submission; empty if it is not known."""
        where = f"tags.base = '{plan.base_id}' and tags.study = '{plan.study.name}'"
        found = client.search_runs([self.experiment_id], where, max_results=1)
        run = found[0] if found else self._create()
        self.run_id = str(run.info.run_id)
        if not run.data.params:  # its creator may have been killed before it logged them; reports search for them
            client.log_batch(self.run_id, params=[Param(name, str(value)) for name, value in plan.shared_fields().items()])
        self.lease = StudyLease(client, self.run_id, plan.study.name, on_lease_lost)
        if not found:
            self._yield_to_concurrent_creator(where)
        writer.set_lease(self.lease)
        if found:
            outdated = run.info.run_name == plan.former_title != plan.title
            client.update_run(self.run_id, status="RUNNING", name=self._unused_title() if outdated else None)
            self._end_orphaned_runs()

    def log_design(self, design: Design) -> None:
        """Log the design as submitted. Reports are later rebuilt from it, without the study's file."""
        tags = self.client.get_run(self.run_id).data.tags
        planned = planned_seeds(tags, design.planned_seeds, declared=bool(design.seed_looks))
        design = replace(design, planned_seeds=planned)
        digest = hashlib.sha256(replace(design, origin={}).to_json().encode()).hexdigest()
        self.report_is_current = tags.get(DESIGN_TAG) == digest and tags.get(REPORT_TAG) == WHOLE
        if not self.report_is_current:
            self.lease.check()
            self.client.set_tag(self.run_id, PLANNED_SEEDS_TAG, str(design.planned_seeds))
            # Searches and adaptive studies begin with a design that their results complete.
            differs = tags.get(DESIGN_TAG, digest) != digest and not (design.search or design.seed_looks)
            if differs and SUMMARY_TAG in tags:
                self._compare_with_previous(design)
            self.client.log_text(self.run_id, design.to_json(), DESIGN_ARTIFACT)
            changed = {DESIGN_TAG: digest}
            if differs and tags.get(REPORT_TAG, EARLIER) != EARLIER:
                note = tags.get(mlflow_tags.MLFLOW_RUN_NOTE, "")
                changed |= {REPORT_TAG: EARLIER, mlflow_tags.MLFLOW_RUN_NOTE: f"{EARLIER_NOTE}\n\n{note}"}
            self.client.log_batch(self.run_id, tags=[RunTag(name, value) for name, value in changed.items()])

    def _compare_with_previous(self, design: Design) -> None:
        """Count the runs of the previous design that the new one lacks, by cell and seed."""
        with suppress(Exception), tempfile.TemporaryDirectory() as folder:  # an earlier version's design, or no answer: no message
            file = self.client.download_artifacts(self.run_id, DESIGN_ARTIFACT, folder)
            previous = Design.from_json(Path(file).read_text(encoding="utf-8"))
            seeds = {cell.label: len(cell.fingerprints) for cell in design.cells}
            self.left_out = sum(max(0, len(cell.fingerprints) - seeds.get(cell.label, 0)) for cell in previous.cells)
            self.previous_command = previous.origin.get("command", "")

    def close(self, status: str) -> None:
        """Release the lease and end the run with an MLflow status; raise LeaseLost if another process has taken the study over."""
        self.lease.check()
        self.lease.release()
        self.client.set_terminated(self.run_id, status)

    def _create(self) -> MlflowRun:
        plan = self.plan
        tags = {
            **origin_tags(),
            "study": plan.study.name,
            "base": plan.base_id,
            "preset": plan.preset,
            KIND_TAG: plan.grid.kind,
            mlflow_tags.MLFLOW_RUN_NOTE: plan.study.question,
        }
        return self.client.create_run(self.experiment_id, tags=tags, run_name=self._unused_title())

    def _unused_title(self) -> str:
        """Return the name of the study's run, with a hash if another one has it, such as one on other images in the same folder."""
        title = self.plan.title
        same = self.client.search_runs([self.experiment_id], f"attributes.run_name = '{title}'", max_results=1)
        return f"{title} · {self.plan.base_id[:4]}" if same else title

    def _yield_to_concurrent_creator(self, where: str) -> None:
        """Raise ConfigError if another process has also created a run for this study, after this one. Delete this one's run."""
        last = self.client.search_runs([self.experiment_id], where, max_results=1)[0].info.run_id
        if last != self.run_id:
            self.lease.release()
            self.client.delete_run(self.run_id)
            raise study_is_locked_error(self.plan.study.name, get_holder(self.client, last).get("name", "another process"))

    def _end_orphaned_runs(self) -> None:
        """End runs that a killed submission left in state RUNNING."""
        where = f"tags.`{mlflow_tags.MLFLOW_PARENT_RUN_ID}` = '{self.run_id}' and attributes.status = 'RUNNING'"
        # Read before the search: a record that is not pending here has reached MLflow by then.
        alive = self.writer.pending_fingerprints() | self.writer.journal.claimed_elsewhere().keys()
        if self.lease.expired_token:
            self._fence(self.lease.expired_token, alive)
        for run in self.client.search_runs([self.experiment_id], where):
            if MLFLOW_STATUS.get(run.data.tags.get("outcome", "")) == "FINISHED":  # killed while its model was logged
                self.client.set_terminated(run.info.run_id, "FINISHED")
            elif run.data.tags.get("fingerprint") not in alive:
                self.client.log_batch(run.info.run_id, tags=[RunTag("outcome", "stopped"), RunTag("message", JOB_KILLED)])
                self.client.set_terminated(run.info.run_id, "KILLED")

    def _fence(self, token: str, alive: Set[str]) -> None:
        """Delete the unfinished runs of a holder that is only presumed dead, so that its late requests have no effect (fencing).

        Their epochs are all logged again, to a new run, whichever checkpoint training continues from.
        """
        for run in search_runs(self.client, f"tags.`{RUN_HOLDER_TAG}` = '{token}' and attributes.status = 'RUNNING'"):
            tags = run.data.tags
            if MLFLOW_STATUS.get(tags.get("outcome", "")) != "FINISHED" and tags.get("fingerprint") not in alive:
                self.client.delete_run(run.info.run_id)


def origin_tags() -> dict[str, str]:
    """Return tags with the user, the program and the commit of this project."""
    return {
        **git_state(),
        mlflow_tags.MLFLOW_USER: _user(),
        mlflow_tags.MLFLOW_SOURCE_NAME: Path(sys.argv[0]).name,
    }


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container may run under a user ID without a name
        return f"uid {os.getuid()}"


def _find_or_create_experiment(client: MlflowClient, name: str) -> str:
    """Return the ID of the study's experiment; raise DeletedInMlflow if that was deleted."""
    if found := client.get_experiment_by_name(name):
        check_experiment(client, found)
        return str(found.experiment_id)
    # Without a server, MLflow would put artifacts into the current folder.
    served = client.tracking_uri.startswith("http")
    folder = None if served else (paths.home() / "artifacts" / name).as_uri()
    try:
        return str(client.create_experiment(name, folder, dict(mlflow_internals.EXPERIMENT_KIND)))
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
        return _find_or_create_experiment(client, name)  # another process has just created it
