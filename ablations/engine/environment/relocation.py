"""Support for moving the home folder: MLflow stores absolute artifact addresses, which must be updated afterwards."""

import sqlite3
import sys
from contextlib import closing
from pathlib import Path
from urllib.parse import unquote, urlsplit

from ablations.engine.environment import paths
from resnet_core.fields import reject

MARK = "/artifacts/"
"""Separator between the address of a home folder and the name of a study."""
COLUMNS = (("experiments", "artifact_location"), ("runs", "artifact_uri"), ("logged_models", "artifact_location"))


def update_artifact_addresses(database: Path) -> None:
    """Update the artifact addresses in MLflow's database if the home folder was moved, and print a line about it.

    Otherwise MLflow would recreate the old folder and write there.

    Raises:
        ConfigError: a home folder with artifacts no longer exists, and the database is outside the current home folder.
    """
    for old in _home_addresses(database):
        if _folder(old).exists():
            continue
        home = paths.home()
        if database.parent.resolve() != home.resolve():
            accepted = f"accepted: the folder's new location, if it contains {database}, or a link at the old location"
            raise reject(
                "RESNET_ABLATIONS_HOME", str(home), f"artifacts of {database} are in {_folder(old)}, which is gone; {accepted}"
            )
        with closing(sqlite3.connect(database)) as connection, connection:
            for table, column in COLUMNS:
                change = f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE substr({column}, 1, ?) = ?"  # noqa: S608
                connection.execute(change, (home.as_uri() + MARK, len(old + MARK) + 1, len(old + MARK), old + MARK))
        print(f"{_folder(old)} is now {home}: artifact addresses in {database.name} were updated.", file=sys.stderr)


def _home_addresses(database: Path) -> list[str]:
    """Return the addresses of the home folders that contain artifacts of studies."""
    with closing(sqlite3.connect(database)) as connection:
        try:
            locations = connection.execute("SELECT DISTINCT artifact_location FROM experiments").fetchall()
        except sqlite3.OperationalError:  # a new database, without tables
            return []
    found = {location.rpartition(MARK)[0] for (location,) in locations if location}
    return sorted(address for address in found if address.startswith("file://"))


def _folder(address: str) -> Path:
    return Path(unquote(urlsplit(address).path))
