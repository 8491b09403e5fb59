"""Joining a Ray cluster, or starting Ray on this machine."""

import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ablations.engine.environment import private_files, signals
from ablations.engine.scheduling.ray_internals import cluster
from ablations.engine.scheduling.ray_internals.compatibility import is_available
from resnet_core.fields import ConfigError, reject

if TYPE_CHECKING:
    import grpc

ANSWER_TIMEOUT_SECONDS = 5.0
"""Timeout for the answer of a Ray head, in seconds."""
ACCEPTED = "accepted: HOST:PORT of a Ray head, as in 127.0.0.1:6379, or local, to start a Ray for this command alone"


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
        cluster.keep_own_signal_handlers()
        address = os.environ.get("RAY_ADDRESS") or "local"
        with signals.deferred_signals():  # if Ray is interrupted while it starts, it crashes when its process ends
            if address == "local":
                _start()
            else:
                _join(address)
    cluster.shorten_messages(lambda sentence: print(f"Ray: {sentence}", file=sys.stderr))
    # Tune logs a traceback for each crash of a process, which the listener reports anyway.
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)


def dashboard_address() -> str:
    """Return the `host:port` of the dashboard of the cluster that this process has joined; empty if it has none."""
    import ray

    context = ray.init(ignore_reinit_error=True, log_to_driver=False, logging_level=logging.ERROR)
    return context.dashboard_url or ""


def _start() -> None:
    import ray

    private_files.protect_token(create=os.environ.get("RAY_AUTH_MODE", "token").lower() == "token")
    folder, _ = private_files.make_ray_folder()  # the file that locks it stays open as long as this process lives
    try:
        # Without the dashboard, which takes 4 s of processor time and which a cluster and the service have.
        ray.init("local", include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR, _temp_dir=str(folder))
    except Exception as error:  # Ray raises many types of errors here, and none of them names the cause
        raise _start_error(error, folder) from error


def _start_error(error: Exception, folder: Path) -> ConfigError:
    reason, logs = str(error).partition("\n")[0], folder / "session_latest" / "logs"
    return ConfigError(
        f"Ray does not start on this machine ({reason}). Possible causes: too little memory, too little space in {folder} or "
        f"in shared memory (/dev/shm), too few open files (ulimit -n). Ray's logs are in {logs}. "
        "RAY_ADDRESS names a cluster to use instead"
    )


def _join(address: str) -> None:
    import ray
    from ray.exceptions import RayError

    private_files.protect_token(create=False)
    check_address(address)
    try:
        ray.init(address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RayError, RuntimeError) as error:
        raise _rejected(address, f"Ray does not answer ({str(error).partition(chr(10))[0]})") from error


def check_address(address: str) -> None:
    """Check an address within seconds; `ray.init` would try for minutes.

    Raises:
        ConfigError: no Ray answers there, it refuses this process, or this machine is not a node of that cluster.
    """
    if address.startswith("ray://"):
        raise _rejected(address, "Ray Client is not supported; a study runs on a node of its cluster: ray job submit")
    if "://" in address:
        raise _rejected(address, "not the address of a Ray head; that of the Jobs API goes into RAY_API_SERVER_ADDRESS")
    if not is_available(cluster.ADDRESS_CHECK):
        return
    try:
        host, port = cluster.resolve_address(address)  # Ray replaces a loopback address with this machine's own address
    except ConnectionError as error:  # of `auto`
        raise _rejected(address, "no Ray runs on this machine") from error
    except ValueError as error:
        raise _rejected(address, f"not an address ({error})") from error
    resolved = f"{host}:{port}"
    alias = "" if resolved == address else f" (Ray takes this address for {resolved})"
    if os.environ.get("RAY_USE_TLS", "0").lower() not in (
        "1",
        "true",
    ):  # with TLS, only `ray.init` has the certificates, so it checks
        token = private_files.ray_token() if os.environ.get("RAY_AUTH_MODE", "").lower() == "token" else None
        if reason := _problem(cluster.head_status(resolved, token, ANSWER_TIMEOUT_SECONDS), alias, token):
            raise _rejected(address, reason)
    if not any(other.endswith(f":{port}") for other in cluster.addresses_of_this_machine()):
        raise _rejected(address, f"this machine is not a node of that cluster{alias}; ray job submit runs a study there")


def _problem(status: "grpc.StatusCode", alias: str, token: str | None) -> str:
    """Return what is wrong with the answer of a head, in words for the user; empty if nothing is."""
    import grpc

    if status in (grpc.StatusCode.OK, grpc.StatusCode.UNIMPLEMENTED):  # a head without this call answers that it is not implemented
        return ""
    if status is grpc.StatusCode.UNAUTHENTICATED:
        if token:
            return "Ray refuses the token of this user, which is RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token"
        return "this Ray asks for a token; export RAY_AUTH_MODE=token, with the token in ~/.ray/auth_token or RAY_AUTH_TOKEN"
    if status is grpc.StatusCode.DEADLINE_EXCEEDED:
        return f"no Ray answers there within {ANSWER_TIMEOUT_SECONDS:.0f} s{alias}"
    return f"no Ray listens there{alias}; make up starts one, and so does ray start --head"


def _rejected(address: str, reason: str) -> ConfigError:
    return reject("RAY_ADDRESS", address, f"{reason}; {ACCEPTED}")


def check_reachable(option: str, value: str) -> None:
    """Raise ConfigError for a local path on a cluster of several nodes, each of which would see another folder."""
    from ablations.engine.scheduling.capacity import is_one_node

    if "://" in value or is_one_node():
        return
    raise reject(option, value, "a local path on several nodes; set s3://…, gs://…, http://…, or file:///… if all nodes share it")
