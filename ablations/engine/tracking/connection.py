"""Connections to an MLflow server or database."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ablations.engine.environment import paths
from ablations.engine.tracking import mlflow_internals, relocation
from resnet_core.fields import ConfigError, reject

if TYPE_CHECKING:
    from mlflow import MlflowClient

# Functions below import MLflow, which takes seconds: a plan asks only whether there is a database.

CONNECT_TIMEOUT_SECONDS = 10
"""Timeout for connecting to PostgreSQL, in seconds."""
ACCEPTED = "accepted: a running server, http://…, or a database, sqlite:////FOLDER/FILE or postgresql://…"
CREDENTIALS = (
    "accepted: a user with permission, named by MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD or ~/.mlflow/credentials"
)


def is_new_database(uri: str) -> bool:
    """Return whether the address names an SQLite database that does not exist yet, and therefore has no run.

    Raises:
        ConfigError: the file cannot be examined, for example because its parent is not a folder.
    """
    path = paths.sqlite_path(uri)
    if path is None:
        return False
    try:
        path.stat()
    except FileNotFoundError:
        return True
    except OSError as error:
        raise _rejected_uri(uri, error) from error
    return False


def create_database_file(uri: str) -> None:
    """Create the empty file of a new SQLite database; raise ConfigError, before anything else starts, if that is impossible."""
    path = paths.sqlite_path(uri)
    assert path is not None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    except OSError as error:
        raise _rejected_uri(uri, error) from error


def connect(uri: str) -> "MlflowClient":
    """Return a client of a tracking server or database; raise ConfigError if it does not answer."""
    if is_new_database(uri):
        create_database_file(uri)
    # MLflow's own retries would repeat requests that may have arrived, such as creating a run. `RunDelivery` checks first.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"  # MLflow would print two lines for each run
    logging.getLogger("alembic").setLevel(logging.WARNING)  # it logs each table of a new database
    os.environ.setdefault("PGCONNECT_TIMEOUT", str(CONNECT_TIMEOUT_SECONDS))
    from mlflow import MlflowClient

    try:
        if not uri.startswith("http"):
            mlflow_internals.quiet_database_errors()
            _check_database(uri)
        client = MlflowClient(uri)
        client.search_experiments(max_results=1)
        if path := paths.sqlite_path(uri):
            relocation.update_artifact_addresses(path)
            relocation.open_artifacts_of_service(path)
    except ConfigError:
        raise
    except Exception as error:  # a database's driver may raise anything, and may be missing
        raise _rejected_uri(uri, error) from error
    return client


def _check_database(uri: str) -> None:
    """Connect to a database once. MLflow itself tries a database ten times, for 100 s in all."""
    import sqlalchemy

    if uri.partition(":")[0].partition("+")[0] in ("sqlite", "postgresql", "mysql", "mssql"):
        engine = sqlalchemy.create_engine(uri)
        try:
            sqlalchemy.inspect(engine)
        finally:
            engine.dispose()


def _rejected_uri(uri: str, error: Exception) -> ConfigError:
    from ablations.engine.tracking.mlflow_errors import PERMISSION_ERRORS, describe_error

    accepted = CREDENTIALS if getattr(error, "error_code", "") in PERMISSION_ERRORS else ACCEPTED
    return reject("--tracking-uri", uri, f"{describe_error(error)}; {accepted}")


@contextmanager
def mlflow_errors_as_config_errors(uri: str) -> Iterator[None]:
    """Turn MLflow's errors into ConfigError. Use it before anything has started: the request is then wrong."""
    from mlflow.exceptions import MlflowException

    from ablations.engine.tracking.mlflow_errors import DeletedInMlflow

    try:
        yield
    except DeletedInMlflow as error:
        raise ConfigError(str(error)) from error
    except MlflowException as error:
        raise _rejected_uri(uri, error) from error
