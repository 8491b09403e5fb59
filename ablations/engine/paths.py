"""Where things are kept. Nothing is ever written relative to the current folder: a submitted job's is temporary."""

import os
from pathlib import Path

import platformdirs


def home() -> Path:
    """Local state: MLflow's database, checkpoints, decoded data. `RESNET_ABLATIONS_HOME`, else the user's data folder."""
    return Path(os.environ.get("RESNET_ABLATIONS_HOME") or platformdirs.user_data_dir("resnet-ablations")).expanduser().absolute()


def data_cache() -> Path:
    return home() / "data"


def default_storage() -> str:
    return str(home() / "checkpoints")


def default_tracking_uri() -> str:
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{home() / 'mlflow.db'}"
