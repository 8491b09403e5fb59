"""A home folder that was moved or renamed: MLflow stores absolute addresses of artifacts, which have to follow it."""

import sqlite3
import sys
from contextlib import closing
from pathlib import Path
from urllib.parse import unquote, urlsplit

from ablations.engine.environment import paths
from resnet_core.fields import reject

MARK = "/artifacts/"
"""Stands between the address of a home folder and the name of a study."""
COLUMNS = (("experiments", "artifact_location"), ("runs", "artifact_uri"), ("logged_models", "artifact_location"))


def update_artifact_addresses(database: Path) -> None:
    """Make the addresses in MLflow's database name the home folder that it is in now, if that was moved; say so.

    Without this, MLflow would make the old folder anew and write there.

    Raises:
        ConfigError: a home folder with artifacts is gone, and the database is not in the present one.
    """
    for old in _homes(database):
        if _folder(old).exists():
            continue
        home = paths.home()
        if database.parent.resolve() != home.resolve():
            accepted = f"accepted: the folder's new place, if it holds {database}, or a link in the old place"
            raise reject(
                "RESNET_ABLATIONS_HOME", str(home), f"artifacts in {database} are in {_folder(old)}, which is gone; {accepted}"
            )
        with closing(sqlite3.connect(database)) as connection, connection:
            for table, column in COLUMNS:
                change = f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE substr({column}, 1, ?) = ?"  # noqa: S608
                connection.execute(change, (home.as_uri() + MARK, len(old + MARK) + 1, len(old + MARK), old + MARK))
        print(f"{_folder(old)} is now {home}: addresses of artifacts in {database.name} follow.", file=sys.stderr)


def _homes(database: Path) -> list[str]:
    """Return the addresses of the home folders that hold studies' artifacts."""
    with closing(sqlite3.connect(database)) as connection:
        try:
            locations = connection.execute("SELECT DISTINCT artifact_location FROM experiments").fetchall()
        except sqlite3.OperationalError:  # a new database, without tables
            return []
    found = {location.rpartition(MARK)[0] for (location,) in locations if location}
    return sorted(address for address in found if address.startswith("file://"))


def _folder(address: str) -> Path:
    return Path(unquote(urlsplit(address).path))
