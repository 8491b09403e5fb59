"""Tables of MLflow's SQLite database, read without MLflow, whose import takes 3 s. They are private: their columns are checked."""

import re
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import quote

TIMEOUT_SECONDS = 10.0
"""Timeout for a locked database, in seconds."""
CONDITION = re.compile(r"(tags|params|attributes)\.(\w+|`[^`]+`) = '([^']*)'")
"""A condition of an MLflow filter that can be translated into SQL."""
PRESENCE = re.compile(r"tags\.(?:(\w+)|`([^`]+)`) LIKE '%'")
"""A condition that a tag exists, which can be translated as well."""
ONE_OF = re.compile(r"tags\.(\w+) IN \(('\w+'(?:, '\w+')*)\)")
"""A condition that a tag has one of several values, which MLflow's own filters lack for tags."""
COLUMNS = {
    "experiments": {"experiment_id", "name", "lifecycle_stage"},
    "runs": {"run_uuid", "experiment_id", "status", "lifecycle_stage", "start_time", "end_time", "artifact_uri"},
    "tags": {"run_uuid", "key", "value"},
    "params": {"run_uuid", "key", "value"},
    "latest_metrics": {"run_uuid", "key", "value", "is_nan"},
}
"""Tables and columns that are read."""

Times = tuple[int | None, int | None]
"""Start and end of a run, in milliseconds since 1970; None if it has not ended."""
RunRow = tuple[str, str, str, str, dict[str, dict[str, str]], dict[str, float], Times]
"""Run ID, experiment ID, status, artifact address, texts by `tags` or `params` and name, the latest value of each metric, times."""


class SqliteTables:
    """The tables of a database of MLflow, which are only read.

    Raises:
        sqlite3.Error: the database cannot be read, or its tables have other columns. The methods raise it too.
    """

    def __init__(self, file: Path) -> None:
        self._address = f"file:{quote(str(file))}?mode=ro"
        for table, needed in COLUMNS.items():
            if not needed <= {row[1] for row in self._select(f"PRAGMA table_info({table})")}:
                raise sqlite3.DatabaseError(f"{table} has other columns")

    def experiments(self) -> list[tuple[int, str, str]]:
        """Return the ID, the name and the life cycle stage of each experiment."""
        return self._select("SELECT experiment_id, name, lifecycle_stage FROM experiments")

    def runs(self, experiment_ids: Sequence[str], filter_string: str, count: int, skipped: int) -> Iterator[RunRow]:
        """Yield the runs that are not deleted and match a filter, the latest start first.

        Args:
            experiment_ids: experiments of the runs.
            filter_string: equalities of tags, parameters and the status, and the presence of tags, as MLflow writes them.
            count: number of runs, at most.
            skipped: number of runs to skip before.
        """
        where = ["lifecycle_stage = 'active'", f"experiment_id IN ({', '.join('?' * len(experiment_ids))})"]
        values: list[Any] = [int(number) for number in experiment_ids]
        for condition in filter_string.split(" and "):
            if present := PRESENCE.fullmatch(condition):
                where.append("run_uuid IN (SELECT run_uuid FROM tags WHERE key = ?)")
                values.append(present[1] or present[2])
                continue
            if several := ONE_OF.fullmatch(condition):
                wanted = [text.strip("'") for text in several[2].split(", ")]
                among = ", ".join("?" * len(wanted))
                where.append(f"run_uuid IN (SELECT run_uuid FROM tags WHERE key = ? AND value IN ({among}))")  # noqa: S608 - question marks
                values += [several[1], *wanted]
                continue
            parsed = CONDITION.fullmatch(condition)
            if not parsed or (parsed[1] == "attributes" and parsed[2] != "status"):
                raise sqlite3.NotSupportedError(condition)
            table, name, value = parsed.groups()
            if table == "attributes":
                where.append("status = ?")
                values.append(value)
            else:
                where.append(f"run_uuid IN (SELECT run_uuid FROM {table} WHERE key = ? AND value = ?)")  # noqa: S608 - matched above
                values += [name.strip("`"), value]
        columns = "run_uuid, experiment_id, status, artifact_uri, start_time, end_time"
        select = f"SELECT {columns} FROM runs WHERE {' AND '.join(where)}"  # noqa: S608 - no values
        rows = self._select(f"{select} ORDER BY start_time DESC, run_uuid LIMIT ? OFFSET ?", [*values, count, skipped])
        ids = [row[0] for row in rows]
        tags, params = (self._by_run(f"SELECT run_uuid, key, value FROM {table}", ids) for table in ("tags", "params"))  # noqa: S608
        metrics = self._by_run("SELECT run_uuid, key, CASE WHEN is_nan THEN 'nan' ELSE value END FROM latest_metrics", ids)
        for run_id, experiment_id, status, artifact_uri, *times in rows:
            texts = {"tags": tags.get(run_id, {}), "params": params.get(run_id, {})}
            numbers = {name: float(value) for name, value in metrics.get(run_id, {}).items()}
            yield run_id, str(experiment_id), status, artifact_uri or "", texts, numbers, (times[0], times[1])

    def _by_run(self, select: str, ids: Sequence[str]) -> dict[str, dict[str, Any]]:
        found: dict[str, dict[str, Any]] = {}
        for run_id, key, value in self._select(f"{select} WHERE run_uuid IN ({', '.join('?' * len(ids))})", ids):
            found.setdefault(run_id, {})[key] = value
        return found

    def _select(self, query: str, values: Iterable[Any] = ()) -> list[Any]:
        with closing(sqlite3.connect(self._address, uri=True, timeout=TIMEOUT_SECONDS)) as database:
            return database.execute(query, list(values)).fetchall()


def lacks_tables(file: Path) -> bool:
    """Return whether a database has no tables of MLflow, or not all of them yet: another process may be creating them."""
    try:
        with closing(sqlite3.connect(f"file:{quote(str(file))}?mode=ro", uri=True, timeout=TIMEOUT_SECONDS)) as database:
            names = {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    except sqlite3.OperationalError:  # locked
        return True
    except sqlite3.Error:  # no database
        return False
    return not COLUMNS.keys() <= names
