"""A study from plan to table: what is missing runs, everything lands in MLflow, and the table is read back from there."""

import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cached_property
from typing import TYPE_CHECKING

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from rich.console import Console

from ablations.engine.analysis.evidence import Evidence
from ablations.engine.analysis.findings import Findings
from ablations.engine.analysis.study_analysis import analyze_study
from ablations.engine.cluster.doctor import preflight
from ablations.engine.environment import paths, provenance, signals
from ablations.engine.environment.console import make_console, print_line
from ablations.engine.environment.storage import check_storage, make_storage
from ablations.engine.report import terminal
from ablations.engine.study.design import Design
from ablations.engine.study.plan import Plan, Run
from ablations.engine.study.request import Options
from ablations.engine.submission import reporting
from ablations.engine.submission.progress import Progress
from ablations.engine.submission.run_events import RunEvents
from ablations.engine.tracking import results, run_queries
from ablations.engine.tracking.connection import connect, create_database_file, is_new_database, mlflow_errors_as_config_errors
from ablations.engine.tracking.journal import Journal
from ablations.engine.tracking.lease import LeaseLost
from ablations.engine.tracking.mlflow_errors import check_study, describe_error
from ablations.engine.tracking.tracker import Tracker
from ablations.engine.tracking.writer import Writer
from ablations.engine.trial.job import Job
from resnet_core.fields import ConfigError, counted, reject
from resnet_core.identity import TRAINING_VERSION, code_version

if TYPE_CHECKING:
    from ablations.engine.scheduling.capacity import RunResources

CLOSE_TIMEOUT_SECONDS = 60.0
"""How long the end of a study waits for a tracking server that takes nothing; then its records wait for the next submission."""
MESSAGE_DELAY_SECONDS = 5.0
"""After so long, somebody who looks is told what is waited for."""
INTERRUPTED_CLOSE_TIMEOUT_SECONDS = min(10.0, float(os.environ.get("RAY_JOB_STOP_WAIT_TIME_S") or "3") * 2 / 3)
"""The same for a study that is asked to stop: so long after `ray job stop`, Ray kills it."""
POLL_INTERVAL_SECONDS = 5.0
"""How often a study looks whether runs that another one trains are done."""


def run_study(plan: Plan, options: Options) -> int:
    """Brings a study to its end and prints its table. Returns the exit code: 0 if every run has a result, else 1."""
    return submit(plan, options, Submission)


def submit(plan: Plan, options: Options, kind: "type[Submission]") -> int:
    """Holds a study, brings it to its end in the way of its kind, and prints its table; returns the exit code."""
    console = make_console()
    if is_new_database(options.tracking_uri):  # all is missing: what cannot be trained leaves no file
        check_before_start(plan, options)
    client = _connect(options)
    with mlflow_errors_as_config_errors(
        options.tracking_uri
    ):  # before what an earlier submission left is sent to where nothing is taken
        check_study(client, plan.study.name)
    with Journal(options.tracking_uri, plan.study.name, plan.base_id) as journal:
        writer = Writer(client, journal)
        try:
            return _run_submission(console, client, plan, options, writer, kind)
        except (LeaseLost, KeyboardInterrupt):
            if not writer.lost_to:
                raise
        finally:
            writer.release()
        print_line(console, f"{plan.study.name}: {writer.lost_to}.")
        return 1


def _run_submission(
    console: Console, client: MlflowClient, plan: Plan, options: Options, writer: Writer, kind: "type[Submission]"
) -> int:
    """Train and conclude a study for which this process has the journal; return the exit code.

    Raises:
        HoldLost: another process has taken the study over.
    """
    interrupted = True
    try:
        if writer.journal.recovered:
            _settle(console, writer)
        with mlflow_errors_as_config_errors(options.tracking_uri):
            study = kind(console, client, plan, options, writer)
        interrupted = not study.train()
    finally:  # in any case before the journal lets go: what it held, another process may deliver from then on
        waiting = _close(console, writer, interrupted)
    if writer.lost_to:
        raise LeaseLost(writer.lost_to)
    try:
        if not (interrupted and waiting):  # who stops a study does not wait for a server that is down
            return study.conclude(waiting, interrupted=interrupted)
    except MlflowException as error:
        print_line(console, f"There is no table: {describe_error(error)}.")
    left = f"{counted(waiting, 'record')} {'waits' if waiting == 1 else 'wait'} for MLflow. " if waiting else ""
    print_line(console, f"{left}Go on with: {provenance.resubmit_command()}")
    return 1


def _settle(console: Console, writer: Writer) -> None:
    waiting = writer.flush(CLOSE_TIMEOUT_SECONDS)
    count = len(writer.journal.recovered)
    console.print(f"Delivered what an earlier submission left: {counted(count, 'record')}{', not all' if waiting else ''}.")


def _close(console: Console, writer: Writer, interrupted: bool) -> int:
    """How many records MLflow has not taken when all that can be done now is done."""
    if interrupted or writer.lost_to:
        return writer.close(INTERRUPTED_CLOSE_TIMEOUT_SECONDS, max_seconds=INTERRUPTED_CLOSE_TIMEOUT_SECONDS)
    if (waiting := writer.flush(MESSAGE_DELAY_SECONDS, max_seconds=MESSAGE_DELAY_SECONDS)) and not writer.deletion_messages():
        console.print(f"{counted(waiting, 'record')} {'is' if waiting == 1 else 'are'} on their way to MLflow.")
    return writer.close(CLOSE_TIMEOUT_SECONDS)


class Submission:
    """A study's way through the cluster and MLflow, once it is held."""

    def __init__(self, console: Console, client: MlflowClient, plan: Plan, options: Options, writer: Writer) -> None:
        self.console, self.client, self.plan, self.options, self.journal = console, client, plan, options, writer.journal
        known = self._look_up()  # refuses before anything is written
        self.tracker = Tracker(client, writer, plan, known, rerun=options.rerun, on_lease_lost=signals.interrupt_main_thread)
        self.report_updater: reporting.ReportUpdater | None = None
        self._log_design()

    def _look_up(self) -> dict[str, run_queries.RunRecord]:
        """Holds the plan's runs and finds out which are missing; returns what MLflow knows of them."""
        plan, options = self.plan, self.options
        # First held, then looked up: what another study ends in between is found done.
        elsewhere = self.journal.claim(run.fingerprint for run in plan.runs)
        if elsewhere and options.rerun:
            raise reject("--rerun", plan.study.name, f"wait for {next(iter(elsewhere.values()))}, which trains some of its runs")
        known = run_queries.find_plan_runs(self.client, plan)
        self.done = {} if options.rerun else run_queries.with_result(known)
        missing = [run for run in plan.runs if run.fingerprint not in self.done]
        self.todo = [run for run in missing if run.fingerprint not in elsewhere]
        self.up_to_date = not missing
        self.awaited = {run.fingerprint: elsewhere[run.fingerprint] for run in missing if run.fingerprint in elsewhere}
        """Runs that another study trains, and which."""
        self.journal.claim(run.fingerprint for run in self.todo)
        self.needs = prepare_cluster(plan, options) if missing else None
        return known

    @property
    def design(self) -> Design:
        """What is asked for."""
        return Design.from_plan(self.plan, self._origin)

    @cached_property
    def _origin(self) -> dict[str, str]:
        return provenance.submission_origin()

    def train(self) -> bool:
        """Trains what is missing and waits for what another study trains; returns False if it was asked to stop."""
        name = f"{self.plan.study.name} on {self.plan.dataset.name}"
        self._mention_other_sources()
        if not self.todo and not self.awaited:
            there = "its only run is" if len(self.done) == 1 else f"all {len(self.done)} runs are"
            self.console.print(f"{name}: {there} in MLflow already.")
            return True
        print_line(self.console, f"Data: {self.plan.data_summary}")
        self.console.print(f"{name}: {counted(len(self.todo), 'run')} to train, {len(self.done)} done already.")
        try:
            self._train(self.todo)
            self._train_awaited()
        except KeyboardInterrupt:
            return False
        return True

    def _mention_other_sources(self) -> None:
        """Say how many results come from sources of `resnet_core` that differ from those here."""
        here = code_version()
        others = sum(here not in entry.tags.get("code_version", "").split(", ") for entry in self.done.values())
        if others:
            print_line(
                self.console,
                f"{others} of {counted(len(self.done), 'run')} done {'was' if others == 1 else 'were'} trained by other sources of "
                f"resnet_core. The training version is the same, {TRAINING_VERSION}, and that counts; --rerun trains all again.",
            )

    def _log_design(self) -> None:
        """Before anything runs, so that whoever stops the study has a report; again at its end if the store is not there now."""
        try:
            self.tracker.study_run.log_design(self.design)
        except LeaseLost:
            raise
        except Exception as error:  # whatever a store's own library raises: training does not depend on it
            print_line(self.console, f"What this study asks for cannot be stored in MLflow yet: {describe_error(error)}")

    def _train(self, runs: Sequence[Run]) -> None:
        """Raises KeyboardInterrupt if the study is asked to stop."""
        if not runs:
            return
        assert self.needs is not None
        from ablations.engine.scheduling import tune_runner

        jobs = [job_of(run, self.plan.dataset_for_run(run).version, self.tracker.generation(run), self.options) for run in runs]
        with Progress(self.console, self.plan, runs) as progress:
            relay = RunEvents(runs, self.tracker, progress)
            limit, scratch = self.options.max_concurrent, paths.home() / "tune"
            before = len(self.plan.runs) - len(runs) - len(self.awaited)

            def progress_made() -> tuple[int, str]:
                ended = before + len(runs) - len(relay.left)
                return ended, f"{ended} of {counted(len(self.plan.runs), 'run')}"

            with self.report_updated(progress_made):
                try:
                    tune_runner.train_runs(jobs, self.needs, max_concurrent=limit, listener=relay, scratch=scratch)
                finally:
                    finished = relay.stop_active(self.tracker.lost_to)
                if not finished:
                    raise KeyboardInterrupt

    def report_updated(self, progress: Callable[[], tuple[int, str]]) -> reporting.ReportUpdater:
        """Return what makes the report anew while runs are trained."""
        self.report_updater = reporting.ReportUpdater(
            self.client, self.tracker.study_run.run_id, self.design, progress, self.tracker.study_run.lease.check
        )
        return self.report_updater

    def _train_awaited(self) -> None:
        """Runs of another study are used when they are done, and trained here if it leaves them undone."""
        told: set[str] = set()
        took = 0.0
        while self.awaited:
            for who in set(self.awaited.values()) - told:
                print_line(self.console, f"waiting for {counted(len(self.awaited), 'run')} that {who} trains")
                told.add(who)
            time.sleep(max(POLL_INTERVAL_SECONDS, 10 * took))  # the other study writes to the same database
            began = time.monotonic()
            try:
                elsewhere = self.journal.claim(self.awaited)
                known = run_queries.find_plan_runs(self.client, self.plan)
            except (MlflowException, ConfigError) as error:  # a server or a disk that is back the next time
                if (why := describe_error(error) if isinstance(error, MlflowException) else str(error)) not in told:
                    print_line(self.console, f"still waiting: {why}")
                told.add(why)
                continue
            took = time.monotonic() - began
            missing = [
                run
                for run in self.plan.runs
                if run.fingerprint in self.awaited and run.fingerprint not in run_queries.with_result(known)
            ]
            self.awaited = {run.fingerprint: elsewhere[run.fingerprint] for run in missing if run.fingerprint in elsewhere}
            self.tracker.add_known_runs(known)
            self._train([run for run in missing if run.fingerprint not in elsewhere])

    def is_complete(self, findings: Findings) -> bool:
        return findings.complete

    def conclude(self, waiting: int, *, interrupted: bool) -> int:
        """Ends the study in MLflow and prints its table, from there; returns the exit code.

        Raises:
            MlflowException: before the table. What goes wrong after it is told in one line, and that is all.
            HoldLost: another process has taken the study over.
        """
        if interrupted:  # who stops a study kills it soon
            check_study(self.client, self.plan.study.name)
            self.tracker.study_run.close("KILLED")
            self._show(*self._gather(details=False), waiting)
            return 1
        try:
            check_study(self.client, self.plan.study.name)
            evidence, findings = self._gather(details=True)
        except (KeyboardInterrupt, MlflowException):  # a library may make an error of its own of an interrupt
            with suppress(MlflowException):
                self.tracker.study_run.close("KILLED")
            raise
        complete = not waiting and self.is_complete(findings)
        try:
            self._show(evidence, findings, waiting)
            self._publish(evidence, findings)
            logged = self._log_models() if self.options.log_models else True
        finally:  # not before: whoever holds the study next may ask for more of it, and its report is another
            self._end("FINISHED" if complete else "FAILED")
        return 0 if complete and logged else 1

    def _gather(self, *, details: bool) -> tuple[Evidence, Findings]:
        evidence = results.gather(self.client, self.design, details=details)
        return evidence, analyze_study(evidence)

    def _show(self, evidence: Evidence, findings: Findings, waiting: int) -> None:
        terminal.show_results(self.console, evidence, findings, provenance.resubmit_command())
        if waiting:
            why = self.tracker.writer.deletion_messages() or ["the next submission delivers them"]
            left = f"{counted(waiting, 'record')} {'has' if waiting == 1 else 'have'} not reached MLflow yet"
            self.console.print(f"{left}; {'; '.join(why)}.", soft_wrap=True)

    def _end(self, status: str) -> None:
        try:
            self.tracker.study_run.close(status)
        except MlflowException as error:  # its runs have their results all the same
            print_line(self.console, f"The study's own run cannot be ended in MLflow: {describe_error(error)}.")

    def _publish(self, evidence: Evidence, findings: Findings) -> None:
        """Stores the report, unless that of just what is asked for is there; says where it is."""
        run_id = self.tracker.study_run.run_id
        if self.report_updater and self.report_updater.busy:
            print_line(
                self.console,
                "The report is not made: an earlier one is still being stored. The same command with --report makes it.",
            )
        elif self.up_to_date and self.tracker.study_run.report_is_current:
            reporting.print_report_address(self.console, self.client, run_id)
        else:
            self._log_design()
            reporting.publish_report(
                self.console, self.client, run_id, evidence, findings, permit=self.tracker.study_run.lease.check
            )

    def _log_models(self) -> bool:
        """Log final networks that are not in MLflow yet; return whether all of them are there."""
        from ablations.engine.submission.model_logging import log_models  # its packages are wanted here only

        try:
            entries = run_queries.find_plan_runs(self.client, self.plan)
            folders = {fingerprint: checkpoint_folder(fingerprint, entry.generation) for fingerprint, entry in entries.items()}
            problems = log_models(self.client, self.plan, entries, folders, self.options.storage)
        except MlflowException as error:
            problems = [f"No model was logged: {describe_error(error)}."]
        for problem in problems:
            print_line(self.console, problem)
        if problems:
            print_line(self.console, f"To log just those: {provenance.resubmit_command()}")
        return not problems


def _connect(options: Options) -> MlflowClient:
    """MLflow, and Ray at the same time where it is sure to be needed: making a database and starting Ray take seconds each."""
    new = is_new_database(options.tracking_uri)
    if new:
        create_database_file(options.tracking_uri)
    with ThreadPoolExecutor(max_workers=1) as pool:
        connecting = pool.submit(connect, options.tracking_uri)
        if new:
            from ablations.engine.scheduling import connection

            connection.connect()
        return connecting.result()


def prepare_cluster(plan: Plan, options: Options) -> "RunResources":
    """Return what a run takes from the cluster; raise ConfigError where that, or an address, does not suit the cluster."""
    from ablations.engine.scheduling import connection  # Ray: only where something runs

    taken = check_before_start(plan, options)
    connection.connect()
    taken.check()
    connection.check_reachable("--storage", options.storage)
    connection.check_reachable("--tracking-uri", options.tracking_uri.removeprefix("sqlite:///"))
    make_storage(options.storage)
    preflight.check_nodes(options.storage)
    return taken


def check_before_start(plan: Plan, options: Options) -> "RunResources":
    """Return what a run takes; raise ConfigError where the storage or this machine cannot give it, before anything is made."""
    from ablations.engine.scheduling.capacity import RunResources

    taken = RunResources(
        workers=plan.base.world_size, cpus_per_worker=options.cpus_per_worker, gpus_per_worker=options.gpus_per_worker
    )
    taken.check_machine()
    check_storage(options.storage)
    return taken


def job_of(run: Run, data_version: str, generation: int, options: Options) -> Job:
    return Job(
        fingerprint=run.fingerprint,
        spec=run.spec.flat(),
        data_version=data_version,
        folder=checkpoint_folder(run.fingerprint, generation),
        storage=options.storage,
        cache=str(paths.data_cache()),
        cpus_per_worker=options.cpus_per_worker,
        gpus_per_worker=options.gpus_per_worker,
        download=options.request.download,
        placement=options.placement,
        hang_timeout=options.hang_timeout,
    )


def checkpoint_folder(fingerprint: str, generation: int) -> str:
    """Name of the folder of a run's checkpoints; `--rerun` starts another one."""
    return fingerprint if generation == 1 else f"{fingerprint}-{generation}"
