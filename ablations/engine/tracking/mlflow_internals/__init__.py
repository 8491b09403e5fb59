"""Private and undocumented parts of MLflow. No other module imports a private name of MLflow or calls an undocumented route.

Each feature checks its parts before it uses them: they exist and have the known parameters, columns or words. If a part has
changed, one warning says which feature is off. The caller then falls back to the public API or continues without the feature.

`mlflow.utils.mlflow_tags` and `mlflow.environment_variables` count as public: MLflow documents these tags and variables.
"""

import importlib
import inspect
import json
import logging
import math
import sqlite3
import warnings
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

logger = logging.getLogger(__name__)

HistoryRow = tuple[str, str, int, float]
"""Run ID, metric, epoch and value."""
MAX_RUNS_PER_REQUEST = 100
"""Maximum number of runs in one request for metric histories. MLflow's server refuses more."""
MAX_VALUES_PER_RESPONSE = 25_000
"""Maximum number of values in one response. MLflow's server silently truncates longer responses."""
HISTORY_ROUTE = "/ajax-api/2.0/mlflow/metrics/get-history-bulk"
"""Route of MLflow's own charts. The REST API returns one metric of one run per request."""
PROXIED = "mlflow-artifacts:/"
"""Beginning of the address of an artifact that MLflow's server stores itself."""
HISTORY_TABLE = "metrics"
HISTORY_COLUMNS = ("run_uuid", "key", "step", "value", "is_nan")
ARTIFACT_COLUMNS = (("experiments", "artifact_location"), ("runs", "artifact_uri"), ("logged_models", "artifact_location"))
"""Tables and columns that contain absolute artifact addresses."""
RUNS_PAGE_WORDS = (
    *("mlflow.sharedViewState.", "viewStateShareKey", "compareRunsMode", "compareRunCharts", "compareRunSections"),
    *("useGroupedValuesInCharts", "runsHiddenMode", "selectedColumns", "groupByKeys", "useGlobalXaxisKey"),
)
"""Names that the web pages of MLflow 3.17 use for a shared view of the runs of an experiment."""
MODEL_TRAINING = "workflowType=machine_learning"
"""Parameter of a web address that makes MLflow's pages show runs of trainings. Without it, they show what a reader saw last, first
pages for language models. MLflow ignores an unknown parameter."""
EXPERIMENTS_PAGE = f"#/experiments?{MODEL_TRAINING}"
"""Fragment of the web address at which MLflow lists the experiments."""
EXPERIMENT_KIND = {"mlflow.experimentKind": "custom_model_development"}
"""Experiment tag that makes MLflow's web pages show training runs instead of GenAI traces. An unknown tag has no effect."""

ADMIN_WARNING = "the administrator's password cannot be changed"
"""Warning without the parts of MLflow's basic authentication."""


class MissingPart(Exception):  # noqa: N818 - caught within this module
    """A private part of MLflow is gone or has changed. The message says which."""


@dataclass(frozen=True)
class Part:
    """A function or class of MLflow, by module and name, and the parameters that it must accept."""

    module: str
    name: str
    parameters: tuple[str, ...] = ()

    def load(self) -> Any:
        """Return the part; raise MissingPart if it does not exist or does not accept the parameters."""
        where = f"{self.module}.{self.name}"
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # MLflow's own imports may be deprecated
                found: Any = importlib.import_module(self.module)
            for name in self.name.split("."):
                found = getattr(found, name)
        except (ImportError, AttributeError) as error:
            raise MissingPart(f"{where} does not exist") from error
        if self.parameters:
            accepted = inspect.signature(found).parameters
            if missing := [name for name in self.parameters if name not in accepted]:
                raise MissingPart(f"{where} has no parameter {missing[0]}")
        return found


HOST_CREDENTIALS = Part("mlflow.utils.credentials", "get_default_host_creds", ("store_uri",))
HTTP_REQUEST = Part("mlflow.utils.rest_utils", "http_request", ("host_creds", "endpoint", "method"))
VERIFY_RESPONSE = Part("mlflow.utils.rest_utils", "verify_rest_response", ("response", "endpoint"))
USER_STORE = Part("mlflow.server.auth.sqlalchemy_store", "SqlAlchemyStore")
USER_STORE_INIT = Part("mlflow.server.auth.sqlalchemy_store", "SqlAlchemyStore.init_db", ("db_uri",))
USER_STORE_UPDATE = Part("mlflow.server.auth.sqlalchemy_store", "SqlAlchemyStore.update_user", ("username", "password"))
USER_TABLE = Part("mlflow.server.auth.db.models", "SqlUser.__tablename__")
DATABASE_LOGGER = Part("mlflow.store.db.utils", "_logger.name")
REGISTER_ARTIFACT_REPOSITORY = Part(
    "mlflow.store.artifact.artifact_repository_registry", "_artifact_repository_registry.register", ("scheme", "repository")
)


@cache
def _warn(feature: str, reason: str) -> None:
    """Log once which feature is off, and why."""
    logger.warning("MLflow %s is not fully supported (%s): %s", version("mlflow"), reason, feature)


def quiet_database_errors() -> None:
    """Stop MLflow from logging the traceback of each database error. It raises the same error, which the caller reports."""
    try:
        logging.getLogger(DATABASE_LOGGER.load()).setLevel(logging.CRITICAL)
    except MissingPart as error:
        _warn("database errors are logged with their tracebacks", str(error))


def open_proxied_artifacts(folder: str) -> None:
    """Make this process read and write a server's artifacts in their folder, where it uses the server's database directly.

    MLflow leaves such artifacts to the server, and raises an error without it. With a server's address, nothing changes.

    Args:
        folder: address of the folder in which the server keeps its artifacts.
    """
    from mlflow import get_tracking_uri
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
    from mlflow.store.artifact.mlflow_artifacts_repo import MlflowArtifactsRepository

    def repository(artifact_uri: str, tracking_uri: str | None = None, registry_uri: str | None = None) -> Any:
        if (tracking_uri or get_tracking_uri()).startswith("http"):
            return MlflowArtifactsRepository(artifact_uri, tracking_uri=tracking_uri, registry_uri=registry_uri)
        return get_artifact_repository(f"{folder}/{artifact_uri.removeprefix(PROXIED)}", tracking_uri, registry_uri)

    try:
        REGISTER_ARTIFACT_REPOSITORY.load()(PROXIED.partition(":")[0], repository)
    except MissingPart as error:
        _warn("artifacts of studies on the local service are available only while it runs", str(error))


def read_histories(tracking_uri: str, run_ids: Sequence[str], metrics: Sequence[str]) -> list[HistoryRow] | None:
    """Return all values of some metrics of many runs, in few requests; None if this MLflow has no known way to do so."""
    read = _read_over_http if tracking_uri.startswith("http") else _read_from_database
    rows: list[HistoryRow] = []
    try:
        for start in range(0, len(run_ids), MAX_RUNS_PER_REQUEST):
            rows += read(tracking_uri, run_ids[start : start + MAX_RUNS_PER_REQUEST], metrics)
    except MissingPart as error:
        _warn("metric histories are read run by run, which is slower", str(error))
        return None
    return rows


def _read_from_database(uri: str, run_ids: Sequence[str], metrics: Sequence[str]) -> Iterable[HistoryRow]:
    import sqlalchemy
    from mlflow.exceptions import MlflowException
    from sqlalchemy import column, select, table

    # MLflow, too, waits 20 s for a database that another process has locked.
    engine = sqlalchemy.create_engine(uri, connect_args={"timeout": 20} if uri.startswith("sqlite") else {})
    try:
        found = sqlalchemy.inspect(engine)
        there = {each["name"] for each in found.get_columns(HISTORY_TABLE)} if found.has_table(HISTORY_TABLE) else set()
        if missing := [name for name in HISTORY_COLUMNS if name not in there]:
            raise MissingPart(f"the database has no column {HISTORY_TABLE}.{missing[0]}")
        columns: list[Any] = [column(name) for name in HISTORY_COLUMNS]
        run_id, metric, step, value, is_nan = columns
        query = select(run_id, metric, step, value).select_from(table(HISTORY_TABLE))
        query = query.where(run_id.in_(run_ids), metric.in_(metrics), is_nan.is_(sqlalchemy.false()))
        with engine.connect() as connection:
            return [(row[0], row[1], row[2], row[3]) for row in connection.execute(query)]
    except sqlalchemy.exc.SQLAlchemyError as error:
        raise MlflowException(str(error)) from error
    finally:
        engine.dispose()


def _read_over_http(uri: str, run_ids: Sequence[str], metrics: Sequence[str]) -> Iterable[HistoryRow]:
    credentials, request, verify = HOST_CREDENTIALS.load(), HTTP_REQUEST.load(), VERIFY_RESPONSE.load()
    rows: list[HistoryRow] = []
    for metric in metrics:
        query = {"run_id": list(run_ids), "metric_key": metric}
        response = request(credentials(uri), HISTORY_ROUTE, "GET", params=query)
        if response.status_code in (404, 405):
            raise MissingPart(f"the server has no route {HISTORY_ROUTE}")
        try:
            found = [
                (str(each["run_id"]), metric, int(each["step"]), float(each["value"]))
                for each in verify(response, HISTORY_ROUTE).json()["metrics"]
            ]
        except (json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
            raise MissingPart(f"the server's route {HISTORY_ROUTE} answers in another form") from error
        if len(found) >= MAX_VALUES_PER_RESPONSE and len(run_ids) > 1:  # truncated
            half = len(run_ids) // 2
            return [*_read_over_http(uri, run_ids[:half], metrics), *_read_over_http(uri, run_ids[half:], metrics)]
        rows += [row for row in found if not math.isnan(row[3])]
    return rows


def artifact_addresses(database: Path) -> list[str]:
    """Return the artifact addresses of the experiments in an SQLite database; none if it has no tables yet or other columns."""
    with closing(sqlite3.connect(database)) as connection:
        if not connection.execute("SELECT name FROM sqlite_master").fetchone():
            return []
        for table, column in ARTIFACT_COLUMNS:
            if (column,) not in connection.execute("SELECT name FROM pragma_table_info(?)", (table,)).fetchall():
                reason = f"the database has no column {table}.{column}"
                _warn("the home folder cannot be moved, since artifact addresses are not updated", reason)
                return []
        table, column = ARTIFACT_COLUMNS[0]
        rows = connection.execute(f"SELECT DISTINCT {column} FROM {table}").fetchall()  # noqa: S608 - our own constants
    return [address for (address,) in rows if address]


def replace_artifact_addresses(database: Path, old: str, new: str) -> None:
    """Replace the beginning `old` of all artifact addresses in an SQLite database, for which `artifact_addresses` returned some."""
    with closing(sqlite3.connect(database)) as connection, connection:
        for table, column in ARTIFACT_COLUMNS:
            change = f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE substr({column}, 1, ?) = ?"  # noqa: S608
            connection.execute(change, (new, len(old) + 1, len(old), old))


def has_users(database_uri: str) -> bool:
    """Return whether a server with basic authentication has used this database.

    If this MLflow has no known table of users, return whether the database has any table. The environment variable
    MLFLOW_AUTH_CONFIG_PATH must name the server's configuration: MLflow reads it on import.
    """
    import sqlalchemy

    engine = sqlalchemy.create_engine(database_uri)
    try:
        tables = sqlalchemy.inspect(engine).get_table_names()
    finally:
        engine.dispose()
    try:
        return bool(tables) and USER_TABLE.load() in tables
    except MissingPart as error:
        _warn(ADMIN_WARNING, str(error))
        return True


def set_user_password(database_uri: str, username: str, password: str) -> bool:
    """Change a user's password in the database of MLflow's basic authentication; return False if this MLflow has no known way.

    MLflow's public API changes a password only on a running server and with the old password, which may be lost.
    The environment variable MLFLOW_AUTH_CONFIG_PATH must name the server's configuration: MLflow reads it on import.
    """
    try:
        make_store = USER_STORE.load()
        USER_STORE_INIT.load()
        USER_STORE_UPDATE.load()
        USER_TABLE.load()
    except MissingPart as error:
        _warn(ADMIN_WARNING, str(error))
        return False
    store = make_store()
    store.init_db(database_uri)
    store.update_user(username, password=password)
    return True


def web_address(tracking_uri: str, page: str = EXPERIMENTS_PAGE) -> str:
    """Return the web address of a page of an MLflow server, given as a fragment; without one, of its list of experiments."""
    return f"{tracking_uri.rstrip('/')}/{page}"


def artifact_page(experiment_id: str, run_id: str, artifact: str) -> str:
    """Return the fragment of the web address at which MLflow shows an artifact."""
    return f"#/experiments/{experiment_id}/runs/{run_id}/artifacts/{artifact}?{MODEL_TRAINING}"


def artifact_image(run_id: str, artifact: str) -> str | None:
    """Return the address of an image among a run's artifacts, relative to MLflow's pages, for Markdown in a description.

    None if the web pages of this MLflow do not use this route themselves.
    """
    if missing := _missing_words(("get-artifact",)):
        _warn("descriptions of studies have no picture", f"its web pages do not mention {missing[0]}")
        return None
    return f"get-artifact?{urlencode({'path': artifact, 'run_uuid': run_id})}"


def run_page(experiment_id: str, run_id: str) -> str:
    """Return the fragment of the web address at which MLflow shows a run."""
    return f"#/experiments/{experiment_id}/runs/{run_id}"


def shared_view_page(experiment_id: str, key: str) -> str:
    """Return the fragment of the web address at which MLflow shows the charts of a shared view."""
    return f"#/experiments/{experiment_id}/runs?viewStateShareKey={key}&compareRunsMode=CHART&{MODEL_TRAINING}"


def shared_view_tag(
    key: str,
    *,
    search_filter: str,
    columns: Sequence[str],
    group_by_tag: str,
    title: str,
    lines: Sequence[str],
    bars: Sequence[str],
) -> dict[str, str] | None:
    """Return the experiment tag of a view of MLflow's runs page, in the form in which that page shares views.

    Args:
        key: key of the view, for `shared_view_page`.
        search_filter: filter of the runs to show.
        columns: columns of the table, as MLflow's filters name them.
        group_by_tag: tag by whose values runs are sorted and averaged.
        title: title of the charts.
        lines: metrics to chart by epoch.
        bars: metrics whose last values to chart.

    Returns:
        The tag's name and value; None if the web pages of this MLflow have no such views.
    """
    if missing := _missing_words(RUNS_PAGE_WORDS):
        _warn("experiments have no page with charts of their cells", f"its web pages do not mention {missing[0]}")
        return None
    state: Mapping[str, Any] = {
        "searchFilter": search_filter,
        "orderByKey": f"tags.`{group_by_tag}`",
        "orderByAsc": True,
        "selectedColumns": list(columns),
        "groupBy": {"aggregateFunction": "average", "groupByKeys": [{"mode": "tag", "groupByData": group_by_tag}]},
        "runsHiddenMode": "SHOW_ALL",
        "useGroupedValuesInCharts": True,
        "compareRunCharts": [*(_chart("line", metric) for metric in lines), *(_chart("bar", metric) for metric in bars)],
        "compareRunSections": [{"uuid": "study", "name": title, "display": True, "isReordered": True}],
    }
    return {f"mlflow.sharedViewState.{key}": json.dumps(state)}


def _chart(kind: str, metric: str) -> dict[str, object]:
    chart: dict[str, object] = {"uuid": f"{kind}-{metric}", "type": kind.upper(), "metricKey": metric}
    chart |= {"metricSectionId": "study", "deleted": False, "isGenerated": False, "runsCountToCompare": 100}
    if kind == "line":
        chart |= {"selectedMetricKeys": [metric], "xAxisKey": "step", "xAxisScaleType": "linear", "scaleType": "linear"}
        chart |= {"lineSmoothness": 0, "useGlobalXaxisKey": True, "useGlobalLineSmoothing": True, "range": {}}
    return chart


@cache
def _missing_words(words: tuple[str, ...]) -> list[str]:
    """Return the words that the web pages of the installed MLflow do not contain; nothing if it is installed without pages.

    A server is assumed to have the version of its clients. Reading the pages takes 0.1 s.
    """
    import mlflow

    missing = set(words)
    pages = Path(mlflow.__file__).parent / "server" / "js" / "build" / "static" / "js"
    files = sorted(pages.glob("*.js"), key=lambda file: file.stat().st_size, reverse=True)
    for file in files if missing else ():
        text = file.read_text(encoding="utf-8", errors="replace")
        missing -= {word for word in missing if word in text}
        if not missing:
            break
    return [word for word in words if word in missing] if files else []
