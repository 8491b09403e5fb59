"""Preview of a study (`--plan`): what it would train, cost and detect, before anything starts."""

import math
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from ablations.engine.environment.console import make_console, print_line
from ablations.engine.environment.provenance import submission_id
from ablations.engine.scheduling import gpu_choice
from ablations.engine.scheduling.capacity import RunResources, local_resources
from ablations.engine.scheduling.gpu_choice import ResourceChoice
from ablations.engine.study.design import Design
from ablations.engine.study.plan import Plan, Run
from ablations.engine.study.request import Options
from ablations.engine.submission.jobs import choose_resources, describe_other_devices
from ablations.engine.submission.planning.cost_and_power import CostEstimate, estimate_cost
from ablations.engine.submission.planning.quick_client import NotQuick, QuickClient
from ablations.engine.submission.planning.searches import search_plan
from ablations.engine.submission.planning.view import plan_view
from ablations.engine.tracking import looks, run_queries
from ablations.engine.tracking.connection import connect, is_new_database, mlflow_errors_as_config_errors
from ablations.engine.tracking.run_queries import CompletedRun, RunRecord
from resnet_core.fields import ConfigError

if TYPE_CHECKING:
    from rich.console import Console

    from ablations.engine.submission.planning.seed_forecast import SeedForecast
    from ablations.engine.tracking.search_trials import PastTrial

# A plan is shown within 3 s: functions below import what only some plans need, such as Optuna, SciPy, MLflow and torch.
# `tests/submission/test_plan_imports.py` lists what the others do without.

Known = tuple[dict[str, RunRecord], list[CompletedRun], "Sequence[PastTrial]", str]
"""The plan's finished runs, completed runs on the same data, trials of the search, and a warning, which may be empty."""


@dataclass(frozen=True, kw_only=True)
class Preview:
    """The runs that a study would train, and their cost."""

    plan: Plan
    """The study; for a search that has not ended, with a copy of the default in place of each future choice."""
    done: Mapping[str, RunRecord]
    """Runs that have a result, by fingerprint."""
    trials: Sequence[Run]
    """Trials of a search that are left to train."""
    estimate: CostEstimate
    resources: ResourceChoice
    """Resources of one run."""
    other_devices: str
    """Sentence about finished runs that trained on another kind of device; empty if none did."""
    looks: tuple[int, ...] = ()
    """Numbers of seeds at which the study's answer was shown before."""
    design: Design
    """Design of the study, with the planned seeds that MLflow has."""
    seeds: "SeedForecast | None" = None
    """Cost of an adaptive study, whose `estimate` is that of all runs that it may need; None for a fixed number of seeds."""
    warning: str
    """Reason why a submission would be rejected; empty if it would not."""


def preview(plan: Plan, options: Options) -> int:
    """Print the plan of a study; return the exit code."""
    show_preview(make_console(), examine(plan, options))
    return 0


def show_preview(console: "Console", found: Preview) -> None:
    """Print the plan of a study, and a warning if a submission would be rejected."""
    resources = [found.resources.describe(), *([found.other_devices] if found.other_devices else [])]
    console.print(
        plan_view(
            found.plan,
            found.design,
            found.done,
            found.estimate,
            trials=found.trials,
            seeds=found.seeds,
            resources=resources,
            looks=found.looks,
        )
    )
    if found.warning:
        print_line(console, f"Warning: this study would be rejected: {found.warning}")


def examine(plan: Plan, options: Options) -> Preview:
    """Return what a study would train and cost; start nothing."""
    done, finished, past, warning = _known(plan, options)
    trials_left: list[Run] = []
    if searched := search_plan(plan):
        from ablations.engine.submission.search_state import SearchState

        state = SearchState(searched, past, lambda run: None)
        if state.is_finished:
            plan = searched.confirmation_plan(state.choices())
            done, *_ = _known(plan, options)
        else:
            trials_left, plan = searched.remaining_trials(state.ended_trials_in), searched.preview_plan()
    missing = [*trials_left, *(run for run in plan.runs if run.fingerprint not in done)]
    choice, rejection = _choose_resources(plan, options, [] if trials_left else missing, finished)
    needs = choice.resources
    measure = None
    if options.calibrate and not plan.workload.task_name:
        from ablations.engine.submission.planning.calibration import calibrate

        measure = partial(
            calibrate,
            sizes_of=lambda spec: plan.dataset_for_spec(spec).sizes,
            cpus_per_worker=needs.cpus_per_worker,
            gpus_per_worker=needs.gpus_per_worker,
        )
    at_once = _runs_at_once(needs, options)
    estimate = estimate_cost(plan, missing, finished, measure, at_once=at_once, gpus_per_worker=needs.gpus_per_worker)
    design, earlier = _known_design(plan, options)
    seeds = _forecast(design, earlier, done, estimate) if plan.seed_looks else None
    return Preview(
        plan=plan,
        done=done,
        trials=trials_left,
        estimate=replace(estimate, usd_per_gpu_hour=options.request.rates.usd_per_gpu_hour),
        resources=choice,
        other_devices=describe_other_devices(done, needs) if missing and not rejection else "",
        looks=earlier,
        design=design,
        seeds=seeds,
        warning=warning or rejection,
    )


def _choose_resources(
    plan: Plan, options: Options, missing: Sequence[Run], finished: Sequence[CompletedRun]
) -> tuple[ResourceChoice, str]:
    """Return the resources of one run, and why a submission would be rejected, which may be empty."""
    if _on_a_cluster():
        from ablations.engine.scheduling import connection

        connection.connect()
        there = gpu_choice.joined_cluster()
    else:
        there = gpu_choice.this_machine()
    try:
        return choose_resources(plan, options, missing, there, lambda: finished), ""
    except ConfigError as error:
        needs = RunResources(workers=plan.base.world_size, cpus_per_worker=options.cpus_per_worker)
        return ResourceChoice(resources=needs), str(error)


def _known_design(plan: Plan, options: Options) -> tuple[Design, tuple[int, ...]]:
    """Return the design of a study with the planned seeds that MLflow has, and the numbers of seeds of earlier looks."""
    design, tags = Design.from_plan(plan, {}), _study_tags(plan, options)
    planned = looks.planned_seeds(tags, design.planned_seeds, declared=bool(design.seed_looks))
    return replace(design, planned_seeds=planned), looks.recorded_looks(tags)


def _study_tags(plan: Plan, options: Options) -> Mapping[str, str]:
    if is_new_database(options.tracking_uri):
        return {}
    with suppress(NotQuick):
        return looks.study_tags(QuickClient(options.tracking_uri), plan)
    with mlflow_errors_as_config_errors(options.tracking_uri):
        return looks.study_tags(connect(options.tracking_uri), plan)


def _forecast(design: Design, earlier: tuple[int, ...], done: Mapping[str, RunRecord], estimate: CostEstimate) -> "SeedForecast":
    from ablations.engine.submission.planning.seed_forecast import forecast_seeds

    name = design.metric.name
    results = {
        fingerprint: (record.outcome, record.metrics.get(name, math.nan) if record.completed else math.nan)
        for fingerprint, record in done.items()
    }
    return forecast_seeds(design, results, estimate, earlier)


def _known(plan: Plan, options: Options) -> Known:
    if is_new_database(options.tracking_uri):
        return {}, [], (), ""  # a preview creates no database
    if not search_plan(plan):
        with suppress(NotQuick):
            return _quickly_known(plan, options)
    from ablations.engine.tracking import search_trials
    from ablations.engine.tracking.mlflow_errors import DeletedInMlflow, check_study

    client, warning = connect(options.tracking_uri), ""
    with mlflow_errors_as_config_errors(options.tracking_uri):
        try:
            check_study(client, plan.study.name)
        except DeletedInMlflow as error:
            warning = str(error)
        done = {} if options.rerun else run_queries.with_result(run_queries.find_plan_runs(client, plan))
        by = run_queries.training_version_filter(plan.workload.training_version, "")
        past = search_trials.read_trials(client, searched.to_design(), by) if (searched := search_plan(plan)) else []
        return done, list(run_queries.completed_runs(client, plan)), past, warning


def _quickly_known(plan: Plan, options: Options) -> Known:
    """Return what MLflow knows of a study that is no search, without importing MLflow; raise NotQuick if that is not enough."""
    client = QuickClient(options.tracking_uri)
    experiment = client.get_experiment_by_name(plan.study.name)
    if experiment and experiment.lifecycle_stage != "active":
        raise NotQuick  # it was deleted, and the warning needs MLflow's own client
    done = {} if options.rerun else run_queries.with_result(run_queries.find_plan_runs(client, plan))
    return done, list(run_queries.completed_runs(client, plan)), (), ""


def _on_a_cluster() -> bool:
    """Return whether this process runs on a cluster or as a job. Timing steps there would disturb the runs of others."""
    return os.environ.get("RAY_ADDRESS", "local") != "local" or submission_id() is not None


def _runs_at_once(needs: RunResources, options: Options) -> int | None:
    """Return how many runs the cluster or this machine holds at a time; None if it holds none."""
    held = (needs.max_capacity() or needs.current_capacity()) if _on_a_cluster() else needs.runs_on(local_resources())
    return min(held, options.max_concurrent or held) or None
