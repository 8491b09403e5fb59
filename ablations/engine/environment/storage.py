"""Storage of checkpoints through pyarrow: a local folder, a shared folder or an object store."""

import os
import signal
import stat
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

from pyarrow import ArrowException, fs

from resnet_core.fields import ConfigError, reject

CHECK_TIMEOUT_SECONDS = 12
"""Time that a check waits for an object store, in seconds."""
CHECK_RETRY_SECONDS = 5
"""Time that Google's library retries during a check, in seconds. Its last error must arrive before the timeout of the check."""
RETRY_SECONDS = 60
"""Time that Google's library retries during a run, in seconds. Its default, 15 minutes, is longer than the hang timeout."""


def open_storage(storage: str, retry_seconds: int = RETRY_SECONDS) -> tuple[fs.FileSystem, str, str]:
    """Return the file system of a folder or URI, the path in it, and a name for messages, without credentials.

    Raises:
        ArrowException, OSError: pyarrow cannot open the address.
    """
    if "://" not in storage:
        return fs.LocalFileSystem(), storage.rstrip("/"), storage
    address = storage
    if storage.startswith(("gs://", "gcs://")) and "retry_limit_seconds=" not in storage:
        address += f"{'&' if '?' in storage else '?'}retry_limit_seconds={retry_seconds}"
    files, path = fs.FileSystem.from_uri(address)
    return files, path.rstrip("/"), f"{storage.partition('://')[0]}://{path}"


def without_credentials(storage: str) -> str:
    """Return the address of a storage without credentials and parameters, for messages."""
    address = storage.partition("?")[0]
    scheme, mark, rest = address.rpartition("://")
    return f"{scheme}{mark}{rest.rpartition('@')[2]}"


def check_storage(storage: str) -> None:
    """Raise ConfigError if this process cannot store checkpoints in `storage`. The check creates nothing and takes seconds."""
    try:
        reason = _local_error(storage) if is_local(storage) else _remote_error(storage)
    except (ArrowException, OSError) as error:
        reason = _first_line(error)
    if reason:
        raise _refused(storage, reason)


def make_storage(storage: str) -> None:
    """Create the folder of a local storage; raise ConfigError if it cannot be created or written. Object stores need no folder."""
    if not is_local(storage):
        return
    try:
        path = Path(open_storage(storage)[1] or "/")
        for folder in (*reversed(path.parents), path):
            if not folder.is_dir():
                make_folder(folder)
        with tempfile.TemporaryFile(dir=path) as file:
            file.write(b"can be written")
            file.flush()
    except (ArrowException, OSError) as error:
        raise _refused(storage, _first_line(error)) from error


def make_folder(path: Path) -> None:
    """Create a folder in an existing one, with its group's permissions (`apply_group_permissions`), unless it exists."""
    try:
        path.mkdir()
    except FileExistsError:
        if not path.is_dir():
            raise
    else:
        apply_group_permissions(path)


def apply_group_permissions(path: Path) -> None:
    """Give the group of a shared parent folder the same permissions for `path`, regardless of this process's umask.

    A folder is shared if it has the setgid bit, so that new entries belong to its group.
    """
    folder, made = path.parent.stat().st_mode, path.stat().st_mode
    group = folder & (stat.S_IRWXG if stat.S_ISDIR(made) else stat.S_IRGRP | stat.S_IWGRP)
    if folder & stat.S_ISGID and group & ~made:
        with suppress(OSError):  # some file systems store no modes
            path.chmod(stat.S_IMODE(made) | group)


def print_store_error(seconds: int) -> None:
    """Print why the store whose address is on stdin cannot be used, or nothing. This is the main function of a separate process.

    pyarrow's calls ignore signals and cannot be canceled, so SIGALRM kills the process after `seconds`.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.alarm(seconds)
    try:
        files, path, _ = open_storage(sys.stdin.read(), CHECK_RETRY_SECONDS)
        if files.get_file_info(path.partition("/")[0] or "/").type is fs.FileType.NotFound:
            raise FileNotFoundError("the bucket does not exist")
    except (ArrowException, OSError) as error:
        print(_first_line(error), flush=True)
    os._exit(0)  # pyarrow's shutdown may wait for the network


def _remote_error(storage: str) -> str:
    """Return why an object store cannot be used, or an empty string, within `CHECK_TIMEOUT_SECONDS`."""
    # Ray unpacks the code of a job to a folder that only `sys.path` names.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path), "PYTHONUTF8": "1"}
    command = [
        sys.executable,
        "-c",
        f"from ablations.engine.environment.storage import print_store_error; print_store_error({CHECK_TIMEOUT_SECONDS})",
    ]
    check = subprocess.run(command, input=storage, env=environment, capture_output=True, encoding="utf-8", check=False)  # noqa: S603
    if check.returncode == -signal.SIGALRM:
        return f"no answer within {CHECK_TIMEOUT_SECONDS} s"
    if check.returncode:
        return check.stderr.strip().rpartition("\n")[2] or f"the process that checked it ended with exit code {check.returncode}"
    return check.stdout.strip()


def _local_error(storage: str) -> str:
    """Return why a folder cannot be created or written, or an empty string."""
    path = Path(open_storage(storage)[1] or "/")
    existing = next(folder for folder in (path, *path.parents) if os.path.lexists(folder))
    if not existing.is_dir():
        return f"{existing} is not a folder"
    return "" if os.access(existing, os.W_OK | os.X_OK) else f"{existing} cannot be written by this user"


def is_local(storage: str) -> bool:
    """Return whether a storage is a folder on this machine."""
    return "://" not in storage or storage.startswith("file://")


def _refused(storage: str, reason: str) -> ConfigError:
    name = without_credentials(storage)
    return reject("--storage", name, f"cannot be used ({reason.replace(storage, name)})")  # an error may repeat the address


def _first_line(error: Exception) -> str:
    """Return the first line of an error's text, without the details that Google's library appends."""
    return str(error).partition("\n")[0].partition(" error_info=")[0]
