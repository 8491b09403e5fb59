"""What a study would do, cost and find, before anything starts."""

import os
from collections.abc import Sequence
from functools import partial

from ablations.engine.environment.console import make_console, print_line
from ablations.engine.environment.provenance import submission_id
from ablations.engine.scheduling.capacity import RunResources
from ablations.engine.search.plan import SearchPlan
from ablations.engine.study.plan import Plan, Run
from ablations.engine.study.request import Options
from ablations.engine.submission.planning.cost_and_power import estimate_cost
from ablations.engine.submission.planning.view import plan_view
from ablations.engine.submission.search_state import SearchState
from ablations.engine.tracking import run_queries, search_trials
from ablations.engine.tracking.connection import connect, is_new_database, mlflow_errors_as_config_errors
from ablations.engine.tracking.mlflow_errors import DeletedInMlflow, check_study
from ablations.engine.tracking.run_queries import CompletedRun, RunRecord
from ablations.engine.tracking.search_trials import PastTrial
from resnet_core.identity import TRAINING_VERSION


def preview(plan: Plan, options: Options) -> int:
    """Prints a plan; returns the exit code."""
    done, finished, past, warning = _known(plan, options)
    to_come: list[Run] = []
    if isinstance(plan, SearchPlan):
        searches = SearchState(plan, past, lambda run: None)
        if searches.finished:
            plan = plan.confirmation_plan(searches.choices())
            done, *_ = _known(plan, options)
        else:
            to_come, plan = plan.remaining_trials(searches.ended_in), plan.preview_plan()
    missing = [*to_come, *(run for run in plan.runs if run.fingerprint not in done)]
    measure = None
    if options.calibrate or (options.calibrate is None and not _on_a_cluster()):
        from ablations.engine.submission.planning.calibration import calibrate

        measure = partial(
            calibrate,
            image_size=plan.dataset.image_size,
            cpus_per_worker=options.cpus_per_worker,
            gpus_per_worker=options.gpus_per_worker,
        )
    at_once = _runs_at_once(plan, options)
    estimate = estimate_cost(plan, missing, finished, measure, at_once=at_once, gpus_per_worker=options.gpus_per_worker)
    console = make_console()
    console.print(plan_view(plan, done, estimate, to_come))
    if warning:
        print_line(console, warning)
    return 0


def _known(plan: Plan, options: Options) -> tuple[dict[str, RunRecord], list[CompletedRun], Sequence[PastTrial], str]:
    """The plan's runs that are done, others that tell how long runs take, the trials of a search, and what bars a submission."""
    if is_new_database(options.tracking_uri):
        return {}, [], (), ""  # nor is a database made to say so
    client, warning = connect(options.tracking_uri), ""
    with mlflow_errors_as_config_errors(options.tracking_uri):
        try:
            check_study(client, plan.study.name)
        except DeletedInMlflow as error:
            warning = f"Mind: as it is, this study will be refused: {error}"
        done = {} if options.rerun else run_queries.with_result(run_queries.find_plan_runs(client, plan))
        by = run_queries.training_version_filter(str(TRAINING_VERSION), "")
        past = search_trials.read_trials(client, plan.to_design(), by) if isinstance(plan, SearchPlan) else []
        return done, list(run_queries.completed_runs(client, plan.data.values())), past, warning


def _on_a_cluster() -> bool:
    """Whether this is the head of a cluster, or a job on it: others train there."""
    return os.environ.get("RAY_ADDRESS", "local") != "local" or submission_id() is not None


def _runs_at_once(plan: Plan, options: Options) -> int | None:
    """Return how many runs the cluster, or this machine, holds at a time; None where only a cluster could tell."""
    needs = RunResources(
        workers=plan.base.world_size, cpus_per_worker=options.cpus_per_worker, gpus_per_worker=options.gpus_per_worker
    )
    if _on_a_cluster():
        from ablations.engine.scheduling import connection

        connection.connect()
        held = needs.max_capacity() or needs.current_capacity()
    elif needs.gpus_per_worker:
        return None
    else:
        held = needs.runs_on({"CPU": os.cpu_count() or 1})
    return min(held, options.max_concurrent or held) or None
