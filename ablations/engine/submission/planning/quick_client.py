"""A reading client of MLflow for plans, without the import of MLflow, which takes 2 to 3 s.

`QuickClient` has the methods of `MlflowClient` that the queries of a plan use. It asks MLflow's REST API, or reads the tables of an
SQLite database, after a check of their columns. Whatever it cannot do raises `NotQuick`: another database, a password, an unknown
filter, any error. The caller then uses `MlflowClient`, which also says what is wrong.
"""

import json
import os
import re
import sqlite3
import urllib.error
import urllib.request
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from types import SimpleNamespace
from typing import Any
from urllib.parse import quote, urlencode

from ablations.engine.environment import paths

TIMEOUT_SECONDS = 10.0
"""Timeout of a request and of a locked database, in seconds."""
CONDITION = re.compile(r"(tags|params|attributes)\.(\w+) = '([^']*)'")
"""A condition of an MLflow filter that can be translated into SQL."""
COLUMNS = {
    "experiments": {"experiment_id", "name", "lifecycle_stage"},
    "runs": {"run_uuid", "experiment_id", "status", "lifecycle_stage", "start_time", "artifact_uri"},
    "tags": {"run_uuid", "key", "value"},
    "params": {"run_uuid", "key", "value"},
    "latest_metrics": {"run_uuid", "key", "value", "is_nan"},
}
"""Tables and columns of MLflow's database that are read."""


class NotQuick(Exception):  # noqa: N818 - never shown: the caller takes the slow way
    """MLflow's own client is needed."""


class Page(list[Any]):
    """Records with the token of the next page; empty after the last one."""

    token: str = ""


class QuickClient:
    """Client of a server without a password, or of an SQLite database.

    Args:
        tracking_uri: address of the server or database.

    Raises:
        NotQuick: it is something else.
    """

    def __init__(self, tracking_uri: str) -> None:
        self.tracking_uri = tracking_uri
        self._file = paths.sqlite_path(tracking_uri)
        if self._file:
            self._check_columns()
        elif not tracking_uri.startswith("http://") or os.environ.get("MLFLOW_TRACKING_AUTH"):
            raise NotQuick

    def get_experiment_by_name(self, name: str) -> Any:
        """Return an experiment, also a deleted one; None if there is none of this name."""
        if self._file:
            found = self._select("SELECT experiment_id, name, lifecycle_stage FROM experiments WHERE name = ?", [name])
            return _experiment(*found[0]) if found else None
        try:
            answer = self._ask(f"experiments/get-by-name?{urlencode({'experiment_name': name})}")["experiment"]
        except FileNotFoundError:
            return None
        return _experiment(answer["experiment_id"], answer["name"], answer["lifecycle_stage"])

    def search_experiments(self, max_results: int, page_token: str | None = None) -> Page:
        """Return a page of the experiments that are not deleted."""
        page = Page()
        if self._file:
            select = "SELECT experiment_id, name, lifecycle_stage FROM experiments WHERE lifecycle_stage = 'active'"
            page += [_experiment(*row) for row in self._select(select, [])]
            return page
        answer = self._ask("experiments/search", {"max_results": max_results, "page_token": page_token or ""})
        page += [_experiment(each["experiment_id"], each["name"], "active") for each in answer.get("experiments", ())]
        page.token = answer.get("next_page_token", "")
        return page

    def search_runs(
        self, experiment_ids: Sequence[str], filter_string: str, max_results: int = 1000, page_token: str | None = None
    ) -> Page:
        """Return a page of the runs that are not deleted and match a filter, the latest start first."""
        page = Page()
        if self._file:
            skipped = int(page_token or 0)
            page += self._runs(experiment_ids, filter_string, max_results, skipped)
            page.token = str(skipped + max_results) if len(page) == max_results else ""
            return page
        query = {"experiment_ids": list(experiment_ids), "filter": filter_string, "max_results": max_results}
        answer = self._ask("runs/search", query | {"page_token": page_token or ""})
        for run in answer.get("runs", ()):
            info, data = run["info"], run["data"]
            values = {name: {each["key"]: each.get("value", "") for each in data.get(name, ())} for name in ("tags", "params")}
            metrics = {each["key"]: float(each["value"]) for each in data.get("metrics", ())}
            page.append(_run(info["run_id"], info["experiment_id"], info["status"], info.get("artifact_uri", ""), values, metrics))
        page.token = answer.get("next_page_token", "")
        return page

    def _ask(self, route: str, body: Mapping[str, Any] | None = None) -> Any:
        """Return the answer to a GET request, or with a body to a POST request; raise FileNotFoundError for an unknown name."""
        data = None if body is None else json.dumps(body).encode()
        address = f"{self.tracking_uri.rstrip('/')}/api/2.0/mlflow/{route}"
        request = urllib.request.Request(address, data, {"Content-Type": "application/json"})  # noqa: S310 - http only
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as answer:  # noqa: S310 - http only
                return json.load(answer)
        except urllib.error.HTTPError as error:
            if error.code == 404 and "RESOURCE_DOES_NOT_EXIST" in error.read().decode(errors="replace"):
                raise FileNotFoundError(route) from error
            raise NotQuick from error
        except (OSError, ValueError) as error:
            raise NotQuick from error

    def _runs(self, experiment_ids: Sequence[str], filter_string: str, count: int, skipped: int) -> list[Any]:
        where, values = ["lifecycle_stage = 'active'"], list[Any]()
        for condition in filter_string.split(" and "):
            parsed = CONDITION.fullmatch(condition)
            if not parsed or (parsed[1] == "attributes" and parsed[2] != "status"):
                raise NotQuick
            table, name, value = parsed.groups()
            if table == "attributes":
                where.append("status = ?")
                values.append(value)
            else:
                where.append(f"run_uuid IN (SELECT run_uuid FROM {table} WHERE key = ? AND value = ?)")  # noqa: S608 - matched above
                values += [name, value]
        select = f"SELECT run_uuid, experiment_id, status, artifact_uri FROM runs WHERE {' AND '.join(where)}"  # noqa: S608 - no values
        wanted = {str(number) for number in experiment_ids}
        rows = self._select(f"{select} ORDER BY start_time DESC, run_uuid LIMIT ? OFFSET ?", [*values, count, skipped])
        ids = [row[0] for row in rows if str(row[1]) in wanted]
        tags, params = (self._by_run(f"SELECT run_uuid, key, value FROM {table}", ids) for table in ("tags", "params"))  # noqa: S608
        metrics = self._by_run("SELECT run_uuid, key, CASE WHEN is_nan THEN 'nan' ELSE value END FROM latest_metrics", ids)
        return [
            _run(
                *(row[0], str(row[1]), row[2], row[3] or ""),
                {"tags": tags.get(row[0], {}), "params": params.get(row[0], {})},
                {name: float(value) for name, value in metrics.get(row[0], {}).items()},
            )
            for row in rows
            if str(row[1]) in wanted
        ]

    def _by_run(self, select: str, ids: Sequence[str]) -> dict[str, dict[str, Any]]:
        found: dict[str, dict[str, Any]] = {}
        for run_id, key, value in self._select(f"{select} WHERE run_uuid IN ({', '.join('?' * len(ids))})", ids):
            found.setdefault(run_id, {})[key] = value
        return found

    def _check_columns(self) -> None:
        for table, needed in COLUMNS.items():
            if not needed <= {row[1] for row in self._select(f"PRAGMA table_info({table})", [])}:
                raise NotQuick

    def _select(self, query: str, values: Iterable[Any]) -> list[Any]:
        address = f"file:{quote(str(self._file))}?mode=ro"
        try:
            with closing(sqlite3.connect(address, uri=True, timeout=TIMEOUT_SECONDS)) as database:
                return database.execute(query, list(values)).fetchall()
        except sqlite3.Error as error:
            raise NotQuick from error


def _experiment(number: Any, name: str, stage: str) -> Any:
    return SimpleNamespace(experiment_id=str(number), name=name, lifecycle_stage=stage)


def _run(
    run_id: str,
    experiment_id: str,
    status: str,
    artifact_uri: str,
    texts: Mapping[str, Mapping[str, str]],
    metrics: Mapping[str, float],
) -> Any:
    """Return a run with the attributes of `mlflow.entities.Run` that queries read."""
    info = SimpleNamespace(run_id=run_id, experiment_id=experiment_id, status=status, artifact_uri=artifact_uri)
    return SimpleNamespace(info=info, data=SimpleNamespace(**texts, metrics=metrics))
