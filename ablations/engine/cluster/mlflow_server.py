"""MLflow's server with a password, the same on every kind of cluster.

The server's secrets are generated once and stored in `<home>/mlflow`, which only its owner can read. No command line and no log
contains them. The password is also written to `~/.mlflow/credentials`, from where MLflow's clients read it.
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

HELP = "run an MLflow server that asks for a password, for a cluster"
DATABASE_VARIABLE, STORAGE_VARIABLE = "RESNET_ABLATIONS_DATABASE", "RESNET_ABLATIONS_STORAGE"
ADMIN_USER = "admin"
"""User whose password jobs use to write. Other users can only read, unless they are made administrators."""
PASSWORD_VARIABLE = "MLFLOW_AUTH_ADMIN_PASSWORD"  # noqa: S105 - the name of a variable
CREDENTIALS_HEADERS = ("# Written by ablations mlflow.\n", "# Written by python -m ablations.engine mlflow.\n")
"""First line of a credentials file that this command wrote and may replace, now and in earlier releases."""
MAX_PORT = 65_535
"""Highest TCP port."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command. All other settings come from environment variables, which the jobs of a cluster share."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = (
        "Run an MLflow server that asks for a password. The first start generates the\n"
        "password, stores it in RESNET_ABLATIONS_HOME/mlflow/password, and gives it to\n"
        "this user's MLflow clients."
    )
    parser.add_argument("--host", default="127.0.0.1", metavar="ADDRESS", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=5000, metavar="PORT", help="port to listen on (default: %(default)s)")
    parser.add_argument(
        "--allowed-hosts",
        nargs="+",
        default=[],
        metavar="NAME:PORT",
        help="names by which clients address the server, in addition to localhost (default: addresses of private networks)",
    )
    parser.epilog = f"""environment variables:
  RESNET_ABLATIONS_HOME       folder of the server's state
  {DATABASE_VARIABLE}   sqlite:////absolute/path or postgresql:///name
                              (default: mlflow.db in RESNET_ABLATIONS_HOME)
  {STORAGE_VARIABLE}    the server stores files in its folder `artifacts`
                              (default: RESNET_ABLATIONS_HOME)
  {PASSWORD_VARIABLE}  password to use instead of a generated one"""


def run(given: argparse.Namespace) -> int:
    """Replace this process by the server, so that a supervisor of this process supervises the server.

    Raises:
        ConfigError: an option or environment variable is wrong; nothing has started.
    """
    command = _command(given.host, given.port, given.allowed_hosts)
    paths.protect_home()
    os.umask(0o077)  # no other user can read the databases
    os.environ.update(_environment())
    password = paths.home() / "mlflow" / "password"
    print(
        f"MLflow: {mlflow_internals.web_address(f'http://{given.host}:{given.port}')}, user {ADMIN_USER}, password in {password}",
        flush=True,
    )
    os.execv(command[0], command)  # noqa: S606 - there is no shell


def _command(host: str, port: int, allowed_hosts: Sequence[str]) -> list[str]:
    """Return the server's command line. It contains no secret, because every user of the machine can read it."""
    if not 0 < port <= MAX_PORT:
        raise reject("--port", port, f"accepted: 1 to {MAX_PORT}")
    if any(name.partition(":")[0] == "*" for name in allowed_hosts):
        raise reject(
            "--allowed-hosts",
            " ".join(allowed_hosts),
            "with * any web page could send requests in its visitor's name; accepted: the names that clients use",
        )
    artifacts = paths.shared_folder("artifacts")
    validation.check_address(STORAGE_VARIABLE, artifacts)
    if "://" not in artifacts:
        artifacts = Path(artifacts).as_uri()
    elif "?" in artifacts:
        raise reject(
            STORAGE_VARIABLE, artifacts, "accepted: an address without options after a ?; set an endpoint in AWS_ENDPOINT_URL"
        )
    database = _database()
    # SQLite accepts one writer. With PostgreSQL, a second process can answer while the first writes.
    workers = "1" if database.startswith("sqlite") else "2"
    names = ["localhost", "localhost:*", "127.0.0.1", "127.0.0.1:*", *allowed_hosts] if allowed_hosts else []
    return [
        *(sys.executable, "-P", "-m", "mlflow", "server", "--app-name", "basic-auth"),
        *("--host", host, "--port", str(port), "--workers", workers),
        *("--backend-store-uri", database, "--artifacts-destination", artifacts),
        *(("--allowed-hosts", ",".join(names)) if names else ()),
    ]


def _environment() -> dict[str, str]:
    """Return the server's environment variables with its secrets. Generate the secrets that do not exist yet."""
    folder = paths.home() / "mlflow"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    database = _database()
    # With PostgreSQL, store the users beside the runs: the database may be on another machine.
    users = paths.sqlite_uri(folder / "users.db") if database.startswith("sqlite") else database
    settings = {
        "database_uri": users,
        "admin_username": ADMIN_USER,
        "default_permission": "READ",
        # Without a cache, every request hashes the password, which takes longer than the rest of the request.
        "auth_cache_ttl_seconds": "60",
    }
    file = folder / "server.ini"
    _write_private_file(file, _ini_section(settings))
    password = _admin_password(folder / "password", users, file)
    _write_client_credentials(password)
    return {
        "MLFLOW_AUTH_CONFIG_PATH": str(file),
        PASSWORD_VARIABLE: password,
        "MLFLOW_FLASK_SERVER_SECRET_KEY": _read_secret(folder / "secret_key") or _create_secret(folder / "secret_key"),
        # MLflow's own job execution, which nothing here uses, would start eight more processes that take 1.7 GB.
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }


def _database() -> str:
    """Return the database's address. Raise ConfigError if it contains a password, or if the database server does not answer."""
    uri = os.environ.get(DATABASE_VARIABLE) or paths.sqlite_uri(paths.home() / "mlflow.db")
    if uri.startswith("sqlite:////"):
        return uri
    if not uri.startswith("postgresql://"):
        scheme = uri.partition(":")[0]  # show no more: the rest may contain a password
        raise reject(
            DATABASE_VARIABLE, scheme, "accepted: sqlite:////absolute/path, postgresql:///name, postgresql://user@host/name"
        )
    validation.check_address(DATABASE_VARIABLE, uri)
    if importlib.util.find_spec("psycopg") is None:
        raise reject(DATABASE_VARIABLE, uri, "needs the psycopg package: pip install -c constraints.txt 'psycopg[binary]'")
    try:
        _check_answers(uri)
    except OSError as error:
        raise reject(DATABASE_VARIABLE, uri, f"does not answer ({error})") from error
    return uri


def _check_answers(uri: str) -> None:
    """Raise OSError if the database does not answer."""
    import sqlalchemy  # takes a second, which the other commands should not wait

    engine = sqlalchemy.create_engine(uri)
    try:
        engine.connect().close()
    except sqlalchemy.exc.OperationalError as error:
        raise OSError(" ".join(str(error.orig).split())) from error
    finally:
        engine.dispose()


def _admin_password(file: Path, users: str, configuration: Path) -> str:
    """Return the administrator's password: from the environment, from its file, or a new one if there is no file."""
    before = _read_secret(file)
    password = os.environ.get(PASSWORD_VARIABLE) or before
    if password is not None and password == before:
        return password
    # MLflow itself sets an administrator's password only when it creates the user.
    password = password or secrets.token_urlsafe(32)
    os.environ["MLFLOW_AUTH_CONFIG_PATH"] = str(configuration)  # MLflow reads it when it is imported
    if mlflow_internals.has_users(users) and not mlflow_internals.set_user_password(users, ADMIN_USER, password):
        if before is None:
            reason = f"the password of {ADMIN_USER} cannot be changed; restore {file}, which was deleted"
            raise reject(PASSWORD_VARIABLE, "…", reason)
        return before
    _write_private_file(file, password)
    return password


def _write_client_credentials(password: str) -> None:
    credentials = Path("~/.mlflow/credentials").expanduser()
    if credentials.exists() and not credentials.read_text(encoding="utf-8", errors="replace").startswith(CREDENTIALS_HEADERS):
        print(
            f"{credentials} was written by somebody else and stays as it is. For this server, clients need "
            f"MLFLOW_TRACKING_USERNAME={ADMIN_USER} and MLFLOW_TRACKING_PASSWORD."
        )
        return
    credentials.parent.mkdir(exist_ok=True, mode=0o700)
    _write_private_file(
        credentials,
        CREDENTIALS_HEADERS[0] + _ini_section({"mlflow_tracking_username": ADMIN_USER, "mlflow_tracking_password": password}),
    )


def _ini_section(settings: Mapping[str, str]) -> str:
    """Return settings in MLflow's INI format, in which % must be doubled."""
    return "[mlflow]\n" + "".join(f"{name} = {value.replace('%', '%%')}\n" for name, value in settings.items())


def _read_secret(file: Path) -> str | None:
    return file.read_text() if file.exists() else None


def _create_secret(file: Path) -> str:
    secret = secrets.token_urlsafe(32)
    _write_private_file(file, secret)
    return secret


def _write_private_file(file: Path, text: str) -> None:
    """Write a file that only its owner can read, replacing an earlier one."""
    part = file.with_name(f".{file.name}.part")
    part.unlink(missing_ok=True)
    with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as opened:
        opened.write(text)
    part.replace(file)
