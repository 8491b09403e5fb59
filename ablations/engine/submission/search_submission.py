"""Submission of a search: its trials, then the study that compares the chosen configurations with the default one."""

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
from ablations.engine.study.plan import Cell, Plan, Run
from ablations.engine.study.request import Options
from ablations.engine.submission import progress
from ablations.engine.submission.jobs import checkpoint_folder
from ablations.engine.submission.lifecycle import submit
from ablations.engine.submission.search_source import TrialSource
from ablations.engine.submission.search_state import SearchState
from ablations.engine.submission.study_submission import POLL_INTERVAL_SECONDS, StudySubmission
from ablations.engine.submission.supervision.supervisor import Supervisor
from ablations.engine.tracking import run_queries, search_trials
from ablations.engine.tracking.mlflow_errors import describe_error
from ablations.engine.tracking.run_queries import RunRecord
from ablations.engine.tracking.tracker import Tracker
from ablations.engine.tracking.writer import Writer
from ablations.engine.trial.job import Job
from resnet_core.fields import counted


def run_search(plan: Plan, options: Options) -> int:
    """Train what a search lacks and print what it found; return the exit code: 0 if every run has a result, else 1."""
    assert isinstance(plan, SearchPlan)
    return submit(plan, options, SearchSubmission)


class SearchSubmission(StudySubmission):
    """Work on a search whose lock this process holds."""

    plan: SearchPlan

    def __init__(self, console: Console, client: MlflowClient, plan: SearchPlan, options: Options, writer: Writer) -> None:
        self.console, self.client, self.plan, self.options, self.journal = console, client, plan, options, writer.journal
        self.workload = plan.workload.pickled()
        by = run_queries.training_version_filter(plan.workload.training_version, "")
        past = search_trials.read_trials(client, plan.to_design(), by)
        self.state = SearchState(plan, past, search_trials.SharedTrialLookup(client, plan.to_design(), by).adopt)
        self.has_trials_left = not self.state.is_finished
        # Rejects a wrong request before anything is written.
        self.needs = self._prepare_cluster(()) if self.has_trials_left else None
        known = {each.record.tags["fingerprint"]: each.record for each in past}
        self.tracker = Tracker(client, writer, plan, known, on_lease_lost=signals.interrupt_main_thread)
        self.supervisor = Supervisor(client, plan, options, self.tracker)
        self.up_to_date = False
        self.report_updater = None
        self._log_design()

    @property
    def design(self) -> Design:
        return replace(super().design, search=self.plan.to_design())

    def train(self) -> bool:
        """Run the search, then train the chosen and the default configurations; return False if interrupted."""
        if self.has_trials_left and not self._search():
            return bool(self.supervisor.halted)
        for cell, error in self.state.errors.items():
            print_line(self.console, f"{self._title_of(cell)}: the search ended early: {error}")
        choices = self.state.choices()
        for cell in (cell for cell, chosen in choices.items() if not chosen):
            print_line(self.console, f"{self._title_of(cell)}: no trial has completed, so that no configuration was chosen")
        self.plan = self.plan.confirmation_plan(choices)
        try:
            self.tracker.add_known_runs(self._retry_until_mlflow_answers(self._claim_and_look_up))
        except KeyboardInterrupt:
            return False
        self.up_to_date &= not self.has_trials_left
        self._log_design()
        return super().train()

    def _title_of(self, cell: Cell) -> str:
        """Return the name of a search for messages: its levels, or the name of the study if there is one search."""
        return str(cell) or self.plan.study.name

    def _retry_until_mlflow_answers(self, look_up: Callable[[], dict[str, RunRecord]]) -> dict[str, RunRecord]:
        """Return the result of a query. While MLflow is down, repeat it, since a finished search must not be lost."""
        printed = ""
        while True:
            try:
                return look_up()
            except MlflowException as error:
                if (why := describe_error(error)) != printed:
                    print_line(self.console, f"waiting for MLflow, to learn which runs are trained already: {why}")
                printed = why
                time.sleep(POLL_INTERVAL_SECONDS)

    def is_complete(self, findings: Findings) -> bool:
        """Return whether every run has a result and no search ended early."""
        return super().is_complete(findings) and not self.state.errors

    def _search(self) -> bool:
        """Train the trials that the search suggests; return False if interrupted."""
        assert self.needs is not None
        from ablations.engine.scheduling import tune_runner

        print_line(self.console, f"Data of the search: {self.plan.trial_data.summary}")
        self.console.print(f"{self.plan.study.name} on {self.plan.dataset.name}: {describe_budget(self.plan)}.")
        self._mention_resources({})
        if self.state.trials_outside_space:
            outside = self.state.trials_outside_space
            verb = "lies" if outside == 1 else "lie"
            self.console.print(f"{counted(outside, 'earlier trial')} {verb} outside the space searched now and will be ignored.")
        with SearchProgress(self.console, self.plan, self.state) as progress:
            source = TrialSource(
                self.state,
                self.tracker,
                progress,
                claim=self.journal.claim,
                make_job=self._make_job,
                supervision=self.supervisor,
            )
            with self.report_updates(progress.progress_made):
                try:
                    limit, scratch = self.options.max_concurrent, paths.home() / "tune"
                    timeout = self.options.hang_timeout
                    tune_runner.train_trials(
                        source,
                        self.needs,
                        max_concurrent=limit,
                        listener=source,
                        scratch=scratch,
                        hang_timeout=timeout,
                        workload=self.workload,
                    )
                finally:
                    source.stop_active(self.tracker.lost_to)
        return self.state.is_finished

    def _make_job(self, run: Run, parent: Run | None) -> Job:
        job = self._make_run_job(run)
        if parent is None:
            return job
        assert run.trial is not None
        assert run.trial.branch is not None
        folder = checkpoint_folder(parent.fingerprint, self.tracker.generation(parent))
        return replace(job, branch=folder, branch_epoch=run.trial.branch[1])


class SearchProgress(progress.Progress):
    """Progress of a search, of which only the budget is known beforehand."""

    def __init__(self, console: Console, plan: SearchPlan, state: SearchState) -> None:
        super().__init__(console, plan, ())
        self.metric = plan.trial_metric
        self.state, self.total, self.began_at = state, plan.max_trials, state.fraction_done
        self.reused = 0

    def progress_made(self) -> tuple[int, str]:
        """Return how many trials have ended, as a number and as text."""
        noun = "trial" if (self.total or self.state.ended_trials) == 1 else "trials"
        return len(self.outcomes), f"{self.counted(self.state.ended_trials).lstrip()} {noun}"

    def _fraction_done(self) -> float:
        return (self.state.fraction_done - self.began_at) / max(1 - self.began_at, 1e-9)
