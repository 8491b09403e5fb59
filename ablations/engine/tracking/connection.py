"""Connecting to an MLflow server or database."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from sqlalchemy.engine import make_url

from ablations.engine.environment import relocation
from ablations.engine.tracking.mlflow_errors import PERMISSION_ERRORS, DeletedInMlflow, describe_error
from resnet_core.fields import ConfigError, reject

CONNECT_TIMEOUT_SECONDS = 10
"""How long PostgreSQL may take to be reached."""
ACCEPTED = "accepted: a server that runs, http://…, or a database, sqlite:////FOLDER/FILE or postgresql://…"
CREDENTIALS = "accepted: a user who may, by MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD or ~/.mlflow/credentials"


def is_new_database(uri: str) -> bool:
    """Whether this is a database that does not exist yet: no run can be known. Raises ConfigError where none can be."""
    path = _file_of(uri)
    if path is None:
        return False
    try:
        path.stat()
    except FileNotFoundError:
        return True
    except OSError as error:
        raise _refused(uri, error) from error
    return False


def create_database_file(uri: str) -> None:
    """Of a database that is new, the empty file: where that cannot be made, nothing else need start. Raises ConfigError."""
    path = _file_of(uri)
    assert path is not None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    except OSError as error:
        raise _refused(uri, error) from error


def connect(uri: str) -> MlflowClient:
    """A client of a tracking server that answers, or of a database; raises ConfigError otherwise."""
    if is_new_database(uri):
        create_database_file(uri)
    # MLflow's own retries would repeat what may have arrived, such as the creation of a run; `delivery` looks first.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"  # two lines for every run; the study says it once
    logging.getLogger("alembic").setLevel(logging.WARNING)  # it reports every table of a new database
    # As this one does. It also logs a traceback of each error that it raises, which whoever asked is told of anyway.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    os.environ.setdefault("PGCONNECT_TIMEOUT", str(CONNECT_TIMEOUT_SECONDS))
    try:
        if not uri.startswith("http"):
            from mlflow.store.db import utils  # takes its time: only where MLflow needs it as well

            utils.MAX_RETRY_COUNT = 1  # of the ten times that a database is tried, the last comes after 100 s
        client = MlflowClient(uri)
        client.search_experiments(max_results=1)
        if path := _file_of(uri):
            relocation.follow(path)
    except ConfigError:
        raise
    except Exception as error:  # whatever a database's own library raises, or that there is none
        raise _refused(uri, error) from error
    return client


def _file_of(uri: str) -> Path | None:
    """Return the file of an SQLite database; None for what has no file."""
    if not uri.startswith("sqlite:///"):
        return None
    path = make_url(uri).database
    return Path(path) if path and path != ":memory:" else None


def _refused(uri: str, error: Exception) -> ConfigError:
    accepted = CREDENTIALS if getattr(error, "error_code", "") in PERMISSION_ERRORS else ACCEPTED
    return reject("--tracking-uri", uri, f"{describe_error(error)}; {accepted}")


@contextmanager
def mlflow_errors_as_config_errors(uri: str) -> Iterator[None]:
    """Before anything has started, a tracking server that does not answer is the request's error, and so is what was deleted."""
    try:
        yield
    except DeletedInMlflow as error:
        raise ConfigError(str(error)) from error
    except MlflowException as error:
        raise _refused(uri, error) from error
