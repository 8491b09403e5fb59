"""Whether the Ray that RAY_ADDRESS names can be joined, in seconds: Ray itself would try for minutes."""

import os

import grpc
from ray._private import services

from ablations.engine.environment import private_files
from resnet_core.fields import ConfigError, reject

ANSWER_TIMEOUT_SECONDS = 5.0
ACCEPTED = "accepted: HOST:PORT of a Ray head, as in 127.0.0.1:6379, or local, to start a Ray for this command alone"
QUESTION = "/ray.rpc.NodeInfoGcsService/CheckAlive"
"""An RPC that a Ray head answers at once, and that wants the token where there is one."""


def check(address: str) -> None:
    """Raise ConfigError if no Ray answers at an address, if it refuses this process, or if this machine is no node of it."""
    if address.startswith("ray://"):
        raise refused(address, "Ray Client is not supported, a study runs on a node of its cluster: ray job submit")
    if "://" in address:
        raise refused(address, "this is no address of a Ray head; the Jobs API has RAY_API_SERVER_ADDRESS, for ray job submit")
    try:
        resolved = services.canonicalize_bootstrap_address(address)  # where Ray looks: of loopback it makes this machine's address
        host, port = services.extract_ip_port(resolved)
    except ConnectionError as error:  # of `auto`
        raise refused(address, "no Ray runs on this machine") from error
    except ValueError as error:
        raise refused(address, f"this is no address ({error})") from error
    shown = "" if resolved == address else f", which is {resolved} to Ray"
    _ask(address, f"{host}:{port}", shown)
    if not any(other.endswith(f":{port}") for other in services.find_gcs_addresses()):
        raise refused(address, f"this machine is no node of that cluster{shown}: ray job submit sends a study there")


def refused(address: str, reason: str) -> ConfigError:
    """Return the error that names an address and what is accepted."""
    return reject("RAY_ADDRESS", address, f"{reason}; {ACCEPTED}")


def _ask(address: str, resolved: str, shown: str) -> None:
    if os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true"):
        return  # Ray has the certificates, and finds out by itself
    token = private_files.ray_token() if os.environ.get("RAY_AUTH_MODE", "").lower() == "token" else None
    metadata = (("authorization", f"Bearer {token}"),) if token else ()
    with grpc.insecure_channel(resolved, options=(("grpc.enable_http_proxy", 0),)) as channel:
        try:
            channel.unary_unary(QUESTION)(b"", timeout=ANSWER_TIMEOUT_SECONDS, metadata=metadata)
        except grpc.RpcError as error:
            raise refused(address, _reason(error.code(), shown, token)) from error


def _reason(code: grpc.StatusCode, shown: str, token: str | None) -> str:
    if code is grpc.StatusCode.UNAUTHENTICATED:
        if token:
            return "Ray refuses the token of this user, which is RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token"
        return "this Ray asks for a token; export RAY_AUTH_MODE=token, with the token in ~/.ray/auth_token or RAY_AUTH_TOKEN"
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return f"no Ray answers there within {ANSWER_TIMEOUT_SECONDS:.0f} s{shown}"
    return f"no Ray listens there{shown}; make up starts one, and so does ray start --head"
