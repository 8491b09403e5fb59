"""Reading of MLflow for commands: quickly where that is possible, otherwise by MLflow's own client, whose import takes seconds."""

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from ablations.engine.cluster import local_service
from ablations.engine.environment import paths, validation
from ablations.engine.submission.planning.quick_client import NotQuick, QuickClient
from ablations.engine.tracking import connection
from ablations.engine.tracking.mlflow_internals.sqlite_tables import lacks_tables
from resnet_core.fields import reject

Result = TypeVar("Result")
CREATION_TIMEOUT_SECONDS = 10.0
"""Time for which a command waits for the tables of a database that a study is creating, in seconds."""


class Reader:
    """A client of MLflow and its address.

    Args:
        uri: address of MLflow.
        client: `QuickClient` or `MlflowClient`.
    """

    def __init__(self, uri: str, client: Any) -> None:
        self.uri, self.client = uri, client

    def artifact(self, run: Any, path: str) -> str | None:
        """Return the text of an artifact of a run; None if the run has no such artifact or its store does not answer."""
        if isinstance(self.client, QuickClient):
            return self.client.read_artifact(run, path)
        with suppress(Exception), tempfile.TemporaryDirectory() as folder:  # a store's own library may raise anything
            file = self.client.download_artifacts(run.info.run_id, path, folder)
            return Path(file).read_text(encoding="utf-8", errors="replace")
        return None


def read(uri: str, work: Callable[[Reader], Result]) -> Result:
    """Return what `work` returns for a reader of MLflow. It may be called twice, and must therefore change nothing.

    Raises:
        ConfigError: MLflow does not answer.
    """
    if connection.is_new_database(uri):
        raise reject("--tracking-uri", uri, "the database does not exist; accepted: the address at which studies were tracked")
    with suppress(NotQuick):
        return work(Reader(uri, _quick_client(uri)))
    client = connection.connect(uri)
    with connection.mlflow_errors_as_config_errors(uri):
        return work(Reader(uri, client))


def _quick_client(uri: str) -> QuickClient:
    """Return a client that reads quickly; wait for a database that a study is creating.

    MLflow's own client would create its tables as well, at the same time, and one of the two would fail.

    Raises:
        NotQuick: MLflow's own client is needed.
        ConfigError: the database has no tables.
    """
    deadline = time.monotonic() + CREATION_TIMEOUT_SECONDS
    while True:
        try:
            return QuickClient(uri)
        except NotQuick:
            file = paths.sqlite_path(uri)
            if file is None or not lacks_tables(file):
                raise
        if time.monotonic() > deadline:
            raise reject(
                "--tracking-uri", uri, "the database has no tables yet; the first study that is tracked there creates them"
            )
        time.sleep(0.2)


def add_reading_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that all commands about stored studies have."""
    parser.add_argument("--json", action="store_true", help="print a JSON document to standard output")
    parser.add_argument(
        "--tracking-uri",
        metavar="URI",
        help="MLflow server or database (default: MLFLOW_TRACKING_URI, otherwise the local service or a database)",
    )


def tracking_uri(given: argparse.Namespace) -> str:
    """Return the address of MLflow that a command uses: that of a study which is started in the same place."""
    uri: str | None = given.tracking_uri
    if uri is None and not os.environ.get("MLFLOW_TRACKING_URI"):
        service = local_service.running_service()
        of_service = service.environment() if service else {}
        if os.environ.get("RAY_ADDRESS") in (None, "", of_service.get("RAY_ADDRESS")):
            uri = of_service.get("MLFLOW_TRACKING_URI")
    chosen = paths.default_tracking_uri() if uri is None else uri
    validation.check_address("--tracking-uri", chosen)
    return chosen


def read_duration(option: str, text: str) -> float:
    """Return the seconds of a duration such as `90s`, `30m`, `12h`, `14d` or `2w`; raise ConfigError for other text."""
    units = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
    number, unit = text[:-1], text[-1:]
    try:
        seconds = float(number) * units[unit]
    except (ValueError, KeyError):
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise reject(option, text, "accepted: a duration, such as 90s, 30m, 12h, 14d or 2w")
    return seconds
