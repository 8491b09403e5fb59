"""The local service (`ablations up`) with its own home and ports, and jobs that are submitted to it."""

import json
import os
import random
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import psutil

BIN = Path(sys.executable).parent


def free_port() -> int:
    """Return a free port from 20,000 to 31,999. No other process gets it: Linux assigns ports from 32,768, Ray below 20,000."""
    while True:
        port = random.randrange(20_000, 32_000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


class Service:
    """A local service. `service("up")` starts it, `service("down")` stops it.

    Args:
        home: the folder of its state.
        settings: environment variables in addition to this process's own.
    """

    def __init__(self, home: Path, settings: Mapping[str, str] | None = None) -> None:
        cleared = ("RAY_", "MLFLOW_")
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith(cleared)}
        self.environment |= {"RESNET_ABLATIONS_HOME": str(home), **(settings or {})}
        self.home = home
        ports: set[int] = set()
        while len(ports) < 3:  # the same port may be drawn twice
            ports.add(free_port())
        self.ports = dict(zip(("mlflow", "dashboard", "ray"), map(str, ports), strict=True))

    @property
    def mlflow(self) -> str:
        return f"http://127.0.0.1:{self.ports['mlflow']}"

    @property
    def dashboard(self) -> str:
        return f"http://127.0.0.1:{self.ports['dashboard']}"

    def __call__(self, command: str, **ports: str) -> subprocess.CompletedProcess[str]:
        chosen = {**self.ports, **ports} if command == "up" else {}
        options = [word for name, port in chosen.items() for word in (f"--{name}-port", port)]
        return self.run(sys.executable, "-m", "ablations.engine", command, *options)

    def job(self, *words: str, folder: Path | None = None, **settings: str) -> subprocess.CompletedProcess[str]:
        """Run `ray job` with these arguments, in a folder."""
        return self.run(str(BIN / "ray"), "job", *words, folder=folder, RAY_API_SERVER_ADDRESS=self.dashboard, **settings)

    def run(self, *command: str, folder: Path | None = None, **settings: str) -> subprocess.CompletedProcess[str]:
        environment, folder = self.environment | settings, folder or self.home
        return subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False, timeout=300)

    def processes(self) -> list[psutil.Process]:
        recorded = [psutil.Process(p["pid"]) for p in json.loads((self.home / "service.json").read_text())["processes"]]
        return [*recorded, *(child for process in recorded for child in process.children(recursive=True))]

    def session(self) -> Path:
        """Return the session folder of the service's Ray."""
        words = " ".join(word for process in self.processes() for word in process.cmdline())
        (folder,) = {word.partition("=")[2] for word in words.split() if word.startswith("--session-dir=")}
        return Path(folder)


def listening(service: Service) -> dict[str, set[int]]:
    """Return the ports on which the service's processes listen, by address."""
    found: dict[str, set[int]] = {}
    for process in service.processes():
        with suppress(psutil.NoSuchProcess):  # an idle Ray worker that has ended meanwhile
            for connection in process.net_connections():
                if connection.status == psutil.CONN_LISTEN:
                    found.setdefault(connection.laddr.ip.removeprefix("::ffff:"), set()).add(connection.laddr.port)
    return found


def answer(url: str, method: str = "GET", **headers: str) -> int:
    """Send a request and return the HTTP status."""
    asked = urllib.request.Request(url, method=method, headers={name.replace("_", "-"): value for name, value in headers.items()})
    try:
        with urllib.request.urlopen(asked, timeout=30) as answered:
            return int(answered.status)
    except urllib.error.HTTPError as error:
        return error.code
