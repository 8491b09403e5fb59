"""Where things are kept. Nothing is ever written relative to the current folder: a submitted job's is temporary."""

import os
import re
from pathlib import Path

import platformdirs

from resnet_core.fields import reject

STORES = dict.fromkeys(("s3", "gs", "gcs"), "bucket") | dict.fromkeys(("abfs", "abfss"), "container") | {"hdfs": "host"}
"""Schemes that pyarrow reaches, and what their addresses begin with."""
ACCEPTED_STORAGE = "accepted: a folder, file:///FOLDER, s3://BUCKET/FOLDER, gs://BUCKET/FOLDER, abfss://…, hdfs://HOST/FOLDER"


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


def storage(option: str, address: str) -> str:
    """Return where checkpoints go: a folder from the root, or an address as it is.

    Raises:
        ConfigError: the address has no scheme that pyarrow knows, or names no bucket.
    """
    scheme, mark, rest = address.partition("://")
    if not mark:
        return str(absolute(option, address))
    if scheme not in (*STORES, "file"):
        raise reject(option, address, f"{scheme}:// is no storage; {ACCEPTED_STORAGE}")
    if scheme == "file" and not rest.startswith("/"):
        raise reject(option, address, f"its folder does not begin at the root; {ACCEPTED_STORAGE}")
    if scheme in STORES and not re.split("[/?#]", rest)[0].rpartition("@")[2]:
        raise reject(option, address, f"names no {STORES[scheme]}; {ACCEPTED_STORAGE}")
    return address


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
