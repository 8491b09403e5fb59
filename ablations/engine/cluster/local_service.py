"""The local service: a Ray head with its dashboard, and an MLflow server, both on loopback.

`up` writes the processes that it starts to `<home>/service.json`. `down` ends these processes and their children, and no others.
"""

import json
import os
import random
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

from ablations.engine.environment import paths, private_files, ray_processes
from ablations.engine.environment.network import accepts_connections
from ablations.engine.tracking import mlflow_internals, relocation
from resnet_core import ConfigError
from resnet_core.fields import reject

LOOPBACK = "127.0.0.1"
START_TIMEOUT_SECONDS = 180.0
"""Timeout for each server to start, in seconds."""
STOP_TIMEOUT_SECONDS = 15.0
"""Timeout for processes to end after SIGTERM, before SIGKILL, in seconds."""
RAY_ADDRESS_VARIABLE = "RESNET_ABLATIONS_RAY"
"""Environment variable that holds the address of the service's Ray, in every process of the service and in submitted jobs."""
RAY_CLIENT_PORTS = range(20_001, 32_000)
ANSI_COLOR = re.compile(r"\x1b\[[0-9;]*m")
ERROR_LINE = re.compile(r"(\w+\.)*\w+(Error|Exception): ")
SOURCE_FOLDER = Path(__file__).parents[3]
"""Folder that holds the packages: a source checkout, or `site-packages`."""
PYTHON_MODULE = [sys.executable, "-P", "-m"]
"""Beginning of a command that runs a module. With -P, Python ignores the current folder, where a user may have a `mlflow.py`."""
RUN_RAY_COMMAND = """import importlib.metadata, sys
sys.argv[0] = "ray"
(ray,) = importlib.metadata.entry_points(group="console_scripts", name="ray")
sys.exit(ray.load()())"""
"""Code that runs this environment's `ray` command, like the script that pip installs, which may be in any folder."""


@dataclass(frozen=True, kw_only=True)
class Ports:
    """Ports of the service's servers on loopback."""

    mlflow: int = 5000
    dashboard: int = 8265
    ray: int = 6379


@dataclass(frozen=True, kw_only=True)
class ServiceProcess:
    """A process that the service started. Its creation time tells it from a later process with the same ID."""

    name: str
    pid: int
    created: float
    """Creation time, in seconds since the epoch."""

    def find(self) -> psutil.Process | None:
        """Return the process if it is alive."""
        try:
            process = psutil.Process(self.pid)
            alive = process.create_time() == self.created and process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return None
        return process if alive else None


@dataclass(frozen=True)
class ServiceState:
    """The content of `service.json`."""

    processes: Sequence[ServiceProcess]
    ports: Ports
    settings: Mapping[str, str]
    """Environment variables with which Ray was started."""

    def environment(self) -> dict[str, str]:
        """Return the environment variables that make a program or a shell use this service."""
        ray = {"RAY_ADDRESS": f"{LOOPBACK}:{self.ports.ray}", "RAY_API_SERVER_ADDRESS": f"http://{LOOPBACK}:{self.ports.dashboard}"}
        return {**self.settings, **ray}


def up(ports: Ports) -> None:
    """Start the service and print its addresses. If it runs already, only print them.

    Raises:
        ConfigError: a port is taken, or a server does not start.
    """
    mode = os.environ.get("RAY_AUTH_MODE", "").lower()
    if state := running_service():
        if mode and mode != state.settings["RAY_AUTH_MODE"]:
            reason = f"the service runs with {state.settings['RAY_AUTH_MODE']}; end it first: ablations down"
            raise reject("RAY_AUTH_MODE", mode, reason)
        _print_addresses(state.ports, state.settings)
        return
    down()
    chosen = asdict(ports)
    for field, port in chosen.items():
        _check_port_is_free(field, port)
    if len(set(chosen.values())) < len(chosen):
        raise ConfigError(f"{' '.join(f'--{field}-port={port}' for field, port in chosen.items())}: accepted: different ports")
    paths.protect_home()
    private_files.protect_token(create=mode == "token")
    if (database := paths.home() / "mlflow.db").exists():
        relocation.update_artifact_addresses(database)
    (paths.home() / "logs").mkdir(exist_ok=True)
    settings = {
        "MLFLOW_TRACKING_URI": f"http://{LOOPBACK}:{ports.mlflow}",
        # By default, Ray's own ports listen on every interface. This setting keeps them on loopback, as on macOS.
        ray_processes.LOOPBACK_VARIABLE: "0",
        # Always set: if it were unset, a token that another program left would lock out a plain `ray job submit`.
        "RAY_AUTH_MODE": mode or "disabled",
        "RESNET_ABLATIONS_HOME": str(paths.home()),
    }
    # Submitted jobs find this environment's Python first.
    search_path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    environment = {
        **os.environ,
        **settings,
        # MLflow's own job execution, which nothing here uses, would start eight more processes that take 1.7 GB.
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        # Ray kills a stopped job's driver after 3 s by default, before a study's records are in MLflow.
        "RAY_JOB_STOP_WAIT_TIME_S": os.environ.get("RAY_JOB_STOP_WAIT_TIME_S", "30"),
        ray_processes.PRESTART_VARIABLE: os.environ.get(ray_processes.PRESTART_VARIABLE, "0"),
        RAY_ADDRESS_VARIABLE: f"{LOOPBACK}:{ports.ray}",
        "PATH": search_path,
    }
    folder, lock = private_files.make_ray_folder()
    commands = {"mlflow": _mlflow_command(ports, password=mode == "token"), "ray": _ray_command(ports, folder)}
    processes: list[ServiceProcess] = []
    try:
        for name, command in commands.items():
            processes.append(_start(name, command, environment, (lock,) if name == "ray" else ()))
            _write_state(ServiceState(processes, ports, settings))
        os.close(lock)  # from here on, Ray's head holds the lock
        _wait_until_ready("mlflow", f"http://{LOOPBACK}:{ports.mlflow}/health", processes[0])
        _wait_until_ready("ray", f"http://{LOOPBACK}:{ports.dashboard}/api/version", processes[1])
        ray_processes.warn_if_reachable(psutil.Process(processes[1].pid))
    except BaseException:
        down()
        raise
    _print_addresses(ports, settings)


def running_service() -> "ServiceState | None":
    """Return the service if all its processes are alive."""
    state = _read_state()
    return state if state.processes and all(process.find() for process in state.processes) else None


def select_ray_cluster() -> None:
    """Choose the Ray cluster that this process uses, and set the environment variables for it. Call this before importing Ray.

    The choice is the first of: the Ray that the job was submitted to; `RAY_ADDRESS`; the running service; a cluster on this machine
    that this user or root started and that answers. Otherwise `RAY_ADDRESS` becomes `local`: Ray starts for this process alone.
    """
    if not os.environ.get("RAY_ADDRESS"):
        os.environ.pop("RAY_ADDRESS", None)  # like Ray, treat an empty value as unset
    if RAY_ADDRESS_VARIABLE in os.environ:
        # Ray guesses the cluster of a submitted job, and guesses wrong if other programs have started one on this machine.
        os.environ["RAY_ADDRESS"] = os.environ[RAY_ADDRESS_VARIABLE]
    state = running_service()
    if state and os.environ.get("RAY_ADDRESS") in (None, state.environment()["RAY_ADDRESS"]):
        for name, value in state.environment().items():
            os.environ.setdefault(name, value)
    if "RAY_ADDRESS" not in os.environ:
        found = ray_processes.own_cluster_address()
        if found and accepts_connections(found):
            os.environ["RAY_ADDRESS"] = found
            if private_files.ray_token():  # Ray does the same for a cluster that it finds by itself
                os.environ.setdefault("RAY_AUTH_MODE", "token")
        else:
            os.environ["RAY_ADDRESS"] = "local"
    if os.environ["RAY_ADDRESS"] == "local":
        os.environ.setdefault(ray_processes.LOOPBACK_VARIABLE, "0")  # keep this Ray on loopback as well


def down() -> bool:
    """End the processes that `up` started. Return whether any was alive."""
    alive = [process for started in _read_state().processes if (process := started.find())]
    family = [*alive, *(child for process in alive for child in process.children(recursive=True))]
    for stop in (psutil.Process.terminate, psutil.Process.kill):
        # Terminate the parents only: Ray ends its own child processes in the right order.
        for process in family if stop is psutil.Process.kill else alive:
            try:
                stop(process)
            except psutil.NoSuchProcess:
                continue
        _, family = psutil.wait_procs(family, timeout=STOP_TIMEOUT_SECONDS)
        if not family:
            break
    _state_file().unlink(missing_ok=True)
    private_files.remove_unused_ray_folders()
    return bool(alive)


def _mlflow_command(ports: Ports, *, password: bool) -> list[str]:
    if password:
        return [*PYTHON_MODULE, "ablations", "mlflow", "--host", LOOPBACK, "--port", str(ports.mlflow)]
    store = paths.sqlite_uri(paths.home() / "mlflow.db")
    artifacts = paths.shared_folder("artifacts")
    if "://" not in artifacts:
        artifacts = Path(artifacts).as_uri()
    options = ["--backend-store-uri", store, "--artifacts-destination", artifacts, "--workers", "1"]
    return [*PYTHON_MODULE, "mlflow", "server", "--host", LOOPBACK, "--port", str(ports.mlflow), *options]


def _ray_command(ports: Ports, folder: Path) -> list[str]:
    return [
        *(sys.executable, "-P", "-c", RUN_RAY_COMMAND, "start", "--head", "--block", "--disable-usage-stats"),
        *("--port", str(ports.ray), "--ray-client-server-port", str(_free_client_port())),
        *("--dashboard-host", LOOPBACK, "--dashboard-port", str(ports.dashboard), "--dashboard-agent-listen-port", "0"),
        # Every user can write to Ray's default folder. Ray also stores the address of its newest cluster there. Other programs
        # would replace loopback in that address by the machine's own address, on which nothing listens, and wait for it.
        *("--temp-dir", str(folder)),
    ]


def _free_client_port() -> int:
    """Return a free port for Ray's client server, which nothing here uses but Ray always starts.

    Ray's default, 10001, is a single port for all users of a machine. The ports here lie between those of Ray's workers and those
    that the operating system assigns. The order is random: Ray takes its port seconds later, and without it ends the whole cluster,
    so that of two services that start at the same time, one would go seconds after it came up.
    """
    for port in random.sample(RAY_CLIENT_PORTS, len(RAY_CLIENT_PORTS)):
        with suppress(OSError), socket.socket() as probe:
            probe.bind((LOOPBACK, port))
            return port
    raise ConfigError(f"no port from {RAY_CLIENT_PORTS[0]} to {RAY_CLIENT_PORTS[-1]} is free; Ray's client server needs one")


def _jobs_folder() -> Path:
    """Return the folder in which jobs start that bring no working folder: the source checkout, otherwise the current folder."""
    return SOURCE_FOLDER if (SOURCE_FOLDER / "pyproject.toml").is_file() else Path.cwd()


def _start(name: str, command: Sequence[str], environment: dict[str, str], kept_open: Sequence[int]) -> ServiceProcess:
    with _log_file(name).open("w") as log:
        process = subprocess.Popen(  # noqa: S603
            command,
            cwd=_jobs_folder(),
            env=environment,
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # the process outlives this terminal
            pass_fds=kept_open,
        )
    return ServiceProcess(name=name, pid=process.pid, created=psutil.Process(process.pid).create_time())


def _wait_until_ready(name: str, url: str, process: ServiceProcess) -> None:
    deadline = time.monotonic() + START_TIMEOUT_SECONDS
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(url, timeout=2):  # noqa: S310 - our own loopback address
                return
        except urllib.error.HTTPError:
            return  # the server answers and asks for the token
        except OSError:
            if process.find() is None:
                break
            time.sleep(0.2)
    log = _log_file(name).read_text(encoding="utf-8", errors="replace")
    raise ConfigError(f"{name} did not start: {failure_reason(log)} (log: {_log_file(name)})")


def failure_reason(log: str) -> str:
    """Return the line of a log that says why a server ended: the last one that names an error, otherwise the last one."""
    lines = [line.strip() for line in ANSI_COLOR.sub("", log).splitlines() if line.strip()]
    return next((line for line in reversed(lines) if ERROR_LINE.match(line)), lines[-1] if lines else "its log is empty")


def _check_port_is_free(name: str, port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port in TIME_WAIT is free
        try:
            probe.bind((LOOPBACK, port))
        except (OSError, OverflowError) as error:
            option = f"--{name}-port"
            other = f"choose another: ablations up {option} {port + 1}, or make up {name.upper()}_PORT={port + 1}"
            raise reject(option, port, f"is not free ({error}); {other}") from error


def _print_addresses(ports: Ports, settings: Mapping[str, str]) -> None:
    page = mlflow_internals.web_address(f"http://{LOOPBACK}:{ports.mlflow}")
    print(f"MLflow UI: {page}   Ray dashboard: http://{LOOPBACK}:{ports.dashboard}")
    own = f"{LOOPBACK}:{ports.ray}"
    if os.environ.get("RAY_API_SERVER_ADDRESS", "") == "" and any(node.head != own for node in ray_processes.nodes_here()):
        # `ray job submit` looks for a cluster by itself. With several, it takes another one, or ends with a traceback.
        print('This machine runs another Ray as well. In a shell for ray job submit, run first: eval "$(ablations env)"')
    if settings["RAY_AUTH_MODE"] == "token":
        password = paths.home() / "mlflow" / "password"
        print(f"MLflow asks for user admin and the password in {password}; Ray for the token that ray get-auth-token prints.")


def _read_state() -> ServiceState:
    try:
        state = json.loads(_state_file().read_text())
        return ServiceState([ServiceProcess(**entry) for entry in state["processes"]], Ports(**state["ports"]), state["settings"])
    except (OSError, ValueError, KeyError, TypeError):  # no file, or one that a crash of the machine left incomplete
        return ServiceState([], Ports(), {})


def _write_state(state: ServiceState) -> None:
    _state_file().write_text(json.dumps(asdict(state)))


def _state_file() -> Path:
    return paths.home() / "service.json"


def _log_file(name: str) -> Path:
    return paths.home() / "logs" / f"{name}.log"
