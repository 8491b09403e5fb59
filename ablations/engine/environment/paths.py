"""Where things are kept. Nothing is ever written relative to the current folder: a submitted job's is temporary."""

import os
import re
import stat
import sys
from pathlib import Path

import platformdirs

from resnet_core.fields import reject

STORES = dict.fromkeys(("s3", "gs", "gcs"), "bucket") | dict.fromkeys(("abfs", "abfss"), "container") | {"hdfs": "host"}
"""Schemes that pyarrow reaches, and what their addresses begin with."""
ACCEPTED_STORAGE = "accepted: a folder, file:///FOLDER, s3://BUCKET/FOLDER, gs://BUCKET/FOLDER, abfss://…, hdfs://HOST/FOLDER"


def home() -> Path:
    """Local state: MLflow's database, decoded data. `RESNET_ABLATIONS_HOME`, else the user's data folder."""
    name = "RESNET_ABLATIONS_HOME"
    return absolute_path(name, os.environ.get(name) or platformdirs.user_data_dir("resnet-ablations"))


def protect_home() -> None:
    """Make `home` if it does not exist, and let only its owner read and change it; say so if others could until now.

    A folder that another user owns, that holds the user's own home folder, or that is made for everybody (`/tmp`) keeps its mode.
    """
    folder = home()
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError:  # whoever writes there says so
        return
    found = folder.stat()
    mode = stat.S_IMODE(found.st_mode)
    if not mode & 0o077 or found.st_uid != os.geteuid() or mode & stat.S_ISVTX or _holds_user_home(folder):
        return
    try:
        folder.chmod(mode & 0o700)
    except OSError as error:
        raise reject("RESNET_ABLATIONS_HOME", str(folder), f"cannot be made private ({error})") from error
    say = f"{folder} was open to other users (mode {mode:04o}) and is private now (0700)"
    print(f"{say}; to share results, use --storage and an MLflow server.", file=sys.stderr)


def _holds_user_home(folder: Path) -> bool:
    try:
        return Path.home().resolve().is_relative_to(folder.resolve())
    except RuntimeError:  # a user without a home folder
        return False


def absolute_path(field: str, folder: str) -> Path:
    """Where a folder is, from the root; raises ConfigError for `~` of somebody who has none, or without a current folder."""
    try:
        return Path(folder).expanduser().absolute()
    except (OSError, RuntimeError) as error:
        raise reject(field, folder, f"accepted: a folder from the root, or with ~ of a user who has one ({error})") from error


def storage_address(option: str, address: str) -> str:
    """Return where checkpoints go: a folder from the root, or an address as it is.

    Raises:
        ConfigError: the address has no scheme that pyarrow knows, or names no bucket.
    """
    scheme, mark, rest = address.partition("://")
    if not mark:
        return str(absolute_path(option, address))
    if scheme not in (*STORES, "file"):
        raise reject(option, address, f"{scheme}:// is no storage; {ACCEPTED_STORAGE}")
    if scheme == "file" and not rest.startswith("/"):
        raise reject(option, address, f"its folder does not begin at the root; {ACCEPTED_STORAGE}")
    if scheme in STORES and not re.split("[/?#]", rest)[0].rpartition("@")[2]:
        raise reject(option, address, f"names no {STORES[scheme]}; {ACCEPTED_STORAGE}")
    return address


def data_cache() -> Path:
    return home() / "data"


def shared_folder(folder: str) -> str:
    """A folder in the storage that a cluster's nodes share, `RESNET_ABLATIONS_STORAGE`; where that is not set, in `home`."""
    storage = os.environ.get("RESNET_ABLATIONS_STORAGE") or str(home())
    if "://" not in storage:
        return f"{str(absolute_path('RESNET_ABLATIONS_STORAGE', storage)).rstrip('/')}/{folder}"
    address, mark, options = storage.partition("?")
    return f"{address.rstrip('/')}/{folder}{mark}{options}"


def default_storage() -> str:
    """Where checkpoints go."""
    return shared_folder("checkpoints")


def sqlite_uri(path: Path) -> str:
    """Return the address of an SQLite database: SQLAlchemy decodes `%`, and options begin at `?`."""
    return "sqlite:///" + str(path).replace("%", "%25").replace("?", "%3F")


def default_tracking_uri() -> str:
    return os.environ.get("MLFLOW_TRACKING_URI") or sqlite_uri(home() / "mlflow.db")
