"""A service that asks who you are answers nobody else, and no secret that it was given shows up anywhere."""

import http.client
import re
import shutil
import stat
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from mlflow import MlflowClient
from ray._private.runtime_env.packaging import get_uri_for_directory

from ablations.engine.cli import options, study
from ablations.engine.environment import validation
from ablations.engine.environment.provenance import PRIVATE_KEY, redact_secrets
from ablations.engine.trial.checkpoints import CheckpointFolder
from ablations.shortcuts import STUDY
from resnet_core import ConfigError
from resnet_core.identity import code_version
from tests.helpers.local_service import Service, answer, listening
from tests.helpers.project import PROJECT

PLANTED = "hunter2"
"""Is part of every secret that these tests give away."""
KEY = f"-----BEGIN PRIVATE KEY-----\nMIIE{PLANTED}\n{PLANTED}+x/y==\n-----END PRIVATE KEY-----"
MARKER = "0.0123456"
"""No secret: it must be found where secrets are looked for."""
COMMAND = ["ablations/degradation.py", "--preset", "smoke", "--levels", "shortcut=none", "depth=8,14", "--seeds", "1"]
COMMAND += ["--set", "optim.epochs=5000", f"optim.lr={MARKER}"]
ADDRESSES = [
    ("--tracking-uri", f"http://me:{PLANTED}@tracking:5000", "MLFLOW_TRACKING_PASSWORD"),
    ("--tracking-uri", f"https://{PLANTED}@tracking", "~/.mlflow/credentials"),
    ("--tracking-uri", f"postgresql+psycopg2://me:{PLANTED}@db/mlflow", "~/.pgpass"),
    ("--storage", f"s3://AKIA:{PLANTED}@bucket/folder", "AWS_SECRET_ACCESS_KEY"),
    ("--storage", f"s3://AKIA:not/escaped+{PLANTED}@bucket/folder", "AWS_SECRET_ACCESS_KEY"),
    ("--storage", f"s3://bucket/folder?access_key=AKIA&secret_key={PLANTED}", "AWS_SECRET_ACCESS_KEY"),
    ("--storage", f"abfs://files@account/folder?sig={PLANTED}", "accepted: "),
]
HARMLESS = [
    "http://127.0.0.1:5000",
    "http://tracking:5000/team@home",
    "sqlite:////srv/a@b/mlflow.db",
    "postgresql://me@db/mlflow?sslkey=/etc/key.pem",
    "s3://bucket/folder?endpoint_override=localhost:9000&scheme=http",
    "abfs://files@account.dfs.core.windows.net/folder",
    "/data/a:b@c",
]


@pytest.mark.parametrize(("option", "address", "instead"), ADDRESSES)
def test_an_address_with_a_password_is_refused_without_repeating_it(option: str, address: str, instead: str) -> None:
    """It would be in Ray's record of the job, in its log, and in the list of processes."""
    with pytest.raises(ConfigError, match=f"^{option}=[a-z0-9+]+://…: contains a password or key") as error:
        options.parse_options(STUDY, [option, address])
    assert instead in str(error.value)
    assert PLANTED not in str(error.value)


@pytest.mark.parametrize("address", HARMLESS)
def test_an_address_without_a_password_is_accepted(address: str) -> None:
    validation.check_address("--storage", address)


def test_a_wrong_request_is_complained_about_without_what_looks_like_a_secret(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments in (["--set", f"api_key={PLANTED}"], [f"--password={PLANTED}"], ["--levels", f"aws_secret_access_key={PLANTED}"]):
        monkeypatch.setattr(sys, "argv", ["x.py", *arguments])
        with pytest.raises(SystemExit) as ended:
            study.main(STUDY)
        out, error = capsys.readouterr()
        assert ended.value.code == 2
        assert error.startswith("error: ")
        assert PLANTED not in out + error


@pytest.mark.parametrize(
    "line",
    [
        f"export AWS_SECRET_ACCESS_KEY={PLANTED}",
        f"+    passphrase: {PLANTED}",
        f'"private_key": "{PLANTED}",',
        f"Authorization: Bearer {PLANTED}",
        f"at http://me:{PLANTED}@host/x",
        f"credentials = ('me', '{PLANTED}')",
    ],
)
def test_what_is_named_like_a_secret_is_left_out_of_what_is_kept(line: str) -> None:
    assert PLANTED not in redact_secrets(line)
    assert redact_secrets("optim.lr=0.05 width=16") == "optim.lr=0.05 width=16"
    assert PLANTED not in PRIVATE_KEY.sub("…", KEY)


class Submitted:
    """A study, sent to a service that asks for a token and a password, from a changed checkout with secrets in it, and stopped."""

    def __init__(self, service: Service, project: Path) -> None:
        self.service, self.project = service, project
        self.client = MlflowClient(service.mlflow)
        self.commands: set[str] = set()
        """Command lines of the service's processes, while the job ran."""
        watching = threading.Event()
        watcher = threading.Thread(target=self._watch, args=(watching,))
        watcher.start()
        try:
            self.output = self._submit() + self._report()
        finally:
            watching.set()
            watcher.join()

    def _submit(self) -> str:
        """With its `.git`, which Ray would leave out: so that the job knows what has changed."""
        chosen = ["--working-dir", ".", "--no-wait", "--submission-id", "long"]
        nothing_else = {"RAY_OVERRIDE_RUNTIME_ENV_DEFAULT_EXCLUDES": "__pycache__"}
        sent = self.service.job("submit", *chosen, "--", "python", *COMMAND, folder=self.project, **nothing_else)
        assert sent.returncode == 0, sent.stderr
        deadline = time.monotonic() + 90
        while not self.trained():
            assert time.monotonic() < deadline, self.log()
            time.sleep(0.2)
        stopped = self.service.job("stop", "long")
        assert "was stopped" in stopped.stdout + stopped.stderr
        return sent.stdout + sent.stderr + stopped.stdout + stopped.stderr + self.log()

    def _report(self) -> str:
        done = self.service.run(sys.executable, *COMMAND, "--report", folder=self.project)
        assert "Report: http" in done.stdout, done.stderr
        return done.stdout + done.stderr

    def runs(self) -> list[Any]:
        experiment = self.client.get_experiment_by_name("degradation")
        return list(self.client.search_runs([experiment.experiment_id])) if experiment else []

    def trained(self) -> list[Any]:
        """Those with an epoch."""
        return [run for run in self.runs() if "test/error" in run.data.metrics]

    def log(self) -> str:
        return (self.service.session() / "logs" / "job-driver-long.log").read_text()

    def _watch(self, until: threading.Event) -> None:
        while not until.wait(0.3):
            for process in self.service.processes():
                try:
                    self.commands.add(" ".join(process.cmdline()))
                except psutil.Error:  # it is gone
                    continue


def changed_checkout(folder: Path) -> Path:
    """This project as somebody has changed it, with secrets in what has changed, and something that its workers say."""
    for name in ("ablations", "resnet_core"):
        shutil.copytree(PROJECT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / ".rayignore").write_text((PROJECT / ".rayignore").read_text() + "!/.git\n")
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b"]
    for words in (["init"], ["add", "."], ["commit", "-m", "x"]):
        subprocess.run([*git, *words], cwd=folder, check=True, capture_output=True)
    with (folder / "resnet_core" / "fields.py").open("a") as file:
        file.write(f'PASSWORD = "{PLANTED}"\nWHERE = "http://me:{PLANTED}@host"\nKEY = """{KEY}"""\n')
    worker = folder / "ablations" / "engine" / "trial" / "worker.py"
    text = worker.read_text()
    assert "_device_model(device)" in text
    worker.write_text(text.replace("_device_model(device)", "'of the upload'"))
    return folder


@pytest.fixture(scope="module")
def submitted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Submitted]:
    home = tmp_path_factory.mktemp("protected")
    person = home / "person"
    person.mkdir()
    secrets = {"AWS_SECRET_ACCESS_KEY": PLANTED, "PGPASSWORD": PLANTED}
    service = Service(home / "state", {"HOME": str(person), "RAY_AUTH_MODE": "token", **secrets})
    service.home.mkdir()
    done = service("up")
    assert done.returncode == 0, done.stderr
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(person))
        yield Submitted(service, changed_checkout(home / "project"))
    service("down")


@pytest.mark.slow
@pytest.mark.cluster
def test_a_study_that_is_stopped_ends_killed_within_rays_patience_and_can_go_on(submitted: Submitted) -> None:
    supervisor = (submitted.service.session() / "logs" / "jobs" / "supervisor-long.log").read_text()
    assert "gracefully with SIGTERM" in supervisor
    runs = submitted.runs()
    assert {run.info.status for run in runs} == {"KILLED"}
    for run in submitted.trained():
        assert run.data.tags["outcome"] == "stopped"
        assert CheckpointFolder(str(submitted.service.home / "checkpoints"), run.data.tags["fingerprint"]).latest()


@pytest.mark.slow
@pytest.mark.cluster
def test_driver_and_workers_run_the_code_that_was_sent_along(submitted: Submitted) -> None:
    """The cluster has this project too, in editable mode."""
    tags = submitted.trained()[0].data.tags
    assert tags["device"] == "of the upload"
    assert tags["code_version"] != code_version()
    name = get_uri_for_directory(str(submitted.project), include_gitignore=True, excludes=["__pycache__"])
    assert tags["upload"] == name.removeprefix("gcs://")
    assert tags["git.dirty"] == "true"


@pytest.mark.slow
@pytest.mark.cluster
def test_a_jobs_log_can_be_read(submitted: Submitted) -> None:
    """Nothing that only a terminal understands; one line for each run."""
    own = submitted.log().split("degradation on ", 1)[1]
    assert all(line.isprintable() and len(line) <= 300 for line in own.splitlines()), own
    assert re.search(r"^\[1/2\] .*: stopped, the study was interrupted$", own, re.MULTILINE), own
    assert "these runs: ray job submit --working-dir . -- python ablations/degradation.py --preset smoke" in own


@pytest.mark.slow
@pytest.mark.cluster
def test_rays_servers_answer_nobody_without_the_token(submitted: Submitted) -> None:
    """Every route that dashboard and agent have, as their own logs list them."""
    logs = submitted.service.session() / "logs"
    (agent,) = re.findall(r"agent http address: (\S+)", (logs / "dashboard_agent.log").read_text())
    servers = {"dashboard": submitted.service.dashboard, "dashboard_agent": f"http://{agent}"}
    open_routes, count = set(), 0
    for name, address in servers.items():
        routes = re.findall(r"Route \[(\w+|\*)\] <\w+ +(/[^ >]*)", (logs / f"{name}.log").read_text())
        for method, route in routes:
            count += 1
            status = answer(address + re.sub("{.*?}", "1", route), "GET" if method == "*" else method)
            if status != 401:
                open_routes.add(route)
    assert count > 70
    health = {"/api/gcs_healthz", "/api/healthz", "/api/local_raylet_healthz"}
    assert open_routes <= {"/", "/favicon.ico", "/static", "/api/authentication_mode", *health}
    assert answer(f"{submitted.service.dashboard}/api/authenticate", "POST") == 401
    assert answer(f"{submitted.service.dashboard}/api/jobs/", Authorization="Bearer wrong") == 403


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.parametrize("mode", [pytest.param("disabled", marks=pytest.mark.nightly), "token"])
def test_no_program_and_no_node_joins_without_the_token(submitted: Submitted, mode: str) -> None:
    address = f"127.0.0.1:{submitted.service.ports['ray']}"
    code = f"from ray._raylet import GcsClient; GcsClient(address={address!r}).internal_kv_keys(b'', None, timeout=5)"
    done = submitted.service.run(sys.executable, "-c", code, RAY_AUTH_MODE=mode, RAY_AUTH_TOKEN="wrong" * 8)
    assert "AuthenticationError" in done.stderr
    assert submitted.service.run(sys.executable, "-c", code).returncode == 0


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.parametrize(
    ("mode", "token", "reason"),
    [
        ("disabled", "", "this Ray asks for a token; export RAY_AUTH_MODE=token"),
        ("token", "wrong" * 8, "Ray refuses the token of this user"),
        ("token", "", ""),
    ],
)
def test_an_address_is_checked_with_the_token_before_it_is_joined(submitted: Submitted, mode: str, token: str, reason: str) -> None:
    """`ray.init` would try for 20 s, with a warning each second."""
    address = f"127.0.0.1:{submitted.service.ports['ray']}"
    code = f"from ablations.engine.scheduling.connection import check_address; check_address({address!r})"
    settings = {
        "RAY_AUTH_MODE": mode,
        "RAY_API_SERVER_ADDRESS": "http://127.0.0.1:9",
        **({"RAY_AUTH_TOKEN": token} if token else {}),
    }
    done = submitted.service.run(sys.executable, "-c", code, folder=PROJECT, **settings)
    assert done.returncode == (1 if reason else 0), done.stderr
    assert reason in done.stderr
    assert "gcs_client.cc" not in done.stderr


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.cluster
def test_mlflow_answers_nobody_without_the_password(submitted: Submitted) -> None:
    """Every route that it has: REST, GraphQL, artifacts, the pages."""
    server = http.client.HTTPConnection(submitted.service.mlflow.removeprefix("http://"))
    answered = set()
    routes = mlflow_routes()
    assert len(routes) > 400
    for method, route in routes:
        body = None if method == "GET" else "{}"
        server.request(method, re.sub("<.*?>|{.*?}", "1", route), body, {"Content-Type": "application/json"})
        response = server.getresponse()
        response.read()
        if response.status != 401:
            answered.add(re.sub("^/(ajax-)?api/3.0", "", route))
    server.close()
    assert answered <= {"/health", "/mlflow/server-info", "/static-files/<path:path>"}
    assert answer(f"{submitted.service.mlflow}/", Host="elsewhere.example") == 403
    create = f"{submitted.service.mlflow}/api/2.0/mlflow/experiments/create"
    assert answer(create, "POST", Origin="http://elsewhere.example") in (401, 403)


def mlflow_routes() -> set[tuple[str, str]]:
    """Methods and paths."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MLflow's own
        from mlflow.server import app
        from mlflow.server.fastapi_app import app as outer

    def walk(routes: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
        for route in routes:
            if hasattr(route, "original_router"):
                yield from walk(route.original_router.routes, prefix + route.include_context.prefix)
            elif getattr(route, "path", ""):
                yield from ((method, prefix + route.path) for method in route.methods)

    flask = {(method, rule.rule) for rule in app.url_map.iter_rules() for method in rule.methods - {"HEAD", "OPTIONS"}}
    native = set(walk(outer.routes))
    assert native
    return flask | native


@pytest.mark.slow
@pytest.mark.cluster
def test_everything_listens_on_loopback_only(submitted: Submitted) -> None:
    assert list(listening(submitted.service)) == ["127.0.0.1"]


@pytest.mark.slow
@pytest.mark.cluster
def test_a_service_that_is_up_is_not_taken_for_a_protected_one(submitted: Submitted) -> None:
    done = submitted.service.run(sys.executable, "-m", "ablations.engine", "up", RAY_AUTH_MODE="disabled")
    assert (done.returncode, done.stderr) == (
        2,
        "error: RAY_AUTH_MODE=disabled: the service runs with token; end it first: ablations down\n",
    )


@pytest.mark.slow
@pytest.mark.cluster
def test_secrets_are_nowhere_but_where_they_are_kept(submitted: Submitted) -> None:
    state = submitted.service.home
    person = state.parent / "person"
    kept = [person / ".ray" / "auth_token", person / ".mlflow" / "credentials", *(state / "mlflow").iterdir()]
    assert {stat.S_IMODE(path.stat().st_mode) for path in kept} == {0o600}
    secrets = [PLANTED, (person / ".ray" / "auth_token").read_text(), (state / "mlflow" / "password").read_text()]
    secrets.append((state / "mlflow" / "secret_key").read_text())
    assert all(len(secret) > 20 for secret in secrets[1:])
    folders = [state, person, submitted.service.session()]
    written = [path for folder in folders for path in folder.rglob("*") if path.is_file() and path not in kept]
    written = [path for path in written if "working_dir_files" not in path.parts]  # what the job was sent, with what is in it
    contents = {str(path): path.read_bytes() for path in written}
    contents |= {"output": submitted.output.encode(), "processes": "\n".join(submitted.commands).encode()}
    marked = {name for name, content in contents.items() if MARKER.encode() in content}
    assert {"output", "processes", str(state / "mlflow.db")} < marked, "the search finds what is there"
    assert any("report" in name for name in marked)
    assert any("job-driver" in name for name in marked)
    assert {name: secret for name, content in contents.items() for secret in secrets if secret.encode() in content} == {}


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, "this Ray asks for a token; export RAY_AUTH_MODE=token"),
        ({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "wrong" * 8}, "Ray refuses the token of this user, which is RAY_AUTH_TOKEN"),
    ],
)
def test_a_study_without_the_right_token_is_told_so_at_once(
    submitted: Submitted, tmp_path: Path, settings: dict[str, str], said: str
) -> None:
    """From another home folder, where nothing tells how to use the service."""
    address = f"127.0.0.1:{submitted.service.ports['ray']}"
    environment = {"RESNET_ABLATIONS_HOME": str(tmp_path), "RAY_ADDRESS": address, "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
    environment = {"RAY_AUTH_MODE": "disabled", **environment, **settings}
    began = time.monotonic()
    done = submitted.service.run(sys.executable, *COMMAND, folder=PROJECT, **environment)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith(f"error: RAY_ADDRESS={address}: {said}")
    assert done.stderr.count("\n") == 1
    assert time.monotonic() - began < 60  # of which Ray's import takes most on a busy machine
