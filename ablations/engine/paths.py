"""Where things are kept. Nothing is ever written relative to the current folder: a submitted job's is temporary."""

import os
from pathlib import Path

import platformdirs

from resnet_core.fields import reject


def home() -> Path:
    """Local state: MLflow's database, decoded data. `RESNET_ABLATIONS_HOME`, else the user's data folder."""
    name = "RESNET_ABLATIONS_HOME"
    return absolute(name, os.environ.get(name) or platformdirs.user_data_dir("resnet-ablations"))


def absolute(field: str, folder: str) -> Path:
    """Where a folder is, from the root; raises ConfigError for `~` of somebody who has none, or without a current folder."""
    try:
        return Path(folder).expanduser().absolute()
    except (OSError, RuntimeError) as error:
        raise reject(field, folder, f"accepted: a folder from the root, or with ~ of a user who has one ({error})") from error


def data_cache() -> Path:
    return home() / "data"


def shared(folder: str) -> str:
    """A folder in the storage that a cluster's nodes share, `RESNET_ABLATIONS_STORAGE`; where that is not set, in `home`."""
    address, mark, options = (os.environ.get("RESNET_ABLATIONS_STORAGE") or str(home())).partition("?")
    if "://" not in address:
        address = str(absolute("RESNET_ABLATIONS_STORAGE", address))
    return f"{address.rstrip('/')}/{folder}{mark}{options}"


def default_storage() -> str:
    """Where checkpoints go."""
    return shared("checkpoints")


def default_tracking_uri() -> str:
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{home() / 'mlflow.db'}"
