"""MLflow's server behind a password, the same for every kind of cluster.

Its secrets are drawn once and kept in `<home>/mlflow`, which only its owner can read: no command line and no log has them.
`~/.mlflow/credentials`, where MLflow's own clients look, gets the password too.
"""

import argparse
import importlib.util
import os
import secrets
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from ablations.engine.environment import paths, validation
from ablations.engine.tracking import mlflow_internals
from resnet_core.fields import reject

HELP = "run MLflow's server, behind a password, as clusters do"
DATABASE, STORAGE = "RESNET_ABLATIONS_DATABASE", "RESNET_ABLATIONS_STORAGE"
ADMIN = "admin"
"""Who owns the password. Jobs write under this name; others may look, unless they are made administrators too."""
PASSWORD = "MLFLOW_AUTH_ADMIN_PASSWORD"  # noqa: S105 - the name of a variable
MARK = "# Written by python -m ablations.engine mlflow.\n"
MAX_PORT = 65_535


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Those of the command line; everything else comes from the environment, which the jobs of a cluster share."""
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=5000, help="default: %(default)s")
    parser.add_argument(
        "--allowed-hosts",
        nargs="+",
        default=[],
        metavar="NAME:PORT",
        help="names under which clients may ask for it, beside localhost (default: addresses of private networks)",
    )
    parser.epilog = (
        "Environment: RESNET_ABLATIONS_HOME, for its state; RESNET_ABLATIONS_DATABASE, sqlite:////absolute/path or "
        "postgresql:///name (default: mlflow.db there); RESNET_ABLATIONS_STORAGE, whose folder `artifacts` it keeps files in "
        f"(default: there); {PASSWORD}, if the password shall not be drawn."
    )


def run(given: argparse.Namespace) -> int:
    """Becomes the server, so that whoever supervises this process supervises that. Raises ConfigError before it starts."""
    command = _command(given.host, given.port, given.allowed_hosts)
    paths.protect_home()
    os.umask(0o077)  # its databases are nobody else's
    os.environ.update(_environment())
    print(f"MLflow: http://{given.host}:{given.port}, user {ADMIN}, password in {paths.home() / 'mlflow' / 'password'}", flush=True)
    os.execv(command[0], command)  # noqa: S606 - there is no shell


def _command(host: str, port: int, allowed_hosts: Sequence[str]) -> list[str]:
    """Arguments of the server. They hold no secret, since everyone on the machine can read them."""
    if not 0 < port <= MAX_PORT:
        raise reject("--port", port, f"accepted: 1 to {MAX_PORT}")
    if any(name.partition(":")[0] == "*" for name in allowed_hosts):
        raise reject(
            "--allowed-hosts",
            " ".join(allowed_hosts),
            "any page in a browser could then ask in its user's name; list the names in use",
        )
    artifacts = paths.shared_folder("artifacts")
    validation.check_address(STORAGE, artifacts)
    if "://" not in artifacts:
        artifacts = Path(artifacts).as_uri()
    elif "?" in artifacts:
        raise reject(STORAGE, artifacts, "accepted: no options after a ?; an endpoint is AWS_ENDPOINT_URL")
    database = _database()
    # SQLite takes one writer. With PostgreSQL, a second process answers while the first writes.
    workers = "1" if database.startswith("sqlite") else "2"
    names = ["localhost", "localhost:*", "127.0.0.1", "127.0.0.1:*", *allowed_hosts] if allowed_hosts else []
    return [
        *(sys.executable, "-m", "mlflow", "server", "--app-name", "basic-auth"),
        *("--host", host, "--port", str(port), "--workers", workers),
        *("--backend-store-uri", database, "--artifacts-destination", artifacts),
        *(("--allowed-hosts", ",".join(names)) if names else ()),
    ]


def _environment() -> dict[str, str]:
    """Environment variables of the server, with its secrets, which are made where there are none."""
    folder = paths.home() / "mlflow"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    database = _database()
    # The users are beside the runs where the database is a server's, which may be kept on another machine.
    users = paths.sqlite_uri(folder / "users.db") if database.startswith("sqlite") else database
    settings = {
        "database_uri": users,
        "admin_username": ADMIN,
        "default_permission": "READ",
        # Else every request checks the password anew, which takes longer than the rest of it.
        "auth_cache_ttl_seconds": "60",
    }
    file = folder / "server.ini"
    _write_privately(file, _section(settings))
    password = _password(folder / "password", users, file)
    _give_to_clients(password)
    return {
        "MLFLOW_AUTH_CONFIG_PATH": str(file),
        PASSWORD: password,
        "MLFLOW_FLASK_SERVER_SECRET_KEY": _kept(folder / "secret_key") or _drawn(folder / "secret_key"),
        # Jobs of MLflow's own, which nothing here uses, are eight more processes and 1.7 GB.
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }


def _database() -> str:
    """Address of the database, which has no password in it. Raises ConfigError if it has, or if a server does not answer."""
    uri = os.environ.get(DATABASE) or paths.sqlite_uri(paths.home() / "mlflow.db")
    if uri.startswith("sqlite:////"):
        return uri
    if not uri.startswith("postgresql://"):
        scheme = uri.partition(":")[0]  # no more is shown: what follows may have a password
        raise reject(DATABASE, scheme, "accepted: sqlite:////absolute/path, postgresql:///name, postgresql://user@host/name")
    validation.check_address(DATABASE, uri)
    if importlib.util.find_spec("psycopg") is None:
        raise reject(DATABASE, uri, "needs psycopg: pip install -c constraints.txt 'psycopg[binary]'")
    try:
        _has_users(uri)
    except OSError as error:
        raise reject(DATABASE, uri, f"does not answer ({error})") from error
    return uri


def _has_users(uri: str) -> bool:
    """Whether a server with passwords has used this database. Raises OSError if nothing answers."""
    import sqlalchemy  # a second, which the other commands need not wait

    engine = sqlalchemy.create_engine(uri)
    try:
        return sqlalchemy.inspect(engine).has_table("users")
    except sqlalchemy.exc.OperationalError as error:
        raise OSError(" ".join(str(error.orig).split())) from error
    finally:
        engine.dispose()


def _password(file: Path, users: str, configuration: Path) -> str:
    """The administrator's: the environment's, the one that is kept, or a new one where its file was deleted."""
    before = _kept(file)
    password = os.environ.get(PASSWORD) or before
    if password is not None and password == before:
        return password
    # MLflow itself only sets the first password of an administrator.
    password = password or secrets.token_urlsafe(32)
    if _has_users(users):
        os.environ["MLFLOW_AUTH_CONFIG_PATH"] = str(configuration)  # MLflow reads it when it is imported
        if not mlflow_internals.set_user_password(users, ADMIN, password):
            if before is None:
                raise reject(PASSWORD, "…", f"the password of {ADMIN} cannot be changed; restore {file}, which was deleted")
            return before
    _write_privately(file, password)
    return password


def _give_to_clients(password: str) -> None:
    credentials = Path("~/.mlflow/credentials").expanduser()
    if credentials.exists() and not credentials.read_text(encoding="utf-8", errors="replace").startswith(MARK):
        print(f"{credentials} is kept as it is; for this server, clients need MLFLOW_TRACKING_USERNAME={ADMIN} and its password")
        return
    credentials.parent.mkdir(exist_ok=True, mode=0o700)
    _write_privately(credentials, MARK + _section({"mlflow_tracking_username": ADMIN, "mlflow_tracking_password": password}))


def _section(settings: Mapping[str, str]) -> str:
    """As MLflow reads it, for which a % has a meaning."""
    return "[mlflow]\n" + "".join(f"{name} = {value.replace('%', '%%')}\n" for name, value in settings.items())


def _kept(file: Path) -> str | None:
    return file.read_text() if file.exists() else None


def _drawn(file: Path) -> str:
    secret = secrets.token_urlsafe(32)
    _write_privately(file, secret)
    return secret


def _write_privately(file: Path, text: str) -> None:
    """Replaces a file by one that only its owner can read."""
    part = file.with_name(f".{file.name}.part")
    part.unlink(missing_ok=True)
    with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as opened:
        opened.write(text)
    part.replace(file)
