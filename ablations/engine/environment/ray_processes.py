"""Ray's processes on this machine, as the process list shows them, and the variable that keeps their ports on loopback."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from ablations.engine.environment.network import is_loopback
from ablations.engine.environment.private_files import PREFIX

LOOPBACK_VARIABLE = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""Environment variable that Ray names on macOS and Windows only. `0` keeps Ray's ports on loopback on Linux, too."""

PRESTART_VARIABLE = "RAY_prestart_worker_first_driver"
"""Environment variable of a setting of Ray: with `0`, it prestarts no workers. By default `ray.init` waits for one per CPU, which
Tune's trials, having environment variables of their own, cannot use."""


@dataclass(frozen=True)
class RayNode:
    """A raylet on this machine: the process that makes it a node of a cluster."""

    head: str
    """`host:port` of the cluster's head."""
    user: int
    """ID of the user who started the node."""
    started: float
    """Start of the raylet, in seconds since the epoch."""
    private: bool
    """True if the cluster is that of a program, which started it by `ray.init`, or of a local service; False after `ray start`."""


@contextmanager
def no_workers_ahead() -> Iterator[None]:
    """Context in which a Ray that starts prestarts no workers, unless the user has set the variable."""
    chosen = PRESTART_VARIABLE in os.environ
    os.environ.setdefault(PRESTART_VARIABLE, "0")
    try:
        yield
    finally:
        if not chosen:
            del os.environ[PRESTART_VARIABLE]


def nodes_here() -> list[RayNode]:
    """Return the nodes of Ray clusters on this machine, the newest first."""
    nodes = []
    for process in psutil.process_iter(["name"]):
        with suppress(psutil.Error):  # it has ended, or belongs to another user on a machine that hides processes
            if process.info["name"] != "raylet":
                continue
            options = _options(process.cmdline())
            if head := options.get("--gcs-address"):
                private = f"/{PREFIX}" in options.get("--temp_dir", "") or _ends_with_its_parent(process)
                nodes.append(RayNode(head, process.uids().effective, process.create_time(), private))
    return sorted(nodes, key=lambda node: -node.started)


def own_cluster_address() -> str | None:
    """Return the `host:port` of the newest cluster of which `ray start` made this machine a node, as this user or as root.

    None if there is none. A cluster of another user is not trusted: a driver executes what its cluster sends.
    """
    nodes = [node for node in nodes_here() if not node.private]
    if own := [node for node in nodes if node.user in (0, os.geteuid())]:
        return own[0].head
    if nodes:
        message = f"the cluster at {nodes[0].head} belongs to another user and is ignored; RAY_ADDRESS=HOST:PORT joins a cluster."
        print(f"Ray: {message}", file=sys.stderr)
    return None


def autoscaler_config_file(head: str) -> Path | None:
    """Return the cluster file of the autoscaler of the head at `host:port`; None if none runs on this machine.

    Ray stores no copy of the file. A job's driver runs on the same machine as the autoscaler, whose command line names the file.
    """
    for process in psutil.process_iter(["cmdline"]):
        options = _options(process.info["cmdline"] or [])
        if options.get("--gcs-address") == head and "--autoscaling-config" in options:
            return Path(options["--autoscaling-config"]).expanduser()
    return None


def warn_if_reachable(program: psutil.Process) -> None:
    """Print one line if the Ray that a program has started on loopback listens on other addresses, too."""
    if ports := sorted(set(_open_ports(program))):
        shown = ", ".join(map(str, ports))
        print(f"Ray: {LOOPBACK_VARIABLE}=0 has no effect; other machines may reach the ports {shown}.", file=sys.stderr)


def _open_ports(program: psutil.Process) -> Iterator[int]:
    for process in program.children(recursive=True):
        with suppress(psutil.Error):
            for connection in process.net_connections("tcp") if process.name() in ("gcs_server", "raylet") else ():
                if connection.status == psutil.CONN_LISTEN and not is_loopback(connection.laddr.ip):
                    yield connection.laddr.port


def _options(command: list[str]) -> dict[str, str]:
    """Return the options of a command line of the form `--name=value`."""
    return dict(word.partition("=")[::2] for word in command if word.startswith("--"))


def _ends_with_its_parent(raylet: psutil.Process) -> bool:
    """Return whether a Python program other than `ray start --block` is a raylet's parent. `ray start` leaves it to the system."""
    parent = raylet.parent()
    words = parent.cmdline() if parent else []
    return bool(words) and "python" in Path(words[0]).name and "start" not in words
