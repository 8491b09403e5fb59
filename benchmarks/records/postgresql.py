"""A PostgreSQL of one's own, on a socket in a temporary folder, as long as it is needed."""

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

OWNER = "postgres"
"""PostgreSQL refuses to run as root; Debian's package brings this user."""


def programs() -> Path | None:
    """The folder of its programs, where it is installed: on the path, or where Debian puts them."""
    found = shutil.which("initdb")
    folders = [Path(found).resolve().parent] if found else sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=_version)
    return folders[-1] if folders else None


def _version(folder: Path) -> int:
    return int(folder.parent.name)


@contextmanager
def server() -> Iterator[str]:
    """Address of a database `mlflow`, which goes with the server."""
    folder = programs()
    assert folder, "PostgreSQL is not installed"
    user = OWNER if os.getuid() == 0 else None
    with tempfile.TemporaryDirectory() as scratch:
        if user:
            os.chown(scratch, pwd.getpwnam(user).pw_uid, -1)
        data = f"{scratch}/data"
        quiet = {"stdout": subprocess.DEVNULL, "user": user, "cwd": "/", "check": True}
        subprocess.run([folder / "initdb", "--auth=trust", "--username=mlflow", "--encoding=UTF8", "-D", data], **quiet)  # type: ignore[call-overload]
        control = [folder / "pg_ctl", "-D", data, "-l", f"{scratch}/log", "-w"]
        subprocess.run([*control, "-o", f"-c listen_addresses= -k {scratch}", "start"], **quiet)  # type: ignore[call-overload]
        try:
            subprocess.run([folder / "createdb", "--host", scratch, "--username=mlflow", "mlflow"], **quiet)  # type: ignore[call-overload]
            yield f"postgresql://mlflow@/mlflow?host={scratch}"
        finally:
            subprocess.run([*control, "-m", "immediate", "stop"], **quiet)  # type: ignore[call-overload]
