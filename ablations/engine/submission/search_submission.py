"""A search from plan to table: its trials first, then the study that compares what they chose with the default configuration."""

import time
from collections.abc import Callable
from dataclasses import replace

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from rich.console import Console

from ablations.engine.analysis.findings import Findings
from ablations.engine.environment import paths, signals
from ablations.engine.environment.console import print_line
from ablations.engine.search.plan import SearchPlan, describe_budget
from ablations.engine.study.design import Design
from ablations.engine.study.plan import Plan, Run
from ablations.engine.study.request import Options
from ablations.engine.submission import progress
from ablations.engine.submission.search_source import TrialSource
from ablations.engine.submission.search_state import SearchState
from ablations.engine.submission.study_submission import (
    POLL_INTERVAL_SECONDS,
    Submission,
    checkpoint_folder,
    job_of,
    prepare_cluster,
    submit,
)
from ablations.engine.tracking import run_queries, search_trials
from ablations.engine.tracking.mlflow_errors import describe_error
from ablations.engine.tracking.run_queries import RunRecord
from ablations.engine.tracking.tracker import Tracker
from ablations.engine.tracking.writer import Writer
from ablations.engine.trial.job import Job
from resnet_core.fields import counted
from resnet_core.identity import TRAINING_VERSION


def run_search(plan: Plan, options: Options) -> int:
    """Brings a search to its end and prints what it found; returns the exit code: 0 if every run has a result, else 1."""
    return submit(plan, options, SearchSubmission)


class SearchSubmission(Submission):
    """A search's way through the cluster and MLflow, once it is held."""

    plan: SearchPlan

    def __init__(self, console: Console, client: MlflowClient, plan: SearchPlan, options: Options, writer: Writer) -> None:
        self.console, self.client, self.plan, self.options, self.journal = console, client, plan, options, writer.journal
        by = run_queries.training_version_filter(str(TRAINING_VERSION), "")
        past = search_trials.read_trials(client, plan.to_design(), by)
        self.searches = SearchState(plan, past, search_trials.SharedTrialLookup(client, plan.to_design(), by).adopt)
        self.searched = not self.searches.finished
        self.needs = prepare_cluster(plan, options) if self.searched else None  # refuses before anything is written
        known = {each.record.tags["fingerprint"]: each.record for each in past}
        self.tracker = Tracker(client, writer, plan, known, on_lease_lost=signals.interrupt_main_thread)
        self.up_to_date = False
        self.report_updater = None
        self._log_design()

    @property
    def design(self) -> Design:
        return replace(super().design, search=self.plan.to_design())

    def train(self) -> bool:
        """SearchState, then trains what was chosen, and the default; returns False if it was asked to stop."""
        if self.searched and not self._search():
            return False
        for cell, error in self.searches.errors.items():
            print_line(self.console, f"{cell or self.plan.study.name}: the search ended early. {error}")
        choices = self.searches.choices()
        for cell in (cell for cell, chosen in choices.items() if not chosen):
            print_line(self.console, f"{cell or self.plan.study.name}: no trial was completed, so there is nothing to confirm")
        self.plan = self.plan.confirmation_plan(choices)
        try:
            self.tracker.add_known_runs(self._once_it_answers(self._look_up))
        except KeyboardInterrupt:
            return False
        self.up_to_date &= not self.searched
        self._log_design()
        return super().train()

    def _once_it_answers(self, look_up: Callable[[], dict[str, RunRecord]]) -> dict[str, RunRecord]:
        """What MLflow knows. A server that is down when the search ends is waited for."""
        told = ""
        while True:
            try:
                return look_up()
            except MlflowException as error:
                if (why := describe_error(error)) != told:
                    print_line(self.console, f"waiting for MLflow, which knows what is trained already: {why}")
                told = why
                time.sleep(POLL_INTERVAL_SECONDS)

    def is_complete(self, findings: Findings) -> bool:
        return super().is_complete(findings) and not self.searches.errors

    def _search(self) -> bool:
        """Trains what the searches ask for; returns False if it was asked to stop."""
        assert self.needs is not None
        from ablations.engine.scheduling import tune_runner

        print_line(self.console, f"Data of the search: {self.plan.trial_data.summary}")
        self.console.print(f"{self.plan.study.name} on {self.plan.dataset.name}: {describe_budget(self.plan)}.")
        if self.searches.outside:
            outside, verb = counted(self.searches.outside, "earlier trial"), "is" if self.searches.outside == 1 else "are"
            self.console.print(f"{outside} {verb} not of the space searched now, and {verb} passed over.")
        with SearchProgress(self.console, self.plan, self.searches) as progress:
            source = TrialSource(self.searches, self.tracker, progress, claim=self.journal.claim, job_of=self._job_of)
            with self.report_updated(progress.made):
                try:
                    limit, scratch = self.options.max_concurrent, paths.home() / "tune"
                    timeout = self.options.hang_timeout
                    tune_runner.train_trials(
                        source, self.needs, max_concurrent=limit, listener=source, scratch=scratch, hang_timeout=timeout
                    )
                finally:
                    source.stop_active(self.tracker.lost_to)
        return self.searches.finished

    def _job_of(self, run: Run, parent: Run | None) -> Job:
        job = job_of(run, self.plan.dataset_for_run(run).version, self.tracker.generation(run), self.options)
        if parent is None:
            return job
        assert run.trial is not None
        assert run.trial.branch is not None
        folder = checkpoint_folder(parent.fingerprint, self.tracker.generation(parent))
        return replace(job, branch=folder, branch_epoch=run.trial.branch[1])


class SearchProgress(progress.Progress):
    """Progress of trials, of which only the budget is known beforehand."""

    def __init__(self, console: Console, plan: SearchPlan, searches: SearchState) -> None:
        super().__init__(console, plan, ())
        self.evaluation_split = "validation"
        self.searches, self.total, self.began_at = searches, plan.max_trials, searches.share
        self.reused = 0

    def made(self) -> tuple[int, str]:
        """For `reporting.ReportUpdater`."""
        noun = "trial" if (self.total or self.searches.ended) == 1 else "trials"
        return len(self.outcomes), f"{self.counted(self.searches.ended).lstrip()} {noun}"

    def _share(self) -> float:
        return (self.searches.share - self.began_at) / max(1 - self.began_at, 1e-9)
