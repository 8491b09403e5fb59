"""Artifacts of the home folder: MLflow stores absolute addresses, or those of a server that may have ended since."""

import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

from ablations.engine.environment import paths
from ablations.engine.tracking import mlflow_internals
from resnet_core.fields import reject

MARK = "/artifacts/"
"""Separator between the address of a home folder and the name of a study."""


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
        mlflow_internals.replace_artifact_addresses(database, old + MARK, home.as_uri() + MARK)
        print(f"{_folder(old)} is now {home}: artifact addresses in {database.name} were updated.", file=sys.stderr)


def open_artifacts_of_service(database: Path) -> None:
    """Make artifacts that were stored through the local service available without it, if this is the service's database."""
    folder = paths.shared_folder("artifacts")
    if database.parent.resolve() == paths.home().resolve() and "://" not in folder:
        mlflow_internals.open_proxied_artifacts(Path(folder).as_uri())


def artifact_file(address: str) -> Path | None:
    """Return the file on this machine at an artifact's address; None if it is elsewhere.

    An address of the local service's server leads to the folder where that keeps its artifacts.
    """
    if address.startswith(mlflow_internals.PROXIED):
        folder = paths.shared_folder("artifacts")
        return None if "://" in folder else Path(folder, address.removeprefix(mlflow_internals.PROXIED))
    path = unquote(address.removeprefix("file://"))
    return Path(path) if path.startswith("/") else None


def _home_addresses(database: Path) -> list[str]:
    """Return the addresses of the home folders that contain artifacts of studies."""
    found = {location.rpartition(MARK)[0] for location in mlflow_internals.artifact_addresses(database)}
    return sorted(address for address in found if address.startswith("file://"))


def _folder(address: str) -> Path:
    return Path(unquote(urlsplit(address).path))
