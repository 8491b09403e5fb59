"""`python -m ablations.engine …` with a home and ports of its own, and what a submission to it leaves behind."""

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
    """One that nothing else gets meanwhile: systems give those above 32,768 to whoever asks for any, Ray its own below 20,000."""
    while True:
        port = random.randrange(20_000, 32_000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


class Service:
    """A service that is up from `up` to `down`.

    Args:
        home: the folder of its state.
        settings: environment variables, besides this process's own.
    """

    def __init__(self, home: Path, settings: Mapping[str, str] | None = None) -> None:
        cleared = ("RAY_", "MLFLOW_")
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith(cleared)}
        self.environment |= {"RESNET_ABLATIONS_HOME": str(home), **(settings or {})}
        self.home = home
        ports: set[int] = set()
        while len(ports) < 3:  # chance gives the same one twice now and then
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
        """`ray job …`, in a folder."""
        return self.run(str(BIN / "ray"), "job", *words, folder=folder, RAY_API_SERVER_ADDRESS=self.dashboard, **settings)

    def run(self, *command: str, folder: Path | None = None, **settings: str) -> subprocess.CompletedProcess[str]:
        environment, folder = self.environment | settings, folder or self.home
        return subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False, timeout=300)

    def processes(self) -> list[psutil.Process]:
        recorded = [psutil.Process(p["pid"]) for p in json.loads((self.home / "service.json").read_text())["processes"]]
        return [*recorded, *(child for process in recorded for child in process.children(recursive=True))]

    def session(self) -> Path:
        """Ray's own folder of this service."""
        words = " ".join(word for process in self.processes() for word in process.cmdline())
        (folder,) = {word.partition("=")[2] for word in words.split() if word.startswith("--session-dir=")}
        return Path(folder)


def listening(service: Service) -> dict[str, set[int]]:
    """Ports on which the service's processes listen, by address."""
    found: dict[str, set[int]] = {}
    for process in service.processes():
        with suppress(psutil.NoSuchProcess):  # a worker of Ray that had nothing to do
            for connection in process.net_connections():
                if connection.status == psutil.CONN_LISTEN:
                    found.setdefault(connection.laddr.ip.removeprefix("::ffff:"), set()).add(connection.laddr.port)
    return found


def answer(url: str, method: str = "GET", **headers: str) -> int:
    """The status of an answer."""
    asked = urllib.request.Request(url, method=method, headers={name.replace("_", "-"): value for name, value in headers.items()})
    try:
        with urllib.request.urlopen(asked, timeout=30) as answered:
            return int(answered.status)
    except urllib.error.HTTPError as error:
        return error.code
