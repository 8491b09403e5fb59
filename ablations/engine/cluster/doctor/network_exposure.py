"""What a node's processes of Ray and MLflow listen on, and who may talk to them."""

import ipaddress
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus

import psutil

from ablations.engine.cluster.doctor.check import Check, listed, ok, unchecked, wrong
from ablations.engine.scheduling.ray_internals.cluster import TOKEN_CHECK, asks_for_token
from ablations.engine.scheduling.ray_internals.compatibility import is_available

ANSWER_SECONDS = 5.0
MLFLOW_QUESTION = "/api/2.0/mlflow/experiments/get?experiment_id=0"
RAY_QUESTION = "/api/jobs/"
RAY_PROGRAMS = ("raylet", "gcs_server", "dashboard", "autoscaler", "monitor", "ray::")
AUTHENTICATION = (
    "export RAY_AUTH_MODE=token and ray get-auth-token --generate before every ray start and command; one machine: make up"
)


@dataclass(frozen=True, kw_only=True)
class Socket:
    """What a process listens on."""

    program: str
    """`ray` or `mlflow`."""
    address: str
    port: int
    password: bool | None = None
    """Whether MLflow asks for one; None: not tried, or it does not say."""

    @property
    def loopback(self) -> bool:
        return _ip(self.address).is_loopback

    @property
    def everywhere(self) -> bool:
        return _ip(self.address).is_unspecified


@dataclass(frozen=True, kw_only=True)
class Exposure:
    """How a node can be reached."""

    sockets: Sequence[Socket]
    addresses: Sequence[str]
    """Of its network interfaces."""
    token: bool
    """Whether Ray's processes ask each other for a token."""

    @property
    def public(self) -> list[str]:
        """Addresses of interfaces that the world can route to, and sockets listen on."""
        bound = {_ip(socket.address) for socket in self.sockets}
        versions = {ip.version for ip in bound if ip.is_unspecified} | ({4} if ipaddress.IPv6Address("::") in bound else set())
        return [text for text in self.addresses if (ip := _ip(text)).is_global and (ip in bound or ip.version in versions)]


def measure() -> Exposure:
    """Of the node of this process, which is one of Ray's: processes of other clusters on this machine do not count."""
    sockets = {}
    for connection in psutil.net_connections("inet"):
        # Of processes of other users there is no number.
        if connection.status == psutil.CONN_LISTEN and connection.pid and connection.laddr:
            program = _program(connection.pid)
            address, port = connection.laddr.ip, connection.laddr.port
            if program and (program, address, port) not in sockets:
                password = asks_for_password(_local_url(address, port)) if program == "mlflow" else None
                sockets[program, address, port] = Socket(program=program, address=address, port=port, password=password)
    interfaces = psutil.net_if_addrs().values()
    addresses = [
        entry.address.partition("%")[0] for entries in interfaces for entry in entries if entry.family.name.startswith("AF_INET")
    ]
    return Exposure(sockets=list(sockets.values()), addresses=addresses, token=bool(asks_for_token()))


def asks_for_password(url: str, question: str = MLFLOW_QUESTION) -> bool | None:
    """Whether a server refuses who does not say who it is; None if it does not answer."""
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy would refuse in the server's name
    try:
        with direct.open(f"{url}{question}", timeout=ANSWER_SECONDS):
            return False
    except urllib.error.HTTPError as error:
        return error.code == HTTPStatus.UNAUTHORIZED
    except (OSError, ValueError):
        return None


def judge_ports(exposures: Mapping[str, Exposure]) -> Check:
    """Of all nodes, by name."""
    public = {node: addresses for node, exposure in exposures.items() if (addresses := exposure.public)}
    if public:
        shown = (f"{node} listens on {listed(addresses)}" for node, addresses in public.items())
        remedy = "give nodes private addresses only, or bind to loopback (make up), and reach them by an SSH tunnel"
        return wrong("ports", f"the world can route to them: {listed(shown)}", remedy)
    mlflow = _sockets(exposures, "mlflow")
    bare = [f"{node}:{socket.port}" for node, socket in mlflow if not socket.loopback and not socket.password]
    if bare:
        return wrong(
            "ports", f"MLflow is open without a password on {listed(bare)}", "python -m ablations.engine mlflow runs it with one"
        )
    beyond = {node for node, socket in [*_sockets(exposures, "ray"), *mlflow] if not socket.loopback}
    if not beyond:
        return ok("ports", "those of Ray and MLflow are open on loopback only")
    return ok("ports", f"open beyond loopback on {listed(beyond)}, but on private addresses only")


def judge_token(exposures: Mapping[str, Exposure], job_server: bool | None) -> Check:
    """Whether Ray asks for a token.

    Args:
        exposures: of all nodes, by name.
        job_server: whether that of the dashboard refuses who has none; None if there is none.
    """
    known = is_available(TOKEN_CHECK)  # nodes have the same Ray as this process
    without = [node for node, exposure in exposures.items() if known and not exposure.token]
    if not without and job_server is not False:
        return ok("authentication", f"token; the job server {'refuses who has none' if job_server else 'cannot be asked'}")
    if all(socket.loopback for _, socket in _sockets(exposures, "ray")):
        why = "no token; Ray listens on loopback only, so whoever logs in to this machine can run any code in your name"
        return unchecked("authentication", why)
    where = f"Ray on {listed(without)}" if without else "the job server"
    return wrong("authentication", f"{where} asks for no token: who reaches its ports can run any code", AUTHENTICATION)


def _sockets(exposures: Mapping[str, Exposure], program: str) -> list[tuple[str, Socket]]:
    return [(node, socket) for node, exposure in exposures.items() for socket in exposure.sockets if socket.program == program]


def _program(pid: int) -> str:
    """`ray` for a process of this process's own cluster, `mlflow` for a server, else nothing."""
    try:
        process = psutil.Process(pid)
        line, parent = " ".join(process.cmdline()), process.parent()
        if "mlflow" in line and ("server" in line or "uvicorn" in line):
            return "mlflow"
        family = f"{line} {' '.join(parent.cmdline()) if parent else ''}"
    except psutil.Error:  # gone, or another user's
        return ""
    return "ray" if _session() in family and any(name in line for name in RAY_PROGRAMS) else ""


def _session() -> str:
    """Name of this cluster's session, which stands in the command lines of its processes, or of their parents."""
    import ray

    return str(ray.get_runtime_context().get_session_name())


def _local_url(address: str, port: int) -> str:
    host = "127.0.0.1" if _ip(address).is_unspecified else address
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def _ip(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    ip = ipaddress.ip_address(text)
    return getattr(ip, "ipv4_mapped", None) or ip
