"""Locations of local state and of checkpoints.

No path is relative to the current folder, since the working folder of a submitted Ray job is temporary.
"""

import os
import re
import stat
import sys
from pathlib import Path
from urllib.parse import unquote

import platformdirs

from resnet_core.fields import reject

STORES = dict.fromkeys(("s3", "gs", "gcs"), "bucket") | dict.fromkeys(("abfs", "abfss"), "container") | {"hdfs": "host"}
"""URI schemes of the stores that pyarrow supports, with the word for the first part of their addresses, for messages."""
ACCEPTED_STORAGE = "accepted: a folder, file:///FOLDER, s3://BUCKET/FOLDER, gs://BUCKET/FOLDER, abfss://…, hdfs://HOST/FOLDER"


def home() -> Path:
    """Return the home folder, with MLflow's database and decoded data: `RESNET_ABLATIONS_HOME`, or else the user's data folder."""
    name = "RESNET_ABLATIONS_HOME"
    return absolute_path(name, os.environ.get(name) or platformdirs.user_data_dir("resnet-ablations"))


def protect_home() -> None:
    """Create `home` if it does not exist, and remove the permissions of other users; print a line if other users had any.

    A folder keeps its mode if another user owns it, if it contains the user's own home folder, or if it is shared (`/tmp`).
    """
    folder = home()
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError:  # the first write there reports the error
        return
    found = folder.stat()
    mode = stat.S_IMODE(found.st_mode)
    if not mode & 0o077 or found.st_uid != os.geteuid() or mode & stat.S_ISVTX or _holds_user_home(folder):
        return
    try:
        folder.chmod(mode & 0o700)
    except OSError as error:
        raise reject("RESNET_ABLATIONS_HOME", str(folder), f"cannot be made private ({error})") from error
    change = f"{folder} was open to other users (mode {mode:04o}) and is private now (0700)"
    print(f"{change}; to share results, use --storage and an MLflow server.", file=sys.stderr)


def _holds_user_home(folder: Path) -> bool:
    try:
        return Path.home().resolve().is_relative_to(folder.resolve())
    except RuntimeError:  # a user without a home folder
        return False


def absolute_path(field: str, folder: str) -> Path:
    """Return the absolute path of a folder; raise ConfigError if the current folder or the home folder of `~` does not exist."""
    try:
        return Path(folder).expanduser().absolute()
    except (OSError, RuntimeError) as error:
        raise reject(field, folder, f"accepted: an absolute path, or ~ of a user with a home folder ({error})") from error


def storage_address(option: str, address: str) -> str:
    """Return the location of checkpoints: a folder as an absolute path, or a URI unchanged.

    Raises:
        ConfigError: pyarrow does not support the URI's scheme, or the URI names no bucket.
    """
    scheme, mark, rest = address.partition("://")
    if not mark:
        return str(absolute_path(option, address))
    if scheme not in (*STORES, "file"):
        raise reject(option, address, f"{scheme}:// is not supported; {ACCEPTED_STORAGE}")
    if scheme == "file" and not rest.startswith("/"):
        raise reject(option, address, f"its path is not absolute; {ACCEPTED_STORAGE}")
    if scheme in STORES and not re.split("[/?#]", rest)[0].rpartition("@")[2]:
        raise reject(option, address, f"names no {STORES[scheme]}; {ACCEPTED_STORAGE}")
    return address


def data_cache() -> Path:
    """Return the folder of downloaded and decoded data sets."""
    return home() / "data"


def shared_folder(folder: str) -> str:
    """Return a folder in the storage that a cluster's nodes share, `RESNET_ABLATIONS_STORAGE`; if it is not set, in `home`."""
    storage = os.environ.get("RESNET_ABLATIONS_STORAGE") or str(home())
    if "://" not in storage:
        return f"{str(absolute_path('RESNET_ABLATIONS_STORAGE', storage)).rstrip('/')}/{folder}"
    address, mark, options = storage.partition("?")
    return f"{address.rstrip('/')}/{folder}{mark}{options}"


def default_storage() -> str:
    """Return the default location of checkpoints."""
    return shared_folder("checkpoints")


def sqlite_uri(path: Path) -> str:
    """Return the URI of an SQLite database. `%` and `?` are escaped, since SQLAlchemy would interpret them."""
    return "sqlite:///" + str(path).replace("%", "%25").replace("?", "%3F")


def sqlite_path(uri: str) -> Path | None:
    """Return the file of an SQLite database; None for any other address."""
    if not uri.startswith("sqlite:///"):
        return None
    path = unquote(uri.removeprefix("sqlite:///").partition("?")[0])
    return Path(path) if path and path != ":memory:" else None


def default_tracking_uri() -> str:
    """Return the tracking URI: `MLFLOW_TRACKING_URI`, or else the database in `home`."""
    return os.environ.get("MLFLOW_TRACKING_URI") or sqlite_uri(home() / "mlflow.db")
