"""What MLflow's errors mean: a server that does not answer, one that refuses, and what was deleted there, with the way back."""

import shlex

from mlflow import MlflowClient
from mlflow.entities import Experiment, LifecycleStage, ViewType
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_STATE

PERMANENT_ERRORS = ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "INVALID_STATE", "RESOURCE_ALREADY_EXISTS")
"""Codes of MLflow for requests that it will not accept later either."""
PERMISSION_ERRORS = ("PERMISSION_DENIED", "CUSTOMER_UNAUTHORIZED", "UNAUTHENTICATED")
RATE_LIMIT_ERRORS = ("REQUEST_LIMIT_EXCEEDED", "RESOURCE_EXHAUSTED")


class DeletedInMlflow(MlflowException):
    """An experiment or run that a study writes to was deleted in MLflow. The message says which, and how to go on."""

    def __init__(self, message: str) -> None:
        super().__init__(message, INVALID_STATE)


def first_line(error: Exception) -> str:
    """Return the first line of what MLflow says, at most 200 characters."""
    return str(error).partition("\n")[0][:200]


def describe_error(error: Exception) -> str:
    """Say in one line what went wrong between a study and MLflow."""
    if isinstance(error, DeletedInMlflow):
        return str(error)
    code, said = getattr(error, "error_code", ""), first_line(error)
    if code in PERMISSION_ERRORS:
        return f"MLflow refuses this user ({said})"
    if code in RATE_LIMIT_ERRORS:
        return f"MLflow takes no more requests for now ({said})"
    if code in PERMANENT_ERRORS:
        return f"MLflow refuses the request ({said})"
    return f"MLflow does not answer ({said})"


def is_missing(error: MlflowException) -> bool:
    """Return whether the error says that what was asked for does not exist."""
    return bool(error.error_code == "RESOURCE_DOES_NOT_EXIST")


def check_experiment(client: MlflowClient, experiment: Experiment | None) -> None:
    """Raise DeletedInMlflow if an experiment is in MLflow's trash, where it keeps its name and takes nothing."""
    if experiment is None or experiment.lifecycle_stage == LifecycleStage.ACTIVE:
        return
    uri, number = client.tracking_uri, experiment.experiment_id
    restore = f"{_command(uri)} experiments restore --experiment-id {number}"
    served = uri.startswith("http")
    store = (
        "on its server, with --backend-store-uri"
        if served
        else f"--tracking-uri {shlex.quote(uri)} --backend-store-uri {shlex.quote(uri)}"
    )
    remove = f"mlflow gc --experiment-ids {number} {store}"
    raise DeletedInMlflow(
        f"the experiment {experiment.name} was deleted in MLflow; restore it: {restore}; "
        f"or delete it for good, and the study begins anew: {remove}"
    )


def check_study(client: MlflowClient, name: str) -> None:
    """Raise DeletedInMlflow if the experiment of a study of this name was deleted."""
    check_experiment(client, client.get_experiment_by_name(name))


def deleted_run(client: MlflowClient, what: str, run_id: str, experiment_id: str) -> DeletedInMlflow:
    """Return the error for a run that was deleted, alone or with its experiment.

    Args:
        what: the run, for people.
        run_id: its id; empty if MLflow has it no longer, not even in its trash.
        experiment_id: where it is.
    """
    try:
        check_experiment(client, client.get_experiment(experiment_id))
    except DeletedInMlflow as error:
        return error
    except MlflowException as error:
        if not is_missing(error):
            raise
        return DeletedInMlflow(
            f"the experiment of {what} was deleted in MLflow for good; the same command, given again, begins anew"
        )
    if not run_id:
        return DeletedInMlflow(f"{what} was deleted in MLflow for good; the same command, given again, logs it anew")
    restore = f"{_command(client.tracking_uri)} runs restore --run-id {run_id}"
    return DeletedInMlflow(
        f"{what} was deleted in MLflow; restore it: {restore}; or give the same command again, which logs it anew"
    )


def find_deleted(client: MlflowClient, what: str, where: str, experiment_id: str) -> DeletedInMlflow:
    """Return the error for a run that is no longer found, by a filter that finds it among the deleted ones."""
    try:
        found = client.search_runs([experiment_id], where, run_view_type=ViewType.DELETED_ONLY, max_results=1)
    except MlflowException as error:
        if not is_missing(error):
            raise
        found = []
    return deleted_run(client, what, found[0].info.run_id if found else "", experiment_id)


def _command(uri: str) -> str:
    return f"MLFLOW_TRACKING_URI={shlex.quote(uri)} mlflow"
