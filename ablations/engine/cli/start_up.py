"""Start of a training: Ray starts while MLflow is imported and its database opened, since each of them takes seconds."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from ablations.engine.study.plan import Plan
from ablations.engine.study.request import Options
from ablations.engine.submission.jobs import check_before_start
from ablations.engine.submission.planning.quick_client import NotQuick, QuickClient
from ablations.engine.tracking import run_queries
from ablations.engine.tracking.connection import connect, create_database_file, is_new_database


def start_ray_beside_mlflow(plan: Plan, options: Options) -> None:
    """Start Ray, or join the cluster, and open MLflow at the same time, if a run is certainly missing.

    Otherwise do nothing: the submission looks the runs up in MLflow first, and joins Ray if one is missing.

    Raises:
        ConfigError: this machine cannot hold one run, the storage or the cluster cannot be used, or the database cannot be created.
    """
    if not _is_missing_a_run(plan, options):
        return
    check_before_start(plan, options)
    if is_new_database(options.tracking_uri):
        create_database_file(options.tracking_uri)
    from ablations.engine.scheduling import connection

    connection.import_ray()  # before the thread starts: two threads should not import parts of the same packages
    with ThreadPoolExecutor(max_workers=1) as pool:
        pool.submit(_open_mlflow, options.tracking_uri)
        connection.connect()


def _open_mlflow(uri: str) -> None:
    """Import MLflow and connect to it once; its tables are then created. The submission meets, and reports, the same errors."""
    with suppress(Exception):
        connect(uri)


def _is_missing_a_run(plan: Plan, options: Options) -> bool:
    """Return whether MLflow certainly lacks a run of a plan, and its study can be submitted, as far as a quick look says."""
    if is_new_database(options.tracking_uri):
        return True
    if plan.seed_looks:
        return False  # its missing runs may not be needed any more
    try:
        client = QuickClient(options.tracking_uri)
        experiment = client.get_experiment_by_name(plan.study.name)
        if experiment and experiment.lifecycle_stage != "active":
            return False
        done = run_queries.with_result(run_queries.find_plan_runs(client, plan))
    except NotQuick:
        return False
    return options.rerun or any(run.fingerprint not in done for run in plan.runs)
