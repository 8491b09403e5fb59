"""The local service: a Ray head with dashboard and an MLflow server, both on loopback, started and ended together.

What was started is written to `<home>/service.json`; ending it ends these processes and their children, nothing else.
"""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from ablations.engine import paths
from resnet_core import ConfigError
from resnet_core.fields import reject

LOOPBACK = "127.0.0.1"
START_SECONDS = 180.0
NOTE_SECONDS = 10.0
STOP_SECONDS = 15.0
CLUSTER = "RESNET_ABLATIONS_RAY"
"""Environment variable of everything that the service starts, submitted jobs among it: the address of its Ray."""
PROJECT = Path(__file__).parents[2]
RAY = [sys.executable, "-m", "ray.scripts.scripts"]


@dataclass(frozen=True, kw_only=True)
class Ports:
    """Where the service listens, on loopback."""

    mlflow: int = 5000
    dashboard: int = 8265
    ray: int = 6379


@dataclass(frozen=True, kw_only=True)
class Started:
    """A process, told apart from a later one with the same number by its time of birth."""

    name: str
    pid: int
    created: float

    def process(self) -> psutil.Process | None:
        try:
            process = psutil.Process(self.pid)
            alive = process.create_time() == self.created and process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return None
        return process if alive else None


@dataclass(frozen=True)
class State:
    """What `service.json` holds."""

    processes: Sequence[Started]
    ports: Ports
    settings: Mapping[str, str]
    """Environment variables that Ray was started with."""

    def environment(self) -> dict[str, str]:
        """Environment variables that make a program, or a shell, use this service."""
        ray = {"RAY_ADDRESS": f"{LOOPBACK}:{self.ports.ray}", "RAY_API_SERVER_ADDRESS": f"http://{LOOPBACK}:{self.ports.dashboard}"}
        return {**self.settings, **ray}


def up(ports: Ports) -> None:
    """Starts the service, or says where it is. Raises ConfigError if a port is taken or a server does not come up."""
    mode = os.environ.get("RAY_AUTH_MODE", "").lower()
    if state := running():
        if mode and mode != state.settings["RAY_AUTH_MODE"]:
            raise reject("RAY_AUTH_MODE", mode, f"the service runs with {state.settings['RAY_AUTH_MODE']}; end it first: make down")
        _announce(state.ports, state.settings)
        return
    down()
    for field, port in asdict(ports).items():
        _check_free(field, port)
    (paths.home() / "logs").mkdir(parents=True, exist_ok=True)
    settings = {
        "MLFLOW_TRACKING_URI": f"http://{LOOPBACK}:{ports.mlflow}",
        # Ray's own ports would listen on every interface; as on macOS, they shall stay on loopback.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        # Said either way: unset, a token left by another program would lock out a plain `ray job submit`.
        "RAY_AUTH_MODE": mode or "disabled",
        "RESNET_ABLATIONS_HOME": str(paths.home()),
    }
    # Jobs find this environment's Python.
    search = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    # Jobs of MLflow's own, which nothing here uses, are eight more processes and 1.7 GB.
    quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    # Of a study that is asked to stop, Ray would end the driver after 3 s, before its records are in MLflow.
    patience = {"RAY_JOB_STOP_WAIT_TIME_S": os.environ.get("RAY_JOB_STOP_WAIT_TIME_S", "30")}
    environment = {**os.environ, **settings, **quiet, **patience, CLUSTER: f"{LOOPBACK}:{ports.ray}", "PATH": search}
    commands = {"mlflow": _mlflow_command(ports, password=mode == "token"), "ray": _ray_command(ports)}
    if mode == "token":
        _make_token(environment)
    processes: list[Started] = []
    try:
        for name, command in commands.items():
            processes.append(_start(name, command, environment))
            _record(State(processes, ports, settings))
        _wait("mlflow", f"http://{LOOPBACK}:{ports.mlflow}/health", processes[0])
        _wait("ray", f"http://{LOOPBACK}:{ports.dashboard}/api/version", processes[1])
        _forget_cluster(ports)
    except BaseException:
        down()
        raise
    _announce(ports, settings)


def running() -> "State | None":
    """The service that is up, if there is one."""
    state = _recorded()
    return state if state.processes and all(started.process() for started in state.processes) else None


def adopt() -> None:
    """Lets this process use the running service as a submitted job does, unless RAY_ADDRESS says where to go."""
    if CLUSTER in os.environ:
        # Ray guesses which cluster a job was submitted to, wrongly if other programs have started one on this machine.
        os.environ["RAY_ADDRESS"] = os.environ[CLUSTER]
    state = running()
    if state and "RAY_ADDRESS" not in os.environ:
        for name, value in state.environment().items():
            os.environ.setdefault(name, value)
    if os.environ.get("RAY_ADDRESS") == "local" or not ("RAY_ADDRESS" in os.environ or _any_cluster()):
        # Ray is going to start for this process alone: on loopback as well. Ray reads this as it is imported.
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")


def _any_cluster() -> bool:
    """Whether Ray would join one that somebody has started on this machine."""
    return Path(os.environ.get("RAY_TMPDIR", "/tmp"), "ray", "ray_current_cluster").exists()  # noqa: S108 - Ray's own folder


def down() -> bool:
    """Ends what `up` started; returns whether anything was running."""
    alive = [process for started in _recorded().processes if (process := started.process())]
    family = [*alive, *(child for process in alive for child in process.children(recursive=True))]
    for stop in (psutil.Process.terminate, psutil.Process.kill):
        # Parents first: Ray's own shutdown ends its children in order.
        for process in family if stop is psutil.Process.kill else alive:
            try:
                stop(process)
            except psutil.NoSuchProcess:
                continue
        _, family = psutil.wait_procs(family, timeout=STOP_SECONDS)
        if not family:
            break
    _state_file().unlink(missing_ok=True)
    return bool(alive)


def _forget_cluster(ports: Ports) -> None:
    """Removes Ray's own note of where the newest cluster is.

    Programs that follow it replace a loopback address by this machine's own, where nobody listens, and wait. Without it,
    `ray job submit` and `ray status` find the process itself.
    """
    from ray._common.utils import reset_ray_address
    from ray._private.utils import read_ray_address

    deadline = time.monotonic() + NOTE_SECONDS  # the dashboard may answer before it is written
    while time.monotonic() < deadline:
        if (read_ray_address() or "").endswith(f":{ports.ray}"):
            reset_ray_address()
            return
        time.sleep(0.1)


def _make_token(environment: dict[str, str]) -> None:
    """Makes the token that Ray asks for where there is none; only its owner reads the file."""
    command = [*RAY, "get-auth-token", "--generate"]
    subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, umask=0o077, check=True)  # noqa: S603


def _mlflow_command(ports: Ports, *, password: bool) -> list[str]:
    if password:
        return [sys.executable, "-m", "ablations.engine", "mlflow", "--host", LOOPBACK, "--port", str(ports.mlflow)]
    store = f"sqlite:///{paths.home() / 'mlflow.db'}"
    artifacts = paths.shared("artifacts")
    if "://" not in artifacts:
        artifacts = Path(artifacts).as_uri()
    options = ["--backend-store-uri", store, "--artifacts-destination", artifacts, "--workers", "1"]
    return [sys.executable, "-m", "mlflow", "server", "--host", LOOPBACK, "--port", str(ports.mlflow), *options]


def _ray_command(ports: Ports) -> list[str]:
    listen = ["--port", str(ports.ray), "--dashboard-host", LOOPBACK]
    return [
        *RAY,
        "start",
        "--head",
        "--block",
        *listen,
        "--dashboard-port",
        str(ports.dashboard),
        "--disable-usage-stats",
        "--dashboard-agent-listen-port",
        "0",
    ]


def _start(name: str, command: Sequence[str], environment: dict[str, str]) -> Started:
    with _log_file(name).open("w") as log:
        # In the project's folder, where submitted jobs start; in a session of its own, which outlives this terminal.
        process = subprocess.Popen(  # noqa: S603
            command, cwd=PROJECT, env=environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True
        )
    return Started(name=name, pid=process.pid, created=psutil.Process(process.pid).create_time())


def _wait(name: str, url: str, started: Started) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(url, timeout=2):  # noqa: S310 - our own loopback address
                return
        except urllib.error.HTTPError:
            return  # it answers; it wants the token
        except OSError:
            if started.process() is None:
                break
            time.sleep(0.2)
    last = _log_file(name).read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
    raise ConfigError(f"{name} did not start: {' '.join(last)} (log: {_log_file(name)})")


def _check_free(field: str, port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port in TIME_WAIT is free
        try:
            probe.bind((LOOPBACK, port))
        except (OSError, OverflowError) as error:
            name = f"{field.upper()}_PORT"
            raise reject(name, port, f"cannot be listened on ({error}); choose another, as in make up {name}={port + 1}") from error


def _announce(ports: Ports, settings: Mapping[str, str]) -> None:
    print(f"MLflow UI: http://{LOOPBACK}:{ports.mlflow}   Ray dashboard: http://{LOOPBACK}:{ports.dashboard}")
    if settings["RAY_AUTH_MODE"] == "token":
        password = paths.home() / "mlflow" / "password"
        print(f"They ask who you are. MLflow: admin, and what is in {password}; Ray: the token that ray get-auth-token prints.")


def _recorded() -> State:
    try:
        state = json.loads(_state_file().read_text())
        return State([Started(**entry) for entry in state["processes"]], Ports(**state["ports"]), state["settings"])
    except (OSError, ValueError, KeyError, TypeError):  # none, or one that a dying machine left half-written
        return State([], Ports(), {})


def _record(state: State) -> None:
    _state_file().write_text(json.dumps(asdict(state)))


def _state_file() -> Path:
    return paths.home() / "service.json"


def _log_file(name: str) -> Path:
    return paths.home() / "logs" / f"{name}.log"
