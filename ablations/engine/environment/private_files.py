"""Files that no other user of the machine may read or replace: Ray's token and Ray's temporary folder.

Ray opens the folders that it makes to everybody (mode 0777), among them the one that a submitted job starts in, and writes its
token with whatever umask is in force. Here both are made before Ray makes them.
"""

import fcntl
import os
import secrets
import shutil
import stat
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

from resnet_core.fields import reject

PREFIX = "abl-"
MAX_SOCKET_PATH_BYTES = 107
RAY_SUFFIX_BYTES = len(f"/{PREFIX}12345678/r/session_2026-11-27_14-19-28_688167_4194304/sockets/dash_MetricsHead")
"""What Ray and this module append to a folder: the longest path of a socket. A process ID has at most 7 digits."""


def ray_token() -> str | None:
    """Return the token that this process shows to Ray, from where Ray looks for it; None if there is none."""
    if text := os.environ.get("RAY_AUTH_TOKEN"):
        return text.strip()
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or _token_file())
    try:
        return path.read_text().strip() or None
    except OSError:
        return None


def protect_token(*, create: bool) -> None:
    """Make `~/.ray/auth_token` readable by its owner only; with `create`, also make a token where Ray would.

    Raises:
        ConfigError: the file belongs to another user, or cannot be written.
    """
    if os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH"):
        return  # Ray does not look at the file
    path = _token_file()
    try:
        if create and not path.exists():
            _create_token(path)
        with suppress(FileNotFoundError):
            _tighten_token(path)
    except OSError as error:
        accepted = "accepted: a file of this user, RAY_AUTH_TOKEN, or RAY_AUTH_MODE=disabled where nobody else uses the machine"
        raise reject("Ray's token", str(path), f"cannot be kept private ({error}); {accepted}") from error


def _token_file() -> Path:
    return Path.home() / ".ray" / "auth_token"


def _create_token(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with suppress(FileExistsError):  # a process that started at the same time made one: both use that
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        os.write(file, secrets.token_hex(32).encode())  # as `ray get-auth-token --generate` does
        os.close(file)


def _tighten_token(path: Path) -> None:
    found = path.stat()
    if found.st_uid != os.geteuid():
        raise PermissionError(f"it belongs to user {found.st_uid}, this is user {os.geteuid()}")
    if mode := stat.S_IMODE(found.st_mode) & 0o077:
        path.chmod(stat.S_IMODE(found.st_mode) & ~mode)
        say = f"{path} could be read by other users (mode {stat.S_IMODE(found.st_mode):04o}) and is private now; "
        print(f"{say}for a new token, delete it before Ray starts again.", file=sys.stderr)


def make_ray_folder() -> tuple[Path, int]:
    """Make a private folder for Ray's temporary files.

    A folder of its own for each start needs no fixed name, which another user could take first. It is in `RAY_TMPDIR`, `TMPDIR` or
    `/tmp`: not in the home folder, which may be shared over NFS, where sockets do not work, and not in `XDG_RUNTIME_DIR`, which
    goes away when the user logs out.

    Returns:
        The folder for Ray, and an open file that locks it: the folder is in use for as long as any process keeps that open.

    Raises:
        ConfigError: there is no place for it.
    """
    base = _base()
    remove_unused_ray_folders()
    try:
        while True:
            folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=base))  # mode 0700
            lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
            fcntl.flock(lock, fcntl.LOCK_EX)
            if (folder / "lock").exists():  # else `sweep` in another process was faster
                return folder / "r", lock
            os.close(lock)
    except OSError as error:
        raise reject("RAY_TMPDIR", str(base), f"Ray's temporary folder cannot be made there ({error})") from error


def remove_unused_ray_folders() -> None:
    """Remove the folders that `ray_folder` made for this user and that no process uses any more."""
    for folder in _base().glob(f"{PREFIX}????????"):
        with suppress(OSError):  # of another user, or one that is being made or removed at this moment
            if folder.lstat().st_uid != os.geteuid():
                continue
            lock = os.open(folder / "lock", os.O_RDWR | os.O_NOFOLLOW)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(lock)


def _base() -> Path:
    """Return the folder for temporary files: where Ray would put its own, if sockets have room there."""
    if chosen := os.environ.get("RAY_TMPDIR"):
        if not _fits(Path(chosen)):
            most = MAX_SOCKET_PATH_BYTES - RAY_SUFFIX_BYTES
            raise reject("RAY_TMPDIR", chosen, f"accepted: a folder from the root of at most {most} bytes, for the sake of sockets")
        if _others_may_rename(Path(chosen)):
            raise reject("RAY_TMPDIR", chosen, "accepted: a folder of yours or of root, whose entries other users cannot rename")
        return Path(chosen)
    candidate = Path(os.environ.get("TMPDIR") or "/tmp")  # noqa: S108 - a folder with a name that nobody can predict, mode 0700
    return candidate if _fits(candidate) and not _others_may_rename(candidate) else Path("/tmp")  # noqa: S108


def _fits(folder: Path) -> bool:
    return folder.is_absolute() and len(os.fsencode(folder)) + RAY_SUFFIX_BYTES <= MAX_SOCKET_PATH_BYTES


def _others_may_rename(folder: Path) -> bool:
    """Return whether another user than root could put a folder in the place of one in here."""
    try:
        found = folder.stat()
    except OSError:  # whoever makes something in it says so
        return False
    open_to_others = found.st_mode & 0o022 and not found.st_mode & stat.S_ISVTX
    return bool(open_to_others) or found.st_uid not in (0, os.geteuid())


def local_cluster_address() -> str | None:
    """Return the address that `ray start` noted on this machine, if this user or root started it; None otherwise.

    Every user may write to Ray's folder, and a driver runs what the cluster sends it, so another user's note is not followed.
    """
    base = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"  # noqa: S108 - Ray's own folder
    path = Path(base, "ray", "ray_current_cluster")
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)) as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode) or found.st_uid not in (0, os.geteuid()) or found.st_mode & stat.S_IWOTH:
                print(f"Ray: {path} is another user's and is not followed; RAY_ADDRESS=HOST:PORT joins a cluster.", file=sys.stderr)
                return None
            return file.read(300).strip() or None
    except (OSError, UnicodeDecodeError):
        return None
