"""Tracker of a study: turns events of its runs into records, which the writer delivers to MLflow.

Each fingerprint is one run in MLflow, nested in the study's own run. Only the job's driver writes, from one thread, so that
training never waits for the tracking server.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mlflow import MlflowClient
from mlflow.utils import mlflow_tags

from ablations.engine.study.plan import Plan, Run
from ablations.engine.tracking import search_trials
from ablations.engine.tracking.journal import Record
from ablations.engine.tracking.run_queries import RunRecord
from ablations.engine.tracking.study_run import StudyRun, origin_tags
from ablations.engine.tracking.writer import Writer


class Tracker:
    """Writes the runs of a study to MLflow while they train.

    Args:
        client: MLflow client.
        writer: writer that delivers the records.
        plan: the study, whose journal this process holds.
        known: runs of the plan that MLflow has. Unfinished ones are continued, not repeated.
        rerun: start each run as a new generation, beside the existing ones (`--rerun`).
        on_lease_lost: called once, from any thread, when another process has taken the study over.

    Raises:
        ConfigError: a living process holds the study.
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
        self._origin, self._code_version = origin_tags(), plan.workload.code_version()
        self.study_run = StudyRun(client, writer, plan, on_lease_lost)
        self._experiments: dict[str, str] = {}
        self._attempts: dict[str, int] = {}
        self._generations: dict[str, int] = {}
        self._started: set[str] = set()
        self.add_known_runs(known, rerun=rerun)

    def add_known_runs(self, known: Mapping[str, RunRecord], *, rerun: bool = False) -> None:
        """Continue runs that MLflow already has, or start them as a new generation if `rerun` is true."""
        for fingerprint, record in known.items():
            self._generations[fingerprint] = record.generation + rerun
            if not rerun:
                self._experiments[fingerprint] = record.experiment_id
                self._attempts[fingerprint] = int(record.tags.get("attempts", 0))

    def experiment_ids(self) -> set[str]:
        """Return the experiments that have runs of the study: those of other studies if they began a run."""
        return {self.study_run.experiment_id, *list(self._experiments.values())}

    def generation(self, run: Run) -> int:
        """Return the generation of a run: 1, or a higher number after `--rerun`."""
        return self._generations.get(run.fingerprint, 1)

    def started(self, run: Run, reason: str = "") -> None:
        """Record that a process has started to train a run.

        Args:
            run: the run.
            reason: why the previous process ended; empty for the first one.
        """
        self._attempts[run.fingerprint] = self._attempts.get(run.fingerprint, 0) + 1
        self._started.add(run.fingerprint)
        data = self.plan.dataset_for_run(run)
        source = self.plan.workload.data_source(run.spec, data)
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
        predictions: str = "",
    ) -> None:
        """Record the results of an epoch. Epochs that MLflow already has are ignored on delivery.

        Args:
            run: the run.
            epoch: its number, from 1.
            metrics: metrics by name.
            conditions: the circumstances of the training (`device`, `torch`, …).
            probes: measurements of the run's probes so far.
            predictions: `Predictions.to_bytes` in Base64; empty before the last epoch and if they are not kept.
        """
        # Each epoch has a code version: a run may continue under other sources with the same training version.
        under = {**conditions, "code_version": self._code_version}
        self._put("epoch", run, epoch=epoch, metrics=dict(metrics), conditions=under)
        if probes:
            self._put("probes", run, rows=list(probes))
        if predictions:
            self._put("predictions", run, file=predictions)

    def conditions(self, run: Run, conditions: Mapping[str, str]) -> None:
        """Record the circumstances of a training that has reported no epoch with them, such as its process."""
        self._put("conditions", run, conditions=dict(conditions))

    def ended(self, run: Run, outcome: str, message: str = "", traceback: str = "") -> None:
        """Record the end of a run. `run_delivery.MLFLOW_STATUS` lists the outcomes."""
        if run.fingerprint not in self._started:
            self.started(run)  # it ended before its process reported a start
        self._put("end", run, outcome=outcome, message=message, traceback=traceback)

    @property
    def lost_to(self) -> str:
        """Description of the process that has taken the study over; empty while this process holds it."""
        return self.study_run.lease.lost_to

    def _put(self, kind: str, run: Run, **values: Any) -> None:
        record = Record(
            kind=kind,
            fingerprint=run.fingerprint,
            generation=self.generation(run),
            experiment_id=self._experiments.get(run.fingerprint, self.study_run.experiment_id),
            run=str(run),
            time_ms=int(time.time() * 1000),
            values=values,
            study_run=self.study_run.run_id,
            token=self.study_run.lease.token,
        )
        self.writer.put(record)

    def _identity(self, run: Run) -> dict[str, str]:
        """Return the tags that say what a run is."""
        return {
            mlflow_tags.MLFLOW_PARENT_RUN_ID: self.study_run.run_id,
            mlflow_tags.MLFLOW_RUN_NAME: str(run),
            "study": self.plan.study.name,
            "cell": str(run.cell),
            "seed": str(run.seed),
            "world_size": str(run.spec.world_size),
            "training_version": self.plan.workload.training_version,
            **({"task": task} if (task := self.plan.workload.task_name) else {}),
            "code_version": self._code_version,
            "data_version": self.plan.dataset_for_run(run).version,
            **({run.trial.tag: search_trials.trial_tag_value(run)} if run.trial else {}),
            **self._origin,
        }
