"""Interpretation of MLflow's errors: a server that does not answer, refused requests, and deleted experiments and runs."""

import re
import shlex

from mlflow import MlflowClient
from mlflow.entities import Experiment, LifecycleStage, ViewType
from mlflow.exceptions import MlflowException

PERMANENT_ERRORS = ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "INVALID_STATE", "RESOURCE_ALREADY_EXISTS")
"""MLflow's error codes for requests that would fail again on a retry."""
PERMISSION_ERRORS = ("PERMISSION_DENIED", "CUSTOMER_UNAUTHORIZED", "UNAUTHENTICATED")
RATE_LIMIT_ERRORS = ("REQUEST_LIMIT_EXCEEDED", "RESOURCE_EXHAUSTED")

CONNECTION_PROBLEMS = {
    r"Connection refused": "connection refused: nothing listens there",
    r"Name or service not known|NameResolutionError|Failed to resolve|nodename nor servname|name resolution": "unknown host",
    r"No route to host|Network is unreachable": "no route to the host",
    r"timed out|Timeout": "no answer in time",
    r"CERTIFICATE_VERIFY_FAILED": "its certificate is not trusted",
    r"WRONG_VERSION_NUMBER|record layer failure": "it does not speak HTTPS; try http://",
    r"SSLError": "no secure connection",
    r"RemoteDisconnected|Connection aborted|Connection reset|IncompleteRead": "the connection was closed without an answer",
}
"""Meanings of messages of requests and urllib3, by a pattern that they contain."""


class DeletedInMlflow(MlflowException):
    """An experiment or run that a study writes to was deleted in MLflow. The message names it and the ways to continue."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.error_code = "INVALID_STATE"


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, at most 200 characters."""
    return str(error).partition("\n")[0][:200]


def describe_error(error: Exception) -> str:
    """Return one line that says why MLflow did not accept a request."""
    if isinstance(error, DeletedInMlflow):
        return str(error)
    code, message = getattr(error, "error_code", ""), first_line(error)
    if code in PERMISSION_ERRORS:
        return f"MLflow refuses this user ({message})"
    if code in RATE_LIMIT_ERRORS:
        return f"MLflow's rate limit is reached ({message})"
    if code in PERMANENT_ERRORS:
        return f"MLflow refuses the request ({message})"
    return f"MLflow does not answer ({_connection_problem(error) or message})"


def _connection_problem(error: Exception) -> str:
    """Return why no server answered, in plain words; empty for other errors, such as those of a database."""
    text = str(error)
    if "ConnectionPool(" not in text and not text.startswith("API request to"):
        return ""
    if status := re.search(r"failed with error code (\d+)|too many (\d+) error responses", text):
        return f"the server there answers with HTTP {status[1] or status[2]}; is it MLflow?"
    known = next((words for pattern, words in CONNECTION_PROBLEMS.items() if re.search(pattern, text)), "")
    return known or re.sub(r"^.*?with exception |HTTPS?ConnectionPool\(.*?\): ", "", text.partition("\n")[0])[:200]


def is_missing(error: MlflowException) -> bool:
    """Return whether the error says that the requested object does not exist."""
    return bool(error.error_code == "RESOURCE_DOES_NOT_EXIST")


def check_experiment(client: MlflowClient, experiment: Experiment | None) -> None:
    """Raise DeletedInMlflow if an experiment is in MLflow's trash, where it still occupies its name but accepts no run."""
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
        f"or delete it permanently, so that the study starts a new one: {remove}"
    )


def check_study(client: MlflowClient, name: str) -> None:
    """Raise DeletedInMlflow if the experiment of a study of this name was deleted."""
    check_experiment(client, client.get_experiment_by_name(name))


def deleted_run(client: MlflowClient, what: str, run_id: str, experiment_id: str) -> DeletedInMlflow:
    """Return the error for a run that was deleted, alone or with its experiment.

    Args:
        what: name of the run in the message.
        run_id: its ID; empty if it is not in MLflow's trash either.
        experiment_id: ID of its experiment.
    """
    try:
        check_experiment(client, client.get_experiment(experiment_id))
    except DeletedInMlflow as error:
        return error
    except MlflowException as error:
        if not is_missing(error):
            raise
        return DeletedInMlflow(
            f"the experiment of {what} was deleted in MLflow permanently; the same command, given again, starts a new one"
        )
    if not run_id:
        return DeletedInMlflow(f"{what} was deleted in MLflow permanently; the same command, given again, logs it anew")
    restore = f"{_command(client.tracking_uri)} runs restore --run-id {run_id}"
    return DeletedInMlflow(
        f"{what} was deleted in MLflow; restore it: {restore}; or give the same command again, which logs it anew"
    )


def find_deleted(client: MlflowClient, what: str, where: str, experiment_id: str) -> DeletedInMlflow:
    """Return the error for a run that a search no longer finds.

    Args:
        what: name of the run in the message.
        where: MLflow filter that finds the run among the deleted ones.
        experiment_id: ID of its experiment.
    """
    try:
        found = client.search_runs([experiment_id], where, run_view_type=ViewType.DELETED_ONLY, max_results=1)
    except MlflowException as error:
        if not is_missing(error):
            raise
        found = []
    return deleted_run(client, what, found[0].info.run_id if found else "", experiment_id)


def _command(uri: str) -> str:
    return f"MLFLOW_TRACKING_URI={shlex.quote(uri)} mlflow"
