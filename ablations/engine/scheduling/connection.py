"""Joining a Ray cluster, or starting Ray on this machine."""

import gc
import logging
import os
import threading
from contextlib import suppress
from pathlib import Path

import psutil

from ablations.engine.environment import private_files, ray_processes, signals
from ablations.engine.environment.console import silent_stderr
from ablations.engine.environment.network import is_loopback
from resnet_core.fields import ConfigError, reject

ANSWER_TIMEOUT_SECONDS = 5
"""Timeout for the answer of a Ray head, in seconds."""
HEALTH_CHECK = "/grpc.health.v1.Health/Check"
"""Call of the health check that the gRPC project defines for all servers."""
MAX_PORT = 65_535
ACCEPTED = "accepted: HOST:PORT of a Ray head, as in 127.0.0.1:6379, or local, to start a Ray for this command alone"

_is_own = False
"""True while this process has a Ray that `connect` started."""


def import_ray() -> None:
    """Import Ray, which takes most of a second."""
    import ray  # noqa: F401


def connect() -> None:
    """Join the cluster that RAY_ADDRESS names, else start a Ray here that ends with this process.

    Raises:
        ConfigError: no Ray answers at RAY_ADDRESS, it refuses this process, or there is no private folder for its files.
    """
    import ray

    # Workers' output stays in Ray's logs: users see the reports instead.
    if not ray.is_initialized():
        address = os.environ.get("RAY_ADDRESS") or "local"
        with signals.deferred_signals():  # Ray replaces the handler of SIGTERM, twice
            if address == "local":
                _start()
            else:
                _join(address)
    # Tune logs a traceback for each crash of a process, which the listener reports anyway.
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)


def end_own_ray() -> None:
    """End a Ray that `connect` has started, in the background: it takes two seconds, in which a report can be made."""
    global _is_own
    if _is_own:
        import ray

        _is_own = False
        gc.collect()  # Tune leaves references to Ray's objects in cycles, which must not be freed while Ray ends
        with suppress(RuntimeError):  # no thread can be started; Ray then ends with this process
            threading.Thread(target=ray.shutdown, name="end of Ray").start()


def dashboard_address() -> str:
    """Return the `host:port` of the dashboard of the cluster that this process has joined; empty if it has none."""
    import ray

    context = ray.init(ignore_reinit_error=True, log_to_driver=False, logging_level=logging.ERROR)
    return context.dashboard_url or ""


def _start() -> None:
    import ray

    global _is_own

    private_files.protect_token(create=os.environ.get("RAY_AUTH_MODE", "token").lower() == "token")
    folder, _ = private_files.make_ray_folder()  # the file that locks it stays open as long as this process lives
    try:
        # Without the dashboard, which takes 4 s of processor time and which a cluster and the service have.
        with ray_processes.no_workers_ahead():
            ray.init("local", include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR, _temp_dir=str(folder))
    except Exception as error:  # Ray raises many types of errors here, and none of them names the cause
        raise _start_error(error, folder) from error
    _is_own = True
    if os.environ.get(ray_processes.LOOPBACK_VARIABLE) == "0":
        ray_processes.warn_if_reachable(psutil.Process())


def _start_error(error: Exception, folder: Path) -> ConfigError:
    reason, logs = str(error).partition("\n")[0], folder / "session_latest" / "logs"
    return ConfigError(
        f"Ray does not start on this machine ({reason}). Possible causes: too little memory, too little space in {folder} or "
        f"in shared memory (/dev/shm), too few open files (ulimit -n). Ray's logs are in {logs}. "
        "RAY_ADDRESS names a cluster to use instead"
    )


def _join(address: str) -> None:
    private_files.protect_token(create=False)
    head = check_address(address)
    import ray  # after the check, which sets a variable that Ray reads on import
    from ray.exceptions import RayError

    if is_loopback(head.rpartition(":")[0]) and not is_loopback(ray.util.get_node_ip_address()):
        name = ray_processes.LOOPBACK_VARIABLE
        raise _rejected(address, f"that Ray is on loopback, and this program imported Ray without {name}=0")
    try:
        ray.init(head, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RayError, RuntimeError) as error:
        raise _rejected(address, f"Ray does not answer ({str(error).partition(chr(10))[0]})") from error


def check_address(address: str) -> str:
    """Check an address within seconds, for which `ray.init` would take up to a minute; return the `host:port` of the head.

    Raises:
        ConfigError: no Ray answers there, it refuses this process, or this machine is not a node of that cluster.
    """
    if address.startswith("ray://"):
        raise _rejected(address, "Ray Client is not supported; a study runs on a node of its cluster: ray job submit")
    if "://" in address:
        raise _rejected(address, "not the address of a Ray head; that of the Jobs API goes into RAY_API_SERVER_ADDRESS")
    heads = [node.head for node in ray_processes.nodes_here()]
    if address == "auto" and not heads:
        raise _rejected(address, "no Ray runs on this machine")
    host, port = _parse(address) if address != "auto" else _parse(heads[0])
    here = next((head for head in heads if head.endswith(f":{port}")), None)
    # Ray on this machine usually listens on the machine's own address, and loopback stands for that.
    head = here if here and is_loopback(host) else f"{host}:{port}"
    if is_loopback(head.rpartition(":")[0]):
        os.environ.setdefault(ray_processes.LOOPBACK_VARIABLE, "0")  # or Ray would replace the address
    tls = os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true")  # only `ray.init` has the certificates
    if not tls and (reason := _answer_problem(head)):
        raise _rejected(address, reason)
    if not here:
        raise _rejected(address, "this machine is not a node of that cluster; ray job submit runs a study there")
    if not tls and not _accepts_token(head):
        raise _rejected(address, _token_problem())
    return head


def _parse(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) <= MAX_PORT:
        raise _rejected(address, "not an address")
    return host, int(port)


def _answer_problem(address: str) -> str:
    """Return why the server at `host:port` is not a Ray head; empty if it may be one.

    Ray's head answers the standard health check of gRPC servers, whoever asks.
    """
    import grpc

    with grpc.insecure_channel(address, options=(("grpc.enable_http_proxy", 0),)) as channel:
        try:
            channel.unary_unary(HEALTH_CHECK)(b"", timeout=ANSWER_TIMEOUT_SECONDS)
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                return f"no Ray answers there within {ANSWER_TIMEOUT_SECONDS} s"
            if error.code() is not grpc.StatusCode.UNIMPLEMENTED:
                return "no Ray listens there; make up starts one, and so does ray start --head"
    return ""


def _accepts_token(address: str) -> bool:
    """Return whether the Ray at `host:port` accepts this process's token, or its lack of one. `ray.init` would try for 20 s."""
    from ray.exceptions import AuthenticationError
    from ray.util.state import StateApiClient

    refused = threading.Event()

    def ask() -> None:
        try:
            StateApiClient(address)  # asks the head for the address of its dashboard, and the dashboard nothing
        except AuthenticationError:
            refused.set()
        except ConnectionError:  # after 40 s, if the dashboard has failed; the head refuses a token at once
            pass

    others = {name: os.environ.pop(name) for name in ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS") if name in os.environ}
    asking = threading.Thread(target=ask, daemon=True)
    try:
        with silent_stderr():  # Ray's C++ core would write what the exception says
            asking.start()
            asking.join(ANSWER_TIMEOUT_SECONDS)
    finally:
        os.environ.update(others)  # Ray would prefer them to the argument
    return not refused.is_set()


def _token_problem() -> str:
    if os.environ.get("RAY_AUTH_MODE", "").lower() == "token" and private_files.ray_token():
        return "Ray refuses the token of this user, which is RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token"
    return "this Ray asks for a token; export RAY_AUTH_MODE=token, with the token in ~/.ray/auth_token or RAY_AUTH_TOKEN"


def _rejected(address: str, reason: str) -> ConfigError:
    return reject("RAY_ADDRESS", address, f"{reason}; {ACCEPTED}")


def check_reachable(option: str, value: str) -> None:
    """Raise ConfigError for a local path on a cluster of several nodes, each of which would see another folder."""
    from ablations.engine.scheduling.capacity import is_one_node

    if "://" in value or is_one_node():
        return
    raise reject(option, value, "a local path on several nodes; set s3://…, gs://…, http://…, or file:///… if all nodes share it")
