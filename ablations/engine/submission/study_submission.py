"""Submission of a study: train its missing runs, track them in MLflow, and make its table and report from there."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from rich.console import Console

from ablations.engine.environment import paths, provenance, signals
from ablations.engine.environment.console import print_line
from ablations.engine.report.updates import ReportUpdater
from ablations.engine.scheduling.capacity import RunResources
from ablations.engine.study.design import Design
from ablations.engine.study.plan import Plan, Run
from ablations.engine.study.request import Options
from ablations.engine.submission.jobs import checkpoint_folder, describe_other_devices, make_job, prepare_cluster
from ablations.engine.submission.lifecycle import submit
from ablations.engine.submission.progress import Progress
from ablations.engine.submission.run_events import RunEvents
from ablations.engine.submission.supervision.supervisor import Supervisor
from ablations.engine.tracking import run_queries
from ablations.engine.tracking.lease import LeaseLost
from ablations.engine.tracking.mlflow_errors import check_study, describe_error
from ablations.engine.tracking.tracker import Tracker
from ablations.engine.tracking.writer import Writer
from ablations.engine.trial.job import Job
from resnet_core.fields import ConfigError, counted, reject

if TYPE_CHECKING:
    from ablations.engine.analysis.evidence import Evidence
    from ablations.engine.analysis.findings import Findings

# The first run does not wait for the statistics and the report: methods import them at the end of a study.

POLL_INTERVAL_SECONDS = 5.0
"""Minimum time between two queries for runs that another study trains, in seconds."""


def run_study(plan: Plan, options: Options) -> int:
    """Train what a study lacks and print its table; return the exit code: 0 if every run has a result, else 1."""
    return submit(plan, options, StudySubmission)


class StudySubmission:
    """Work on a study whose lock this process holds: looks up, trains, waits and concludes."""

    needs: RunResources | None
    """Resources of one run; None if no run is missing."""
    _resources = _printed_resources = ""
    _shown: "Findings | None" = None
    """Findings that the end of the study has printed."""

    def __init__(self, console: Console, client: MlflowClient, plan: Plan, options: Options, writer: Writer) -> None:
        self.console, self.client, self.plan, self.options, self.journal = console, client, plan, options, writer.journal
        self.workload = plan.workload.pickled()
        known = self._claim_and_look_up()  # rejects a wrong request before anything is written
        self.tracker = Tracker(client, writer, plan, known, rerun=options.rerun, on_lease_lost=signals.interrupt_main_thread)
        self.supervisor = Supervisor(client, plan, options, self.tracker)
        self.report_updater: ReportUpdater | None = None
        self._log_design()

    def _claim_and_look_up(self) -> dict[str, run_queries.RunRecord]:
        """Claim the plan's runs and sort them into done, to train, and awaited; return the runs that MLflow has."""
        plan, options = self.plan, self.options
        # Claim before the query: it then finds the runs that another study finishes in between.
        elsewhere = self.journal.claim(run.fingerprint for run in plan.runs)
        if elsewhere and options.rerun:
            raise reject("--rerun", plan.study.name, f"wait for {next(iter(elsewhere.values()))}, which trains some of its runs")
        known = run_queries.find_plan_runs(self.client, plan)
        self.done = {} if options.rerun else run_queries.with_result(known)
        missing = [run for run in plan.runs if run.fingerprint not in self.done]
        self.to_train = [run for run in missing if run.fingerprint not in elsewhere]
        self.up_to_date = not missing
        self.awaited = {run.fingerprint: elsewhere[run.fingerprint] for run in missing if run.fingerprint in elsewhere}
        """Fingerprints of runs that another study trains, with a description of its process."""
        self.journal.claim(run.fingerprint for run in self.to_train)
        self.needs = self._prepare_cluster(missing) if missing else None
        return known

    def _prepare_cluster(self, runs: Sequence[Run]) -> RunResources:
        """Return the resources of one run. `runs`: those to train, as far as they are known."""
        choice = prepare_cluster(self.plan, self.options, runs, lambda: run_queries.completed_runs(self.client, self.plan))
        self._resources = choice.describe() if choice.reason else ""
        return choice.resources

    def _mention_resources(self, done: Mapping[str, run_queries.RunRecord]) -> None:
        """Print the resources of a run, if the user named none, and how many of some results come from another kind of device."""
        if self._resources != self._printed_resources:
            print_line(self.console, self._resources)
            self._printed_resources = self._resources
        if self.needs and (note := describe_other_devices(done, self.needs)):
            print_line(self.console, note)

    @property
    def design(self) -> Design:
        """Design of the study as submitted."""
        return replace(Design.from_plan(self.plan, self._origin), rates=self.options.request.rates)

    @cached_property
    def _origin(self) -> dict[str, str]:
        return provenance.submission_origin()

    def train(self) -> bool:
        """Train the missing runs and wait for those that another study trains; return False if interrupted."""
        name = f"{self.plan.study.name} on {self.plan.dataset.name}"
        self._mention_other_sources()
        if left_out := self.tracker.study_run.left_out:
            which = f"The report will leave out {counted(left_out, 'run')} of the previous submission"
            command = self.tracker.study_run.previous_command
            again = f", and its command shows them again: {command}" if command else "."
            print_line(self.console, f"{which}. Their results stay in MLflow{again}")
        if not self.to_train and not self.awaited:
            there = "its only run is" if len(self.done) == 1 else f"all {len(self.done)} runs are"
            self.console.print(f"{name}: {there} in MLflow already.")
            return True
        if self.plan.data_summary:
            print_line(self.console, f"Data: {self.plan.data_summary}")
        self.console.print(f"{name}: {counted(len(self.to_train), 'run')} to train, {len(self.done)} done already.")
        self._mention_resources(self.done)
        try:
            self._train(self.to_train)
            self._train_awaited()
        except KeyboardInterrupt:
            return False
        return True

    def _mention_other_sources(self) -> None:
        """Print how many results were trained by sources of `resnet_core` that differ from those of this process."""
        here, version = self.plan.workload.code_version(), self.plan.workload.training_version
        others = sum(here not in record.tags.get("code_version", "").split(", ") for record in self.done.values())
        if others:
            print_line(
                self.console,
                f"{others} of {counted(len(self.done), 'run')} done {'was' if others == 1 else 'were'} trained by other sources of "
                f"resnet_core. The training version, {version}, is the same, which counts; --rerun trains them again.",
            )

    def _log_design(self) -> None:
        """Log the design before any run starts, so that an interrupted study has a report; a failure is retried at its end."""
        try:
            self.tracker.study_run.log_design(self.design)
        except LeaseLost:
            raise
        except Exception as error:  # a store's own library may raise anything, and training does not depend on it
            print_line(self.console, f"The design of this study cannot be stored in MLflow yet: {describe_error(error)}")

    def _train(self, runs: Sequence[Run]) -> None:
        """Train runs; raise KeyboardInterrupt if the study is interrupted."""
        if not runs:
            return
        assert self.needs is not None
        from ablations.engine.scheduling import tune_runner

        jobs = [self._make_run_job(run) for run in runs]
        with Progress(self.console, self.plan, runs) as progress:
            events = RunEvents(runs, self.tracker, progress, self.supervisor)
            limit, scratch = self.options.max_concurrent, paths.home() / "tune"
            before = len(self.plan.runs) - len(runs) - len(self.awaited)

            def progress_made() -> tuple[int, str]:
                ended = before + len(runs) - len(events.unfinished)
                return ended, f"{ended} of {counted(len(self.plan.runs), 'run')}"

            with self.report_updates(progress_made):
                try:
                    tune_runner.train_runs(
                        jobs, self.needs, max_concurrent=limit, listener=events, scratch=scratch, workload=self.workload
                    )
                finally:
                    finished = events.stop_active(self.tracker.lost_to)
                if not finished and not self.supervisor.halted:
                    raise KeyboardInterrupt

    def _make_run_job(self, run: Run) -> Job:
        assert self.needs is not None
        return make_job(run, self.plan.dataset_for_run(run).version, self.tracker.generation(run), self.needs, self.options)

    def report_updates(self, progress: Callable[[], tuple[int, str]]) -> ReportUpdater:
        """Return a context in which a thread updates the report while runs train. `progress` says how far they are."""
        self.report_updater = ReportUpdater(
            self.client, self.tracker.study_run.run_id, self.design, progress, self.tracker.study_run.lease.check
        )
        return self.report_updater

    def _train_awaited(self) -> None:
        """Wait for runs that another study trains, and train those that it leaves unfinished."""
        printed: set[str] = set()
        query_seconds = 0.0
        while self.awaited and not self.supervisor.halted:
            for who in set(self.awaited.values()) - printed:
                print_line(self.console, f"waiting for {counted(len(self.awaited), 'run')} that {who} trains")
                printed.add(who)
            # Queries slow down the other study, which writes to the same database.
            time.sleep(max(POLL_INTERVAL_SECONDS, 10 * query_seconds))
            began = time.monotonic()
            try:
                elsewhere = self.journal.claim(self.awaited)
                known = run_queries.find_plan_runs(self.client, self.plan)
            except (MlflowException, ConfigError) as error:  # the server or the disk may answer next time
                if (why := describe_error(error) if isinstance(error, MlflowException) else str(error)) not in printed:
                    print_line(self.console, f"still waiting: {why}")
                printed.add(why)
                continue
            query_seconds = time.monotonic() - began
            missing = [
                run
                for run in self.plan.runs
                if run.fingerprint in self.awaited and run.fingerprint not in run_queries.with_result(known)
            ]
            self.awaited = {run.fingerprint: elsewhere[run.fingerprint] for run in missing if run.fingerprint in elsewhere}
            self.tracker.add_known_runs(known)
            self._train([run for run in missing if run.fingerprint not in elsewhere])

    def is_complete(self, findings: "Findings") -> bool:
        """Return whether every run has a result."""
        return findings.complete

    def conclude(self, pending: int, *, interrupted: bool) -> int:
        """Print the table from MLflow, publish the report and end the study there; return the exit code.

        Args:
            pending: number of records that MLflow has not accepted.
            interrupted: print the table only, since an interrupted job is soon killed.

        Raises:
            MlflowException: the table cannot be made. Failures after the table are printed in one line.
            LeaseLost: another process has taken the study over.
        """
        if interrupted:
            check_study(self.client, self.plan.study.name)
            self.tracker.study_run.close("KILLED")
            self._show(*self._gather(details=False), pending)
            return 1
        try:
            check_study(self.client, self.plan.study.name)
            evidence, findings = self._gather(details=True)
        except (KeyboardInterrupt, MlflowException):  # a library may turn an interrupt into its own error
            with suppress(MlflowException):
                self.tracker.study_run.close("KILLED")
            raise
        complete = not pending and self.is_complete(findings)
        try:
            self._show(evidence, findings, pending)
            self._publish(evidence, findings)
            logged = self._log_models() if self.options.log_models else True
        finally:  # last: after this, another process may hold the study and publish another report
            self._end("FINISHED" if complete else "FAILED")
        return 0 if complete and logged else 1

    def _gather(self, *, details: bool) -> "tuple[Evidence, Findings]":
        from ablations.engine.analysis.study_analysis import analyze_study
        from ablations.engine.tracking import results

        evidence = results.gather(self.client, self.design, self.tracker.study_run.run_id, details=details)
        return evidence, analyze_study(evidence)

    def describe_end(self) -> str:
        """Return how many runs have a result, and the answers, as one line."""
        from ablations.engine.submission import reporting

        return reporting.describe_findings(self._shown) if self._shown else "Its results could not be read."

    def _show(self, evidence: "Evidence", findings: "Findings", pending: int) -> None:
        from ablations.engine.report import terminal
        from ablations.engine.submission import reporting

        self._shown = findings
        terminal.show_results(self.console, evidence, findings, provenance.resubmit_command())
        reporting.record_look(self.console, self.client, self.tracker.study_run.run_id, evidence, findings)
        if pending:
            why = self.tracker.writer.deletion_messages() or ["the next submission delivers them"]
            left = f"{counted(pending, 'record')} {'has' if pending == 1 else 'have'} not reached MLflow yet"
            self.console.print(f"{left}; {'; '.join(why)}.", soft_wrap=True)

    def _end(self, status: str) -> None:
        try:
            self.tracker.study_run.close(status)
        except MlflowException as error:  # the runs have their results nevertheless
            print_line(self.console, f"The study's own run in MLflow cannot be ended: {describe_error(error)}.")

    def _publish(self, evidence: "Evidence", findings: "Findings") -> None:
        """Publish the report, unless MLflow has the one of this design, and print its address."""
        from ablations.engine.submission import reporting

        run_id = self.tracker.study_run.run_id
        if self.report_updater and self.report_updater.busy:
            print_line(
                self.console,
                "No report was made: an earlier one is still being stored. The same command with --report makes it.",
            )
        elif self.up_to_date and self.tracker.study_run.report_is_current:
            reporting.print_report_address(self.console, self.client, run_id)
        else:
            self._log_design()
            reporting.publish_report(
                self.console, self.client, run_id, evidence, findings, permit=self.tracker.study_run.lease.check
            )

    def _log_models(self) -> bool:
        """Log the final networks that MLflow lacks; return whether it now has all of them."""
        from ablations.engine.submission.model_logging import log_models  # imports packages that nothing else needs

        try:
            records = run_queries.find_plan_runs(self.client, self.plan)
            folders = {fingerprint: checkpoint_folder(fingerprint, record.generation) for fingerprint, record in records.items()}
            problems = log_models(self.client, self.plan, records, folders, self.options.storage)
        except MlflowException as error:
            problems = [f"No model was logged: {describe_error(error)}."]
        for problem in problems:
            print_line(self.console, problem)
        if problems:
            print_line(self.console, f"To log the missing models: {provenance.resubmit_command()}")
        return not problems
