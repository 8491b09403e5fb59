"""Submission of an adaptive study: cells get the seeds of further looks while a comparison of theirs is undecided."""

import time
from collections.abc import Sequence
from dataclasses import replace

from mlflow.exceptions import MlflowException

from ablations.engine.environment import paths
from ablations.engine.environment.console import print_line
from ablations.engine.study.plan import Plan, Run
from ablations.engine.study.request import Options
from ablations.engine.submission.adaptive_source import SeedProgress, SeedSource, SeedState
from ablations.engine.submission.lifecycle import submit
from ablations.engine.submission.study_submission import POLL_INTERVAL_SECONDS, StudySubmission
from ablations.engine.tracking import looks, run_queries
from ablations.engine.tracking.mlflow_errors import describe_error
from ablations.engine.tracking.run_queries import RunRecord
from resnet_core.fields import ConfigError, counted, reject


def run_adaptive_study(plan: Plan, options: Options) -> int:
    """Train what an adaptive study needs and print its table; return the exit code: 0 if every run has a result, else 1."""
    return submit(plan, options, AdaptiveSubmission)


class AdaptiveSubmission(StudySubmission):
    """Work on an adaptive study whose lock this process holds."""

    state: SeedState

    def _claim_and_look_up(self) -> dict[str, RunRecord]:
        """Claim all runs that the study may need; return the runs that MLflow has."""
        plan, options = self.plan, self.options
        # Claim before the query: it then finds the runs that another study finishes in between. The claims only shrink from here.
        elsewhere = self.journal.claim(run.fingerprint for run in plan.runs)
        if elsewhere and options.rerun:
            raise reject("--rerun", plan.study.name, f"wait for {next(iter(elsewhere.values()))}, which trains some of its runs")
        known, tags = run_queries.find_plan_runs(self.client, plan), looks.study_tags(self.client, plan)
        self.done = {} if options.rerun else run_queries.with_result(known)
        planned = looks.planned_seeds(tags, self.design.planned_seeds, declared=True)
        self.state = SeedState(plan, replace(self.design, planned_seeds=planned), looks.recorded_looks(tags))
        self.state.add_records(self.done)
        self.state.elsewhere = elsewhere
        missing = self.state.missing()
        self.to_train, self.awaited, self.up_to_date = self.state.startable(), {}, not missing
        self.journal.claim(run.fingerprint for run in self.state.possible())
        self.needs = self._prepare_cluster(missing) if missing else None
        return known

    def train(self) -> bool:
        """Train the runs that the path needs, until no comparison is open; return False if interrupted."""
        name = f"{self.plan.study.name} on {self.plan.dataset.name}"
        self._mention_other_sources()
        if self.up_to_date:
            self.console.print(f"{name}: all {len(self.state.needed())} runs that it needs are in MLflow already.")
            return True
        if self.plan.data_summary:
            print_line(self.console, f"Data: {self.plan.data_summary}")
        places = ", ".join(map(str, self.plan.seed_looks[:-1]))
        print_line(
            self.console,
            f"{name}: looks at {places} and {self.plan.seed_looks[-1]} seeds; {counted(len(self.to_train), 'run')} to train before "
            f"the next look, {len(self.done)} done already, at most {len(self.plan.runs)} in all.",
        )
        self._mention_resources(self.done)
        try:
            while (missing := self.state.missing()) and not self.supervisor.halted:
                if self.state.startable():
                    self._train_startable()
                else:
                    self._wait_for(missing)
        except KeyboardInterrupt:
            return False
        return True

    def _train_startable(self) -> None:
        """Train until no run may start; raise KeyboardInterrupt if the study is interrupted."""
        assert self.needs is not None
        from ablations.engine.scheduling import tune_runner

        reused = sum(self.state.has_result(run) for run in self.plan.runs)
        with SeedProgress(self.console, self.plan, self.state.startable()) as progress:
            progress.reused = reused
            source = SeedSource(
                self.state,
                self.tracker,
                progress,
                claim=self.journal.claim,
                make_job=self._make_run_job,
                supervision=self.supervisor,
            )

            def progress_made() -> tuple[int, str]:
                ended, needed = len(progress.outcomes) + reused, self.state.needed()
                return ended, f"{sum(map(self.state.has_result, needed))} of the {counted(len(needed), 'run')} needed so far"

            with self.report_updates(progress_made):
                try:
                    tune_runner.train_trials(
                        source,
                        self.needs,
                        max_concurrent=self.options.max_concurrent,
                        max_waiting=tune_runner.max_waiting(self.needs),
                        listener=source,
                        scratch=paths.home() / "tune",
                        hang_timeout=self.options.hang_timeout,
                        workload=self.workload,
                    )
                finally:
                    finished = source.finished
                    source.stop_active(self.tracker.lost_to)
                if not finished and not self.supervisor.halted:
                    raise KeyboardInterrupt

    def _wait_for(self, missing: Sequence[Run]) -> None:
        """Wait until a run that another study trains has a result, or is left to this one."""
        who = self.state.elsewhere[missing[0].fingerprint]
        print_line(self.console, f"waiting for {counted(len(missing), 'run')} that {who} trains")
        printed, query_seconds = "", 0.0
        while all(run.fingerprint in self.state.elsewhere and not self.state.has_result(run) for run in missing):
            # Queries slow down the other study, which writes to the same database.
            time.sleep(max(POLL_INTERVAL_SECONDS, 10 * query_seconds))
            began = time.monotonic()
            try:
                elsewhere = self.journal.claim(run.fingerprint for run in self.state.possible())
                known = run_queries.find_plan_runs(self.client, self.plan)
            except (MlflowException, ConfigError) as error:  # the server or the disk may answer next time
                if (why := describe_error(error) if isinstance(error, MlflowException) else str(error)) != printed:
                    print_line(self.console, f"still waiting: {why}")
                printed = why
                continue
            query_seconds = time.monotonic() - began
            self.tracker.add_known_runs(known)
            self.state.add_records(run_queries.with_result(known))
            self.state.elsewhere = elsewhere
