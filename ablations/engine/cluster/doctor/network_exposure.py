"""Checks of the network exposure: on which addresses Ray and MLflow listen, and whether they ask for a token or password."""

import ipaddress
import os
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from http.client import HTTPException
from pathlib import PurePath

import psutil

from ablations.engine.cluster.doctor.check import Check, failed, join_names, not_checked, passed
from ablations.engine.environment.network import is_loopback, parse_ip

ANSWER_TIMEOUT_SECONDS = 5.0
"""Time limit for a server to answer a probe."""
MLFLOW_PROBE_PATH = "/api/2.0/mlflow/experiments/get?experiment_id=0"
RAY_PROBE_PATH = "/api/jobs/"
RAY_PROGRAMS = ("raylet", "gcs_server", "dashboard", "autoscaler", "monitor", "ray::")
AUTHENTICATION_REMEDY = (
    "run ray get-auth-token --generate once, and set RAY_AUTH_MODE=token wherever Ray starts or is used; on a single machine, "
    "ablations up listens on loopback only"
)


@dataclass(frozen=True, kw_only=True)
class ListeningSocket:
    """A socket on which a process of Ray or MLflow listens."""

    program: str
    """`ray` or `mlflow`."""
    address: str
    port: int
    password: bool | None = None
    """True if MLflow asks for a password; None: not tried, or no answer."""

    @property
    def loopback(self) -> bool:
        return is_loopback(self.address)


@dataclass(frozen=True, kw_only=True)
class NodeExposure:
    """Sockets and addresses by which other machines can reach a node."""

    sockets: Sequence[ListeningSocket]
    addresses: Sequence[str]
    """Addresses of the node's network interfaces."""
    token: bool
    """True if Ray's processes ask each other for a token."""

    @property
    def public_addresses(self) -> list[str]:
        """Publicly routable addresses of interfaces on which a socket listens."""
        bound = {parse_ip(socket.address) for socket in self.sockets}
        versions = {ip.version for ip in bound if ip.is_unspecified} | ({4} if ipaddress.IPv6Address("::") in bound else set())
        return [text for text in self.addresses if (ip := parse_ip(text)).is_global and (ip in bound or ip.version in versions)]


def measure() -> NodeExposure:
    """Return the exposure of the node of this process. Processes of other Ray clusters on this machine do not count."""
    sockets = {}
    for connection in psutil.net_connections("inet"):
        # Sockets of other users' processes have no process ID.
        if connection.status == psutil.CONN_LISTEN and connection.pid and connection.laddr:
            program = _program(connection.pid)
            address, port = connection.laddr.ip, connection.laddr.port
            if program and (program, address, port) not in sockets:
                password = requires_password(_local_url(address, port)) if program == "mlflow" else None
                sockets[program, address, port] = ListeningSocket(program=program, address=address, port=port, password=password)
    interfaces = psutil.net_if_addrs().values()
    addresses = [
        entry.address.partition("%")[0] for entries in interfaces for entry in entries if entry.family.name.startswith("AF_INET")
    ]
    return NodeExposure(sockets=list(sockets.values()), addresses=addresses, token=asks_for_token())


def asks_for_token() -> bool:
    """Return whether Ray's processes on this node ask each other for a token. They inherit this variable from `ray start`."""
    return os.environ.get("RAY_AUTH_MODE", "").lower() == "token"


def requires_password(url: str, path: str = MLFLOW_PROBE_PATH) -> bool | None:
    """Return whether a server refuses a request without credentials; None if it does not answer."""
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy could refuse in the server's place
    try:
        with direct.open(f"{url}{path}", timeout=ANSWER_TIMEOUT_SECONDS):
            return False
    except urllib.error.HTTPError as error:
        return error.code == HTTPStatus.UNAUTHORIZED
    except (OSError, ValueError, HTTPException):  # HTTPException: another protocol, such as gRPC
        return None


def evaluate_ports(exposures: Mapping[str, NodeExposure]) -> Check:
    """Return the verdict on the open ports of all nodes, by node name."""
    public = {node: addresses for node, exposure in exposures.items() if (addresses := exposure.public_addresses)}
    if public:
        shown = (f"{node} listens on {join_names(addresses)}" for node, addresses in public.items())
        remedy = (
            "give the nodes private addresses only, or listen on loopback only (ablations up), and reach them through an SSH tunnel"
        )
        return failed("ports", f"reachable from the internet: {join_names(shown)}", remedy)
    mlflow = _sockets(exposures, "mlflow")
    unprotected = [f"{node}:{socket.port}" for node, socket in mlflow if not socket.loopback and not socket.password]
    if unprotected:
        remedy = "start it with ablations mlflow, which asks for a password"
        return failed("ports", f"MLflow is open without a password on {join_names(unprotected)}", remedy)
    beyond = {node for node, socket in [*_sockets(exposures, "ray"), *mlflow] if not socket.loopback}
    if not beyond:
        return passed("ports", "Ray and MLflow listen on loopback only")
    return passed("ports", f"Ray and MLflow listen on private addresses only ({join_names(beyond)})")


def evaluate_token(exposures: Mapping[str, NodeExposure], job_server: bool | None) -> Check:
    """Return the verdict on Ray's token authentication.

    Args:
        exposures: exposure of all nodes, by node name.
        job_server: whether the dashboard's job server refuses requests without a token; None: it does not answer.
    """
    without = [node for node, exposure in exposures.items() if not exposure.token]
    if not without and job_server is not False:
        answer = "refuses requests without one" if job_server else "does not answer"
        return passed("authentication", f"Ray asks for a token; the job server {answer}")
    if all(socket.loopback for _, socket in _sockets(exposures, "ray")):
        reason = "Ray asks for no token and listens on loopback only: every user of this machine can run code in your name"
        return not_checked("authentication", reason)
    where = f"Ray on {join_names(without)}" if without else "the job server"
    return failed("authentication", f"{where} asks for no token: whoever reaches its ports can run any code", AUTHENTICATION_REMEDY)


def _sockets(exposures: Mapping[str, NodeExposure], program: str) -> list[tuple[str, ListeningSocket]]:
    return [(node, socket) for node, exposure in exposures.items() for socket in exposure.sockets if socket.program == program]


def _program(pid: int) -> str:
    """Return `ray` for a process of this process's own cluster, `mlflow` for an MLflow server, and otherwise an empty string."""
    try:
        process = psutil.Process(pid)
        words, parent = process.cmdline(), process.parent()
        line = " ".join(words)
        if any(map(_names_mlflow, words)) and ("server" in line or "uvicorn" in line):
            return "mlflow"
        family = f"{line} {' '.join(parent.cmdline()) if parent else ''}"
    except psutil.Error:  # the process has ended or belongs to another user
        return ""
    return "ray" if _session() in family and any(name in line for name in RAY_PROGRAMS) else ""


def _names_mlflow(word: str) -> bool:
    """Return whether a word of a command line is the program or a module of MLflow. An environment may be in a folder `mlflow`."""
    return not word.startswith("-") and (PurePath(word).name == "mlflow" or word.partition(".")[0] == "mlflow")


def _session() -> str:
    """Return the name of this cluster's session. Each of its processes, or the parent, has it in the command line."""
    import ray

    return str(ray.get_runtime_context().get_session_name())


def _local_url(address: str, port: int) -> str:
    host = "127.0.0.1" if parse_ip(address).is_unspecified else address
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"
