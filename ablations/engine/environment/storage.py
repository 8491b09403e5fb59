"""Where checkpoints go: a folder of this machine, a shared one, or an object store, each through pyarrow."""

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
"""How long a check waits for an object store, in seconds."""
CHECK_RETRY_SECONDS = 5
"""How long a check lets Google's library retry, in seconds. Its last error then comes before the timeout."""
RETRY_SECONDS = 60
"""How long a run lets Google's library retry, in seconds. Its own default, 15 minutes, is longer than the hang timeout."""


def open_storage(storage: str, retry_seconds: int = RETRY_SECONDS) -> tuple[fs.FileSystem, str, str]:
    """Return the file system of a folder or URI, the path there, and a name for it without keys that the URI may hold.

    Raises:
        ArrowException, OSError: nothing can be reached by this address.
    """
    if "://" not in storage:
        return fs.LocalFileSystem(), storage.rstrip("/"), storage
    address = storage
    if storage.startswith(("gs://", "gcs://")) and "retry_limit_seconds=" not in storage:
        address += f"{'&' if '?' in storage else '?'}retry_limit_seconds={retry_seconds}"
    files, path = fs.FileSystem.from_uri(address)
    return files, path.rstrip("/"), f"{storage.partition('://')[0]}://{path}"


def without_credentials(storage: str) -> str:
    """Return a name for a storage without keys that its address may hold."""
    address = storage.partition("?")[0]
    scheme, mark, rest = address.rpartition("://")
    return f"{scheme}{mark}{rest.rpartition('@')[2]}"


def check_still_exists(storage: str) -> None:
    """Raise OSError where the folder that `make_storage` made is gone. Whoever made it again would fill another disk."""
    files, path, name = open_storage(storage)
    if isinstance(files, fs.LocalFileSystem) and not Path(path).is_dir():
        raise FileNotFoundError(f"storage {name} is gone")


def check_storage(storage: str) -> None:
    """Raise ConfigError where this process cannot keep checkpoints. Makes nothing, and returns within seconds."""
    try:
        reason = _why_not_local(storage) if _is_local(storage) else _why_not_remote(storage)
    except (ArrowException, OSError) as error:
        reason = _first_line(error)
    if reason:
        raise _refused(storage, reason)


def make_storage(storage: str) -> None:
    """Make the folder of a storage in a file system; raise ConfigError where it cannot be made or written."""
    if not _is_local(storage):
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
    """Make a folder in one that is there, shared as `share` says, unless it is there already."""
    try:
        path.mkdir()
    except FileExistsError:
        if not path.is_dir():
            raise
    else:
        apply_group_permissions(path)


def apply_group_permissions(path: Path) -> None:
    """Give the group of a shared folder the same rights to what was made in it, whatever this process's umask.

    A folder is shared if it has the setgid bit: what is made in it belongs to its group.
    """
    folder, made = path.parent.stat().st_mode, path.stat().st_mode
    group = folder & (stat.S_IRWXG if stat.S_ISDIR(made) else stat.S_IRGRP | stat.S_IWGRP)
    if folder & stat.S_ISGID and group & ~made:
        with suppress(OSError):  # some file systems keep no modes
            path.chmod(stat.S_IMODE(made) | group)


def print_store_error(seconds: int) -> None:
    """Print why the store whose address is on stdin cannot be used, or nothing; the main function of `_why_not_remote`'s process.

    pyarrow's calls hear no signal and cannot be canceled, so the kernel ends this process when it takes too long.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.alarm(seconds)
    try:
        files, path, _ = open_storage(sys.stdin.read(), CHECK_RETRY_SECONDS)
        if files.get_file_info(path.partition("/")[0] or "/").type is fs.FileType.NotFound:
            raise FileNotFoundError("there is no such bucket")
    except (ArrowException, OSError) as error:
        print(_first_line(error), flush=True)
    os._exit(0)  # pyarrow's own end may wait for the network


def _why_not_remote(storage: str) -> str:
    """Return why an object store cannot be used, after `ANSWER_TIMEOUT_SECONDS` at most; empty if it can."""
    # The code of a Ray job is where Ray unpacked it.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path), "PYTHONUTF8": "1"}
    command = [
        sys.executable,
        "-c",
        f"from ablations.engine.environment.storage import print_store_error; print_store_error({CHECK_TIMEOUT_SECONDS})",
    ]
    asked = subprocess.run(command, input=storage, env=environment, capture_output=True, encoding="utf-8", check=False)  # noqa: S603
    if asked.returncode == -signal.SIGALRM:
        return f"no answer within {CHECK_TIMEOUT_SECONDS} s"
    if asked.returncode:
        return asked.stderr.strip().rpartition("\n")[2] or f"the process that asked ended with {asked.returncode}"
    return asked.stdout.strip()


def _why_not_local(storage: str) -> str:
    """Return why a folder cannot be made or written; empty if it can."""
    path = Path(open_storage(storage)[1] or "/")
    there = next(folder for folder in (path, *path.parents) if os.path.lexists(folder))
    if not there.is_dir():
        return f"{there} is no folder"
    return "" if os.access(there, os.W_OK | os.X_OK) else f"{there} cannot be written by this user"


def _is_local(storage: str) -> bool:
    return "://" not in storage or storage.startswith("file://")


def _refused(storage: str, reason: str) -> ConfigError:
    name = without_credentials(storage)
    return reject("--storage", name, f"cannot be used ({reason.replace(storage, name)})")  # an error may repeat the address


def _first_line(error: Exception) -> str:
    """Return an error's first line, without the details that Google's library adds to it."""
    return str(error).partition("\n")[0].partition(" error_info=")[0]
