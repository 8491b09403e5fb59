"""MLflow behind a password, started as every cluster starts it."""

import json
import os
import pwd
import secrets
import shutil
import stat
import subprocess
import sys
import time
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from mlflow.exceptions import MlflowException

from ablations.engine.cli import commands as engine
from ablations.engine.cluster import mlflow_server
from ablations.engine.environment import paths
from ablations.engine.tracking import mlflow_internals
from ablations.engine.tracking.connection import connect
from resnet_core import ConfigError
from tests.helpers.local_service import free_port
from tests.helpers.object_store import object_store

POSTGRESQL = next((folder for folder in sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)), Path("/usr/bin"))


class Server:
    """A running server, and the home folder of whoever runs it."""

    def __init__(self, home: Path, port: int, log: Path) -> None:
        self.home, self.uri, self.log = home, f"http://127.0.0.1:{port}", log
        self.state = home / "state" / "mlflow"

    def status(self, path: str, password: str | None = None, data: bytes | None = None, **headers: str) -> int:
        """HTTP status of a request, of a POST where there are data."""
        if password is not None:
            headers["Authorization"] = f"Basic {b64encode(f'admin:{password}'.encode()).decode()}"
        try:
            with urllib.request.urlopen(urllib.request.Request(self.uri + path, data, headers), timeout=20) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code

    def password(self) -> str:
        return (self.state / "password").read_text()


@contextmanager
def serve(home: Path, **environment: str) -> Iterator[Server]:
    port = free_port()
    home.mkdir(exist_ok=True)
    settings = {"HOME": str(home), "RESNET_ABLATIONS_HOME": str(home / "state"), **environment}
    command = [sys.executable, "-m", "ablations.engine", "mlflow", "--port", str(port)]
    server = Server(home, port, home / "log")
    with server.log.open("w") as log, subprocess.Popen(command, env=os.environ | settings, stdout=log, stderr=log) as process:
        try:
            deadline = time.monotonic() + 300  # bounds a failure only
            while not answers(server):
                assert process.poll() is None, server.log.read_text()
                assert time.monotonic() < deadline, server.log.read_text()
                time.sleep(0.2)
            yield server
        finally:
            process.terminate()


def answers(server: Server) -> bool:
    try:
        return server.status("/health") == 200
    except OSError:
        return False


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, empty: Path) -> Iterator[Server]:
    """One that finds the database of a time without passwords, with an experiment in it."""
    home = tmp_path_factory.mktemp("owner")
    (home / "state").mkdir()
    shutil.copy(empty, home / "state" / "mlflow.db")
    connect(f"sqlite:///{home}/state/mlflow.db").create_experiment("older")
    with serve(home) as server:
        yield server


@pytest.fixture
def at_home(server: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    """The server, seen by a process of its owner."""
    monkeypatch.setenv("HOME", str(server.home))
    monkeypatch.setenv("RESNET_ABLATIONS_HOME", str(server.home / "state"))
    return server


# Slow: it starts for each process of a parallel session anew.
@pytest.mark.slow
@pytest.mark.parametrize(
    "path",
    [
        *("/", "/graphql", "/signup", "/api/2.0/mlflow/experiments/get?experiment_id=0"),
        *(
            "/ajax-api/2.0/mlflow/experiments/get?experiment_id=0",
            "/api/2.0/mlflow-artifacts/artifacts?path=",
            "/api/2.0/mlflow/users/list",
        ),
    ],
)
def test_nothing_is_shown_without_the_password(server: Server, path: str) -> None:
    assert server.status(path) == 401
    assert server.status(path, "wrong") == 401


@pytest.mark.slow
def test_a_study_writes_with_the_credentials_that_the_server_left(at_home: Server, tmp_path: Path) -> None:
    client = connect(at_home.uri)
    run = client.create_run(client.create_experiment(f"study {tmp_path.name}")).info.run_id
    client.log_metric(run, "test/error", 7.5)
    client.log_text(run, "a table", "report/table.md")
    assert client.get_run(run).data.metrics == {"test/error": 7.5}
    assert list((at_home.home / "state" / "artifacts").rglob("table.md"))


@pytest.mark.slow
def test_runs_from_before_there_was_a_password_are_kept(at_home: Server) -> None:
    assert connect(at_home.uri).get_experiment_by_name("older")


@pytest.mark.slow
def test_other_users_look_and_do_not_touch(at_home: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    older = connect(at_home.uri).get_experiment_by_name("older")
    assert older
    guest_password = secrets.token_urlsafe()
    add = json.dumps({"username": "guest", "password": guest_password}).encode()
    assert at_home.status("/api/2.0/mlflow/users/create", at_home.password(), add, **{"Content-Type": "application/json"}) == 200
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "guest")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", guest_password)
    guest = connect(at_home.uri)
    assert guest.get_experiment(older.experiment_id).name == "older"
    with pytest.raises(MlflowException, match="Permission denied"):
        guest.create_run(older.experiment_id)


@pytest.mark.slow
def test_a_page_under_a_foreign_name_is_refused(server: Server) -> None:
    path = "/api/2.0/mlflow/experiments/get?experiment_id=0"
    assert server.status(path, server.password()) == 200
    assert server.status(path, server.password(), Host="evil.example") == 403


@pytest.mark.slow
def test_secrets_are_in_files_of_their_owner_and_nowhere_else(server: Server) -> None:
    assert stat.S_IMODE(server.state.stat().st_mode) == 0o700
    files = [*server.state.iterdir(), server.home / ".mlflow" / "credentials"]
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}
    planted = [server.password(), (server.state / "secret_key").read_text()]
    command_lines = b"".join(file.read_bytes() for file in Path("/proc").glob("[0-9]*/cmdline") if file.exists())
    for secret in planted:
        assert len(secret) >= 40
        assert secret.encode() not in command_lines
        assert secret not in server.log.read_text()
    assert str(server.home).encode() in command_lines  # it was looked at


@pytest.mark.slow
def test_the_server_replaces_the_command_that_starts_it(server: Server) -> None:
    commands = [file.read_bytes() for file in Path("/proc").glob("[0-9]*/cmdline") if file.exists()]
    assert not [
        command for command in commands if b"ablations.engine\0mlflow\0--port\0" + server.uri.rpartition(":")[2].encode() in command
    ]


@pytest.mark.slow
def test_a_second_start_keeps_the_password_and_a_deleted_one_is_replaced(at_home: Server) -> None:
    path = "/api/2.0/mlflow/experiments/get?experiment_id=0"
    before = at_home.password()
    first = mlflow_server._environment()
    assert first[mlflow_server.PASSWORD_VARIABLE] == before
    assert mlflow_server._environment() == first
    (at_home.state / "password").unlink()
    subprocess.run(
        [sys.executable, "-c", "from ablations.engine.cluster import mlflow_server; mlflow_server._environment()"], check=True
    )
    assert at_home.password() != before
    assert at_home.status(path, at_home.password()) == 200
    assert at_home.password() in (at_home.home / ".mlflow" / "credentials").read_text()


def test_credentials_of_somebody_elses_are_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    credentials = tmp_path / ".mlflow" / "credentials"
    credentials.parent.mkdir()
    credentials.write_text("[mlflow]\nmlflow_tracking_username = me\n")
    mlflow_server._write_client_credentials("another")
    assert credentials.read_text() == "[mlflow]\nmlflow_tracking_username = me\n"


def test_a_password_with_a_percent_sign_reaches_the_clients(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow.utils.credentials import read_mlflow_creds

    monkeypatch.setenv("HOME", str(tmp_path))
    mlflow_server._write_client_credentials("100%sure")
    assert read_mlflow_creds() == ("admin", "100%sure")


@pytest.mark.parametrize(
    ("arguments", "environment", "complaint"),
    [
        (["--port", "0"], {}, "--port=0: accepted: 1 to 65535"),
        (["--allowed-hosts", "name", "*:80"], {}, "--allowed-hosts=name *:80: "),
        ([], {"RESNET_ABLATIONS_DATABASE": "postgresql://me:secret@host/mlflow"}, "contains a password or key"),
        ([], {"RESNET_ABLATIONS_DATABASE": "postgresql://host/mlflow?password=secret"}, "contains a password or key"),
        ([], {"RESNET_ABLATIONS_DATABASE": "postgresql:///mlflow?host=/nowhere"}, "does not answer"),
        (
            [],
            {"RESNET_ABLATIONS_DATABASE": "mysql://me:secret@host/mlflow"},
            "RESNET_ABLATIONS_DATABASE=mysql: accepted: sqlite:////",
        ),
        ([], {"RESNET_ABLATIONS_STORAGE": "s3://bucket?endpoint_override=store:9000"}, "AWS_ENDPOINT_URL"),
        ([], {"RESNET_ABLATIONS_DATABASE": "sqlite:///relative.db"}, "accepted: sqlite:////absolute/path"),
        ([], {"RESNET_ABLATIONS_STORAGE": "s3://key:secret@bucket/folder"}, "contains a password or key"),
    ],
)
def test_a_wrong_request_is_one_line_that_repeats_no_password(
    arguments: list[str],
    environment: dict[str, str],
    complaint: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, value in {"HOME": str(tmp_path), "RESNET_ABLATIONS_HOME": str(tmp_path / "state"), **environment}.items():
        monkeypatch.setenv(name, value)
    assert engine.main(["mlflow", *arguments]) == 2
    complained = capsys.readouterr().err
    assert complaint in complained
    assert complained.count("\n") == 1
    assert "secret" not in complained
    assert not (tmp_path / "state").exists()


def test_what_is_shared_is_below_one_address(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RESNET_ABLATIONS_STORAGE", "s3://bucket/folder/")
    assert paths.default_storage() == "s3://bucket/folder/checkpoints"
    assert "s3://bucket/folder/artifacts" in mlflow_server._command("127.0.0.1", 5000, [])
    monkeypatch.setenv("RESNET_ABLATIONS_STORAGE", "s3://bucket/folder?region=here")
    assert paths.default_storage() == "s3://bucket/folder/checkpoints?region=here"
    monkeypatch.setenv("RESNET_ABLATIONS_STORAGE", str(tmp_path))
    assert (tmp_path / "artifacts").as_uri() in mlflow_server._command("127.0.0.1", 5000, [])
    monkeypatch.setenv("RESNET_ABLATIONS_STORAGE", "")
    assert paths.default_storage() == str(paths.home() / "checkpoints")


def test_names_are_allowed_beside_those_of_this_machine() -> None:
    assert "localhost,localhost:*,127.0.0.1,127.0.0.1:*,tracking:5000" in mlflow_server._command("0.0.0.0", 5000, ["tracking:5000"])


@pytest.fixture
def postgresql(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of an empty database, whose server listens on a socket in a folder and nowhere else."""
    if not (POSTGRESQL / "initdb").exists():
        pytest.skip("PostgreSQL is not installed")
    # It does not run as root; a socket's path is short.
    owner = {"user": "nobody", "group": "nogroup", "extra_groups": []} if os.getuid() == 0 else {}
    user = "nobody" if owner else pwd.getpwuid(os.getuid()).pw_name
    folder = Path(subprocess.run(["mktemp", "-d"], capture_output=True, text=True, check=True).stdout.strip())
    if owner:
        shutil.chown(folder, "nobody", "nogroup")
    environment = {"PATH": os.environ["PATH"], "LC_ALL": "C"}

    def run(program: str, *arguments: str) -> None:
        command = [str(POSTGRESQL / program), *arguments]
        subprocess.run(command, check=True, cwd=folder, env=environment, stdout=subprocess.DEVNULL, **owner)  # type: ignore[call-overload]

    try:
        run("initdb", "--auth=trust", "--encoding=UTF8", "--no-sync", "-D", f"{folder}/data")
        run(
            "pg_ctl",
            "-D",
            f"{folder}/data",
            "-l",
            f"{folder}/log",
            "-o",
            f"-c listen_addresses='' -k {folder} -c fsync=off",
            "-w",
            "start",
        )
        try:
            run("createdb", "-h", str(folder), "mlflow")
            yield f"postgresql:///mlflow?host={folder}&user={user}"
        finally:
            run("pg_ctl", "-D", f"{folder}/data", "-m", "immediate", "stop")
    finally:
        shutil.rmtree(folder)


@pytest.mark.slow
@pytest.mark.cluster
def test_runs_and_users_go_to_postgresql_and_files_through_the_server_to_the_bucket(
    postgresql: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with object_store() as bucket:
        store = {"RESNET_ABLATIONS_STORAGE": "s3://bucket/folder", "AWS_ENDPOINT_URL": f"http://127.0.0.1:{bucket.port}"}
        with serve(tmp_path, RESNET_ABLATIONS_DATABASE=postgresql, AWS_DEFAULT_REGION="us-east-1", **store) as server:
            monkeypatch.setenv("HOME", str(server.home))
            client = connect(server.uri)
            run = client.create_run("0").info.run_id
            client.log_text(run, "a table", "report/table.md")
            assert Path(client.download_artifacts(run, "report/table.md")).read_text() == "a table"
            with urllib.request.urlopen(f"http://127.0.0.1:{bucket.port}/bucket") as listing:
                assert f"folder/artifacts/0/{run}/artifacts/report/table.md".encode() in listing.read()
    assert not (tmp_path / "state" / "mlflow.db").exists()
    assert not (tmp_path / "state" / "mlflow" / "users.db").exists()
    monkeypatch.setenv("RESNET_ABLATIONS_DATABASE", postgresql)
    assert mlflow_internals.has_users(postgresql)


def test_a_database_that_has_no_driver_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RESNET_ABLATIONS_DATABASE", "postgresql:///mlflow")
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(ConfigError, match=r"pip install -c constraints.txt 'psycopg\[binary\]'"):
        mlflow_server._database()
