"""Two machines, each a network namespace with a node of its own, and a cable between them that is pulled while a group trains."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import pytest
from mlflow import MlflowClient

from tests.helpers.project import PROJECT
from tests.helpers.ray_jobs import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.alone, pytest.mark.cluster, pytest.mark.nightly, pytest.mark.timeout(900)]

EPOCHS = 60
STUDY = ("ablations/shortcuts.py", "--preset", "smoke", "--levels", "shortcut=A", "depth=8", "--seeds", "2", "--workers", "2")
PORT = 6379
HEAD_ADDRESS, NODE_ADDRESS = "10.77.0.1", "10.77.0.2"


class Hosts:
    """A head and one more node, with one CPU each, that reach each other through a cable only.

    Each sees its own network and its own copy of Ray's temporary folder; files elsewhere are shared, as on a network file system.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.head, self.node = (f"{name}{os.getpid()}" for name in ("head", "node"))
        self.sessions: list[subprocess.Popen[bytes]] = []
        self.servers: list[subprocess.Popen[bytes]] = []
        self.ray = Path(tempfile.mkdtemp(prefix="ray", dir="/tmp"))  # Unix sockets have short paths
        for name in (self.head, self.node):
            ip("netns", "add", name)
            ip("-n", name, "link", "set", "lo", "up")
        ip("-n", self.head, "link", "add", "cable", "type", "veth", "peer", "name", "cable", "netns", self.node)
        for name, address in ((self.head, HEAD_ADDRESS), (self.node, NODE_ADDRESS)):
            ip("-n", name, "address", "add", f"{address}/24", "dev", "cable")
            ip("-n", name, "link", "set", "cable", "up")
        own = (f"--temp-dir={self.ray}", "--include-dashboard=false")
        self.start(self.head, "--head", f"--port={PORT}", *own, address=HEAD_ADDRESS)
        self.join()

    def start(self, host: str, *options: str, address: str) -> None:
        ray_start = ["ray", "start", "--block", f"--node-ip-address={address}", "--num-cpus=1", *options]
        # A machine has its own temporary folder; the head's is the one that the driver sees.
        own = ["unshare", "--mount", "sh", "-c", f'mount -t tmpfs none {self.ray} && exec "$@"', "sh"] if host == self.node else []
        command = ["ip", "netns", "exec", host, *own, *ray_start]
        log_file = self.folder / f"{host}.log"
        with log_file.open("wb") as log:
            started = subprocess.Popen(command, env=self.environment(), stdout=log, stderr=log, start_new_session=True)
        self.sessions.append(started)
        wait_until(lambda: started.poll() is not None or "Ray runtime started" in log_file.read_text(), 120)

    def join(self) -> None:
        """Start the second machine's node, as whoever watches over it does after its Ray has ended."""
        self.start(self.node, f"--address={HEAD_ADDRESS}:{PORT}", address=NODE_ADDRESS)

    def has_node(self) -> bool:
        return self.sessions[-1].poll() is None

    def pull(self) -> None:
        ip("-n", self.node, "link", "set", "cable", "down")

    def plug(self) -> None:
        ip("-n", self.node, "link", "set", "cable", "up")

    def environment(self, home: Path | None = None) -> Mapping[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "RESNET_", "MLFLOW_"))}
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        state = {"RESNET_ABLATIONS_HOME": str(home), "RAY_ADDRESS": f"{HEAD_ADDRESS}:{PORT}"} if home else {}
        # The name of the machine stands for an address that neither namespace has.
        return {**kept, "PATH": path, "HOME": str(self.folder), "GLOO_SOCKET_IFNAME": "cable", **state}

    def serve(self, home: Path) -> str:
        """Start an MLflow server for a database on the head; return its address."""
        port = 5000 + len(self.servers)
        server = ["mlflow", "server", f"--backend-store-uri={database(home)}", f"--artifacts-destination={home}/artifacts"]
        server += [f"--host={HEAD_ADDRESS}", f"--port={port}", "--workers=1"]
        command = ["ip", "netns", "exec", self.head]
        with (self.folder / f"mlflow{port}.log").open("wb") as log:
            started = subprocess.Popen([*command, *server], env=self.environment(), stdout=log, stderr=log, start_new_session=True)
        self.servers.append(started)
        asked = f"import urllib.request; urllib.request.urlopen('http://{HEAD_ADDRESS}:{port}/health', timeout=2)"
        wait_until(lambda: can_run(*command, sys.executable, "-c", asked), 120)
        return f"http://{HEAD_ADDRESS}:{port}"

    def submit(self, home: Path) -> "subprocess.Popen[str]":
        """Start the study on the head."""
        shared = ["--storage", f"file://{home}/checkpoints", "--tracking-uri", self.serve(home), "--set", f"optim.epochs={EPOCHS}"]
        return subprocess.Popen(
            ["ip", "netns", "exec", self.head, sys.executable, *STUDY, *shared],
            cwd=PROJECT,
            env=self.environment(home),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def close(self) -> None:
        for session in (*self.sessions, *self.servers):
            with suppress(ProcessLookupError):
                os.killpg(session.pid, signal.SIGTERM)
        for name in (self.head, self.node):
            left = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True, check=True).stdout.split()
            for process in map(int, left):
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
            ip("netns", "delete", name)
        for session in (*self.sessions, *self.servers):
            session.wait()
        shutil.rmtree(self.ray, ignore_errors=True)


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)


def can_run(*command: str) -> bool:
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    if os.getuid() or not shutil.which("ip") or not can_run("ip", "netns", "add", "probe"):
        pytest.skip("network namespaces cannot be made here")
    allowed = can_run("ip", "netns", "exec", "probe", "unshare", "--mount", "true")
    ip("netns", "delete", "probe")
    if not allowed:
        pytest.skip("network namespaces cannot be entered here")
    hosts = Hosts(tmp_path_factory.mktemp("hosts"))
    try:
        yield hosts
    finally:
        hosts.close()


def database(home: Path) -> str:
    return f"sqlite:///{home}/mlflow.db"


def epochs_saved(home: Path) -> list[int]:
    return [int(path.name[6:12]) for path in home.glob("checkpoints/*/epoch-*.pt")]


def records(home: Path) -> dict[str, tuple[str, list[tuple[int, float]]]]:
    """Return the outcome and the learning curve of each run, by name. A name stands for one run."""
    client = MlflowClient(database(home))
    (experiment,) = (each for each in client.search_experiments() if each.name == "shortcuts")
    runs = [run for run in client.search_runs([experiment.experiment_id]) if "fingerprint" in run.data.tags]
    curves = {
        run.data.tags["fingerprint"]: (
            run.data.tags["outcome"],
            [(metric.step, metric.value) for metric in client.get_metric_history(run.info.run_id, "train/loss")],
        )
        for run in runs
    }
    assert len(curves) == len(runs), "a run is recorded twice"
    return curves


@pytest.fixture(scope="module")
def undisturbed(hosts: Hosts, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, list[tuple[int, float]]]]:
    home = tmp_path_factory.mktemp("undisturbed")
    study = hosts.submit(home)
    output, _ = study.communicate(timeout=400)
    assert study.returncode == 0, output
    return records(home)


@pytest.mark.parametrize("seconds", [20, 180])
def test_a_partition_neither_loses_nor_doubles_anything(
    hosts: Hosts, undisturbed: dict[str, tuple[str, list[tuple[int, float]]]], tmp_path: Path, seconds: float
) -> None:
    study = hosts.submit(tmp_path)
    wait_until(lambda: study.poll() is not None or max(epochs_saved(tmp_path), default=0) >= 5, 200)
    assert study.poll() is None, study.communicate()[0]
    hosts.pull()
    time.sleep(seconds)
    hosts.plug()
    deadline = time.monotonic() + 500
    while study.poll() is None and time.monotonic() < deadline:
        if not hosts.has_node():  # the head took the machine for dead, and its Ray ended when it heard so
            hosts.join()
        time.sleep(1)
    if study.poll() is None:
        study.kill()
    output, _ = study.communicate()
    assert study.returncode == 0, output
    assert records(tmp_path) == undisturbed
    assert [steps for _, steps in undisturbed.values()]
    assert all([step for step, _ in curve] == list(range(1, EPOCHS + 1)) for _, curve in undisturbed.values())
