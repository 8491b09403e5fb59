"""Where things are kept. Nothing is ever written relative to the current folder: a submitted job's is temporary."""

import os
from pathlib import Path

import platformdirs


def home() -> Path:
    """Local state: MLflow's database, decoded data. `RESNET_ABLATIONS_HOME`, else the user's data folder."""
    return Path(os.environ.get("RESNET_ABLATIONS_HOME") or platformdirs.user_data_dir("resnet-ablations")).expanduser().absolute()


def data_cache() -> Path:
    return home() / "data"


def shared(folder: str) -> str:
    """A folder in the storage that a cluster's nodes share, `RESNET_ABLATIONS_STORAGE`; where that is not set, in `home`."""
    address, mark, options = (os.environ.get("RESNET_ABLATIONS_STORAGE") or str(home())).partition("?")
    if "://" not in address:
        address = str(Path(address).expanduser().absolute())
    return f"{address.rstrip('/')}/{folder}{mark}{options}"


def default_storage() -> str:
    """Where checkpoints go."""
    return shared("checkpoints")


def default_tracking_uri() -> str:
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{home() / 'mlflow.db'}"
