"""Files that no other user of the machine may read or replace: Ray's token and Ray's temporary folder.

Ray creates its folders with mode 0777, including the working folder of a submitted job, and its token with the process's umask.
This module creates both with private modes before Ray does.
"""

import fcntl
import os
import secrets
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from resnet_core.fields import reject

PREFIX = "abl-"
"""Prefix of the names of Ray's temporary folders that this module creates."""
MAX_SOCKET_PATH_BYTES = 107
"""Longest path of a Unix socket on Linux, in bytes."""
RAY_SUFFIX_BYTES = len(f"/{PREFIX}12345678/r/session_2026-11-27_14-19-28_688167_4194304/sockets/dash_MetricsHead")
"""Length of the longest socket path that this module and Ray append to a folder, in bytes. Process IDs have at most 7 digits."""


def ray_token() -> str | None:
    """Return the token with which this process authenticates to Ray, from the places where Ray reads it; None if there is none."""
    if text := os.environ.get("RAY_AUTH_TOKEN"):
        return text.strip()
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or _token_file())
    try:
        return path.read_text().strip() or None
    except OSError:
        return None


def protect_token(*, create: bool) -> None:
    """Make `~/.ray/auth_token` readable by its owner only; with `create`, first generate a token if there is none.

    Raises:
        ConfigError: the file belongs to another user, or cannot be written.
    """
    if os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH"):
        return  # Ray does not read the file
    path = _token_file()
    try:
        if create and not path.exists():
            _create_token(path)
        with suppress(FileNotFoundError):
            _tighten_token(path)
    except OSError as error:
        accepted = "accepted: a file of this user, RAY_AUTH_TOKEN, or RAY_AUTH_MODE=disabled on a machine without other users"
        raise reject("Ray's token", str(path), f"cannot be kept private ({error}); {accepted}") from error


def _token_file() -> Path:
    return Path.home() / ".ray" / "auth_token"


def _create_token(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with suppress(FileExistsError):  # another process has just created a token, and both processes use it
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        os.write(file, secrets.token_hex(32).encode())  # as `ray get-auth-token --generate` does
        os.close(file)


def _tighten_token(path: Path) -> None:
    found = path.stat()
    if found.st_uid != os.geteuid():
        raise PermissionError(f"it belongs to user {found.st_uid}, but this process runs as user {os.geteuid()}")
    if mode := stat.S_IMODE(found.st_mode) & 0o077:
        path.chmod(stat.S_IMODE(found.st_mode) & ~mode)
        change = f"{path} could be read by other users (mode {stat.S_IMODE(found.st_mode):04o}) and is private now; "
        print(f"{change}for a new token, delete it before Ray starts again.", file=sys.stderr)


def make_ray_folder() -> tuple[Path, int]:
    """Create a private folder for Ray's temporary files.

    Each start gets a new folder with a random name, since another user could occupy a fixed name first. It is in `RAY_TMPDIR`,
    `TMPDIR` or `/tmp`. It is not in the home folder, which may be on NFS, where sockets do not work, and not in
    `XDG_RUNTIME_DIR`, which is removed when the user logs out.

    Returns:
        The folder for Ray, and an open file descriptor that locks it. Ray's processes inherit the descriptor, so the folder counts
        as used while any of them is alive.

    Raises:
        ConfigError: the folder cannot be created.
    """
    base = _temporary_base()
    remove_unused_ray_folders()
    try:
        while True:
            folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=base))  # mode 0700
            lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
            fcntl.flock(lock, fcntl.LOCK_EX)
            if (folder / "lock").exists():  # otherwise another process removed the folder before it was locked
                return folder / "r", lock
            os.close(lock)
    except OSError as error:
        raise reject("RAY_TMPDIR", str(base), f"Ray's temporary folder cannot be created there ({error})") from error


def remove_unused_ray_folders() -> None:
    """Remove the folders that `make_ray_folder` created for this user and that no process uses any more."""
    for folder in ray_folders():
        with _locked(folder) as unused:
            if unused:
                shutil.rmtree(folder, ignore_errors=True)


def ray_folders() -> list[Path]:
    """Return the folders that `make_ray_folder` created for this user."""
    found = []
    for folder in sorted(_temporary_base().glob(f"{PREFIX}????????")):
        with suppress(OSError):  # removed right now
            if folder.lstat().st_uid == os.geteuid():
                found.append(folder)
    return found


def unused_ray_folders() -> list[Path]:
    """Return those of `ray_folders` that no process uses."""
    found = []
    for folder in ray_folders():
        with _locked(folder) as unused:
            if unused:
                found.append(folder)
    return found


@contextmanager
def _locked(folder: Path) -> Iterator[bool]:
    """Lock a folder of `make_ray_folder`; yield False if a process uses it, or creates or removes it right now."""
    try:
        lock = os.open(folder / "lock", os.O_RDWR | os.O_NOFOLLOW)
    except OSError:
        yield False
        return
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
        else:
            yield True
    finally:
        os.close(lock)


def _temporary_base() -> Path:
    """Return the parent of temporary folders: the one that Ray would use, if it is safe and short enough for socket paths."""
    if chosen := os.environ.get("RAY_TMPDIR"):
        if not _fits(Path(chosen)):
            most = MAX_SOCKET_PATH_BYTES - RAY_SUFFIX_BYTES
            raise reject(
                "RAY_TMPDIR", chosen, f"accepted: an absolute path of at most {most} bytes, since socket paths are limited"
            )
        if _others_may_rename(Path(chosen)):
            raise reject("RAY_TMPDIR", chosen, "accepted: a folder of yours or of root, whose entries other users cannot rename")
        return Path(chosen)
    candidate = Path(os.environ.get("TMPDIR") or "/tmp")  # noqa: S108 - a folder with a name that nobody can predict, mode 0700
    return candidate if _fits(candidate) and not _others_may_rename(candidate) else Path("/tmp")  # noqa: S108


def _fits(folder: Path) -> bool:
    return folder.is_absolute() and len(os.fsencode(folder)) + RAY_SUFFIX_BYTES <= MAX_SOCKET_PATH_BYTES


def _others_may_rename(folder: Path) -> bool:
    """Return whether a user other than root and this one could replace an entry of the folder."""
    try:
        found = folder.stat()
    except OSError:  # creating something in it reports the error
        return False
    open_to_others = found.st_mode & 0o022 and not found.st_mode & stat.S_ISVTX
    return bool(open_to_others) or found.st_uid not in (0, os.geteuid())
