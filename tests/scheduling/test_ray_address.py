"""Tests of RAY_ADDRESS: an address without a cluster that can be joined is rejected in one line, within seconds."""

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import ray

from ablations.engine.environment import ray_processes
from ablations.engine.environment.ray_processes import RayNode
from ablations.engine.scheduling import connection
from ablations.engine.scheduling.connection import check_address
from resnet_core import ConfigError
from tests.helpers.local_service import free_port
from tests.helpers.project import PROJECT
from tests.helpers.ray_jobs import wait_until

MAX_SECONDS = 20.0
"""Ray itself would try for longer."""
STUDY = ["ablations/shortcuts.py", "--preset", "smoke", "--seeds", "1", "--levels", "shortcut=A", "depth=8"]


@contextmanager
def server(says: bytes | None) -> Iterator[str]:
    """Something that is no Ray: it says this to everybody, or nothing at all."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            while True:
                try:
                    client, _ = listener.accept()
                except OSError:
                    return
                if says is not None:
                    client.sendall(says)
                    client.close()
                else:
                    clients.append(client)

        clients: list[socket.socket] = []
        threading.Thread(target=answer, daemon=True).start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)
    for client in clients:
        client.close()


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("foo", "not an address"),
        ("127.0.0.1", "not an address"),
        ("127.0.0.1:port", "not an address"),
        ("127.0.0.1:99999", "not an address"),
        (":6379", "not an address"),
        ("http://127.0.0.1:8265", "RAY_API_SERVER_ADDRESS"),
        ("ray://127.0.0.1:10001", "Ray Client is not supported"),
        ("no-such-host.invalid:6379", "no Ray listens there"),
    ],
)
def test_an_invalid_address_is_rejected_with_its_reason(address: str, reason: str) -> None:
    with pytest.raises(ConfigError) as error:
        check_address(address)
    assert str(error.value).startswith(f"RAY_ADDRESS={address}: ")
    assert reason in str(error.value)
    assert str(error.value).endswith(
        "accepted: HOST:PORT of a Ray head, as in 127.0.0.1:6379, or local, to start a Ray for this command alone"
    )


@pytest.mark.parametrize("says", [None, b"HTTP/1.1 400 Bad Request\r\n\r\n", b"SSH-2.0-OpenSSH_9.6\r\n"])
def test_a_server_other_than_ray_is_rejected_within_seconds(says: bytes | None) -> None:
    began = time.monotonic()
    with server(says) as address, pytest.raises(ConfigError, match=rf"^RAY_ADDRESS={address}: no Ray (listens|answers) there"):
        check_address(address)
    assert time.monotonic() - began < MAX_SECONDS


def test_a_cluster_of_which_this_machine_is_not_a_node_is_rejected(cluster: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "ANSWER_TIMEOUT_SECONDS", 60)  # on a busy machine
    assert check_address(cluster) == cluster
    assert [node.private for node in ray_processes.nodes_here() if node.head == cluster] == [True]
    port = cluster.rpartition(":")[2]
    assert check_address(f"localhost:{port}") == cluster  # Ray listens on the machine's own address
    monkeypatch.setattr(ray_processes, "nodes_here", list)
    with pytest.raises(ConfigError, match=r"this machine is not a node of that cluster.*ray job submit"):
        check_address(cluster)


def test_auto_is_the_newest_ray_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "_answer_problem", lambda head: f"{head} was asked")
    for heads, message in (([], "no Ray runs on this machine"), (["10.0.0.2:1", "10.0.0.3:2"], "10.0.0.2:1 was asked")):
        nodes = [RayNode(head, user=0, started=0, private=True) for head in heads]
        monkeypatch.setattr(ray_processes, "nodes_here", lambda nodes=nodes: nodes)
        with pytest.raises(ConfigError, match=rf"^RAY_ADDRESS=auto: {message}; accepted"):
            check_address("auto")


def test_a_ray_on_loopback_stays_there_when_it_is_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the variable, Ray would look for it at the machine's own address, for a minute."""
    monkeypatch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "")
    monkeypatch.delenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER")
    monkeypatch.setattr(connection, "_answer_problem", lambda head: "")
    monkeypatch.setattr(connection, "_accepts_token", lambda head: True)
    monkeypatch.setattr(ray_processes, "nodes_here", lambda: [RayNode("127.0.0.1:7000", user=0, started=0, private=False)])
    assert check_address("localhost:7000") == "127.0.0.1:7000"
    assert os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] == "0"


def test_a_head_that_refuses_no_token_is_joined_though_its_dashboard_has_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray.util.state

    asked: list[str | None] = []

    def refuse(address: str) -> None:
        raise ray.exceptions.AuthenticationError("no such token")

    def wait(address: str) -> None:
        asked.extend((address, os.environ.get("RAY_ADDRESS")))
        time.sleep(1)
        raise ConnectionError("no dashboard")

    monkeypatch.setenv("RAY_ADDRESS", "auto")
    monkeypatch.setattr(connection, "ANSWER_TIMEOUT_SECONDS", 0.1)
    monkeypatch.setattr(ray.util.state, "StateApiClient", wait)
    assert connection._accepts_token("10.0.0.1:6379")
    wait_until(lambda: asked, 30)
    assert asked == ["10.0.0.1:6379", None]
    assert os.environ["RAY_ADDRESS"] == "auto"
    monkeypatch.setattr(connection, "ANSWER_TIMEOUT_SECONDS", 60)
    monkeypatch.setattr(ray.util.state, "StateApiClient", refuse)
    assert not connection._accepts_token("10.0.0.1:6379")


@pytest.mark.slow
@pytest.mark.parametrize(
    "command", [STUDY, [*STUDY, "--plan"], ["-m", "ablations.engine", "doctor"]], ids=["study", "plan", "doctor"]
)
def test_every_command_rejects_a_wrong_address_in_one_line(tmp_path: Path, command: list[str]) -> None:
    address = f"127.0.0.1:{free_port()}"
    environment = {**os.environ, "RESNET_ABLATIONS_HOME": str(tmp_path / "home"), "RAY_ADDRESS": address}
    done = subprocess.run(
        [sys.executable, *command], cwd=PROJECT, env=environment, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith(f"error: RAY_ADDRESS={address}: no Ray listens there")
    assert done.stderr.count("\n") == 1
    assert not done.stdout
    assert not (tmp_path / "home" / "mlflow.db").exists()


@pytest.mark.slow
def test_a_ray_of_its_own_prestarts_no_workers_and_ends_in_the_background(tmp_path: Path, cluster: str) -> None:
    """Ray would wait for one process per CPU, 0.6 s of processor time each, which no trial could use."""
    code = """
import threading, psutil, ray
from ablations.engine.scheduling import connection
connection.connect()
processes = psutil.Process().children(recursive=True)
print("processes:", *[each.cmdline()[:1] for each in processes])
connection.end_own_ray()
print("still there:", any(each.is_running() for each in processes))
for thread in threading.enumerate():
    if thread.name == "end of Ray":
        thread.join()
print("gone:", not ray.is_initialized(), not psutil.wait_procs(processes, timeout=60)[1])
"""
    environment = {**os.environ, "RAY_ADDRESS": "local", "RESNET_ABLATIONS_HOME": str(tmp_path)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, cwd=PROJECT, capture_output=True, text=True, check=False, timeout=180)
    assert "raylet" in done.stdout, done.stderr
    assert "ray::" in done.stdout
    assert "IDLE" not in done.stdout
    assert done.stdout.endswith("still there: True\ngone: True True\n")
    connection.end_own_ray()
    assert ray.is_initialized(), "another program's Ray is not touched"
