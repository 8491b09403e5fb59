"""The local service: a Ray head with dashboard and an MLflow server, both on loopback, started and ended together.

What was started is written to `<home>/service.json`; ending it ends these processes and their children, nothing else.
"""

import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from ablations.engine.environment import paths, private_files, relocation
from ablations.engine.environment.network import accepts_connections
from ablations.engine.scheduling.ray_internals.cluster import LOOPBACK_VARIABLE
from resnet_core import ConfigError
from resnet_core.fields import reject

LOOPBACK = "127.0.0.1"
START_SECONDS = 180.0
STOP_SECONDS = 15.0
CLUSTER = "RESNET_ABLATIONS_RAY"
"""Environment variable of everything that the service starts, submitted jobs among it: the address of its Ray."""
CLIENT_PORTS = range(20_001, 32_000)
COLOR = re.compile(r"\x1b\[[0-9;]*m")
ERROR = re.compile(r"(\w+\.)*\w+(Error|Exception): ")
PROJECT = Path(__file__).parents[3]
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
    chosen = asdict(ports)
    for field, port in chosen.items():
        _check_free(field, port)
    if len(set(chosen.values())) < len(chosen):
        raise ConfigError(f"{' '.join(f'--{field}-port={port}' for field, port in chosen.items())}: accepted: different ports")
    paths.protect_home()
    private_files.protect_token(create=mode == "token")
    if (database := paths.home() / "mlflow.db").exists():
        relocation.update_artifact_addresses(database)
    (paths.home() / "logs").mkdir(exist_ok=True)
    settings = {
        "MLFLOW_TRACKING_URI": f"http://{LOOPBACK}:{ports.mlflow}",
        # Ray's own ports would listen on every interface; as on macOS, they shall stay on loopback.
        LOOPBACK_VARIABLE: "0",
        # Said either way: unset, a token left by another program would lock out a plain `ray job submit`.
        "RAY_AUTH_MODE": mode or "disabled",
        "RESNET_ABLATIONS_HOME": str(paths.home()),
    }
    # Jobs find this environment's Python.
    search = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    # Jobs of MLflow's own, which nothing here uses, are eight more processes and 1.7 GB.
    quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    # Worker groups are of Ray Train's second version, whatever the shell says.
    quiet |= {"RAY_TRAIN_V2_ENABLED": "1"}
    # Of a study that is asked to stop, Ray would end the driver after 3 s, before its records are in MLflow.
    patience = {"RAY_JOB_STOP_WAIT_TIME_S": os.environ.get("RAY_JOB_STOP_WAIT_TIME_S", "30")}
    environment = {**os.environ, **settings, **quiet, **patience, CLUSTER: f"{LOOPBACK}:{ports.ray}", "PATH": search}
    folder, lock = private_files.make_ray_folder()
    commands = {"mlflow": _mlflow_command(ports, password=mode == "token"), "ray": _ray_command(ports, folder)}
    processes: list[Started] = []
    try:
        for name, command in commands.items():
            processes.append(_start(name, command, environment, (lock,) if name == "ray" else ()))
            _record(State(processes, ports, settings))
        os.close(lock)  # Ray's head holds it from here on
        _wait("mlflow", f"http://{LOOPBACK}:{ports.mlflow}/health", processes[0])
        _wait("ray", f"http://{LOOPBACK}:{ports.dashboard}/api/version", processes[1])
    except BaseException:
        down()
        raise
    _announce(ports, settings)


def running() -> "State | None":
    """The service that is up, if there is one."""
    state = _recorded()
    return state if state.processes and all(started.process() for started in state.processes) else None


def adopt() -> None:
    """Decide which Ray this process uses, before Ray is imported, and put that into the environment.

    In this order: the Ray that a job was submitted to, `RAY_ADDRESS`, the running service, a cluster that this user or root started
    on this machine and that answers, and otherwise (`RAY_ADDRESS=local`) one that starts for this process alone.
    """
    if not os.environ.get("RAY_ADDRESS"):
        os.environ.pop("RAY_ADDRESS", None)  # empty means unset, as to Ray
    if CLUSTER in os.environ:
        # Ray guesses which cluster a job was submitted to, wrongly if other programs have started one on this machine.
        os.environ["RAY_ADDRESS"] = os.environ[CLUSTER]
    state = running()
    if state and os.environ.get("RAY_ADDRESS") in (None, state.environment()["RAY_ADDRESS"]):
        for name, value in state.environment().items():
            os.environ.setdefault(name, value)
    if "RAY_ADDRESS" not in os.environ:
        note = private_files.local_cluster_address()
        if note and accepts_connections(note):
            os.environ["RAY_ADDRESS"] = note
            if private_files.ray_token():  # Ray does the same for a cluster that it finds by itself
                os.environ.setdefault("RAY_AUTH_MODE", "token")
        else:
            os.environ["RAY_ADDRESS"] = "local"
    if os.environ["RAY_ADDRESS"] == "local":
        # Such a Ray is on loopback as well. Ray reads this as it is imported.
        os.environ.setdefault(LOOPBACK_VARIABLE, "0")


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
    private_files.remove_unused_ray_folders()
    return bool(alive)


def _mlflow_command(ports: Ports, *, password: bool) -> list[str]:
    if password:
        return [sys.executable, "-m", "ablations.engine", "mlflow", "--host", LOOPBACK, "--port", str(ports.mlflow)]
    store = paths.sqlite_uri(paths.home() / "mlflow.db")
    artifacts = paths.shared_folder("artifacts")
    if "://" not in artifacts:
        artifacts = Path(artifacts).as_uri()
    options = ["--backend-store-uri", store, "--artifacts-destination", artifacts, "--workers", "1"]
    return [sys.executable, "-m", "mlflow", "server", "--host", LOOPBACK, "--port", str(ports.mlflow), *options]


def _ray_command(ports: Ports, folder: Path) -> list[str]:
    return [
        *(*RAY, "start", "--head", "--block", "--disable-usage-stats"),
        *("--port", str(ports.ray), "--ray-client-server-port", str(_free_client_port())),
        *("--dashboard-host", LOOPBACK, "--dashboard-port", str(ports.dashboard), "--dashboard-agent-listen-port", "0"),
        # Not Ray's usual folder, which every user can write to. It is also where Ray notes the address of its newest cluster, for
        # programs that would replace loopback in it by this machine's own address, where nobody listens, and wait.
        *("--temp-dir", str(folder)),
    ]


def _free_client_port() -> int:
    """Return a port for the server of Ray Client, which nothing here uses and which Ray cannot do without.

    Ray's own default, 10001, is one port for all users of a machine. Those here are above the ports of Ray's workers and below
    those that the system gives away.
    """
    for port in CLIENT_PORTS:
        with suppress(OSError), socket.socket() as probe:
            probe.bind((LOOPBACK, port))
            return port
    raise ConfigError(f"every port from {CLIENT_PORTS[0]} to {CLIENT_PORTS[-1]} is taken; Ray Client needs one")


def _start(name: str, command: Sequence[str], environment: dict[str, str], kept_open: Sequence[int]) -> Started:
    with _log_file(name).open("w") as log:
        # In the project's folder, where submitted jobs start; in a session of its own, which outlives this terminal.
        process = subprocess.Popen(  # noqa: S603
            command,
            cwd=PROJECT,
            env=environment,
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            pass_fds=kept_open,
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
    log = _log_file(name).read_text(encoding="utf-8", errors="replace")
    raise ConfigError(f"{name} did not start: {reason_in(log)} (log: {_log_file(name)})")


def reason_in(log: str) -> str:
    """Return the line that says why a server ended: the last that names an error, else the last; without colors."""
    lines = [line.strip() for line in COLOR.sub("", log).splitlines() if line.strip()]
    return next((line for line in reversed(lines) if ERROR.match(line)), lines[-1] if lines else "it says nothing")


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
