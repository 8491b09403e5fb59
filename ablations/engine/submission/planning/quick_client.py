"""A reading client of MLflow for plans and listings, without the import of MLflow, which takes 2 to 3 s.

`QuickClient` has the methods of `MlflowClient` that the queries of a plan use, and reads small artifacts. It asks MLflow's REST
API, or reads the tables of an SQLite database. Whatever it cannot do raises `NotQuick`: another database, a password, an unknown
filter, any error. The caller then uses `MlflowClient`, which also says what is wrong.
"""

import json
import os
import sqlite3
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from urllib.parse import quote, urlencode

from ablations.engine.environment import paths
from ablations.engine.tracking.mlflow_internals import PROXIED
from ablations.engine.tracking.mlflow_internals.sqlite_tables import SqliteTables
from ablations.engine.tracking.relocation import artifact_file

TIMEOUT_SECONDS = 10.0
"""Timeout of a request, in seconds."""


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
        self._tables = None
        if file := paths.sqlite_path(tracking_uri):
            with _sqlite_errors_as_not_quick():
                self._tables = SqliteTables(file)
        elif not tracking_uri.startswith("http://") or os.environ.get("MLFLOW_TRACKING_AUTH"):
            raise NotQuick

    @property
    def filters_by_several_values(self) -> bool:
        """True if a filter may have `tags.NAME IN ('a', 'b')`."""
        return self._tables is not None

    def get_experiment_by_name(self, name: str) -> Any:
        """Return an experiment, also a deleted one; None if there is none of this name."""
        if self._tables:
            with _sqlite_errors_as_not_quick():
                return next((_experiment(*row) for row in self._tables.experiments() if row[1] == name), None)
        try:
            answer = self._ask(f"experiments/get-by-name?{urlencode({'experiment_name': name})}")["experiment"]
        except FileNotFoundError:
            return None
        return _experiment(answer["experiment_id"], answer["name"], answer["lifecycle_stage"])

    def search_experiments(self, max_results: int, page_token: str | None = None) -> Page:
        """Return a page of the experiments that are not deleted."""
        page = Page()
        if self._tables:
            with _sqlite_errors_as_not_quick():
                page += [_experiment(*row) for row in self._tables.experiments() if row[2] == "active"]
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
        if self._tables:
            skipped = int(page_token or 0)
            with _sqlite_errors_as_not_quick():
                page += [_run(*row) for row in self._tables.runs(experiment_ids, filter_string, max_results, skipped)]
            page.token = str(skipped + max_results) if len(page) == max_results else ""
            return page
        query = {"experiment_ids": list(experiment_ids), "filter": filter_string, "max_results": max_results}
        answer = self._ask("runs/search", query | {"page_token": page_token or ""})
        for run in answer.get("runs", ()):
            info, data = run["info"], run["data"]
            values = {name: {each["key"]: each.get("value", "") for each in data.get(name, ())} for name in ("tags", "params")}
            metrics = {each["key"]: float(each["value"]) for each in data.get("metrics", ())}
            times = tuple(int(info[name]) if name in info else None for name in ("start_time", "end_time"))
            where = info["run_id"], info["experiment_id"], info["status"], info.get("artifact_uri", "")
            page.append(_run(*where, values, metrics, times))
        page.token = answer.get("next_page_token", "")
        return page

    def read_artifact(self, run: Any, path: str) -> str | None:
        """Return the text of an artifact of a run that this client has returned; None if the run has no such artifact."""
        address = f"{run.info.artifact_uri}/{path}"
        if address.startswith(PROXIED) and not self._tables:
            route = f"{self.tracking_uri.rstrip('/')}/api/2.0/mlflow-artifacts/artifacts/{quote(address.removeprefix(PROXIED))}"
            try:
                with urllib.request.urlopen(route, timeout=TIMEOUT_SECONDS) as answer:  # noqa: S310 - http only
                    return str(answer.read().decode(errors="replace"))
            except urllib.error.HTTPError as error:
                if error.code in (404, 500):  # MLflow 3.14 answers 500 for a missing file
                    return None
                raise NotQuick from error
            except OSError as error:
                raise NotQuick from error
        file = artifact_file(address)
        depth = path.count("/") + 2  # of the file in the folder of the experiment
        if file is None or len(file.parents) <= depth or not file.parents[depth].exists():
            raise NotQuick  # another store, or the home folder was moved: MLflow's own client reads or updates the addresses
        try:
            return file.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return None
        except OSError as error:
            raise NotQuick from error

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


@contextmanager
def _sqlite_errors_as_not_quick() -> Iterator[None]:
    try:
        yield
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
    times: Sequence[int | None],
) -> Any:
    """Return a run with the attributes of `mlflow.entities.Run` that queries read."""
    start, end = times
    of_run = {"run_id": run_id, "experiment_id": experiment_id, "status": status, "artifact_uri": artifact_uri}
    info = SimpleNamespace(**of_run, start_time=start, end_time=end)
    return SimpleNamespace(info=info, data=SimpleNamespace(**texts, metrics=metrics))
