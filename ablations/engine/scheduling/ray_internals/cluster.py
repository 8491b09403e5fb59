"""Private parts of Ray for joining a cluster and for observing its nodes."""

import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ablations.engine.scheduling.ray_internals.compatibility import Feature, Part, SourceText, needs

if TYPE_CHECKING:
    import grpc

LOOPBACK_VARIABLE = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""Undocumented environment variable. `0` keeps Ray's ports on loopback, as on macOS."""
JOB_CONFIG_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Undocumented environment variable that contains the settings of `ray job submit`, as JSON."""
CURRENT_CLUSTER_FILE = "ray_current_cluster"
"""File in Ray's temporary folder that contains the address of the cluster that `ray start` started last."""
HEAD_RESOURCE = "node:__internal_head__"
"""Resource that only the head of a cluster has."""
STATUS_TIMEOUT_SECONDS = 5
"""Timeout for the status of the autoscaler, in seconds."""

LOOPBACK = Feature(
    "keeping Ray's ports on loopback (other machines may reach them)",
    (
        SourceText("_private/ray_constants.py", LOOPBACK_VARIABLE),
        SourceText("_private/services.py", "if not ray_constants.ENABLE_RAY_CLUSTER:"),
    ),
)

CURRENT_CLUSTER = Feature(
    "finding a cluster on this machine (RAY_ADDRESS=HOST:PORT joins one)",
    (SourceText("_common/utils.py", f'"{CURRENT_CLUSTER_FILE}"'),),
)

SIGNALS = Feature(
    "saving everything after SIGTERM",
    (
        Part("ray._private.utils:set_sigterm_handler", "sigterm_handler", caller="ray._private.worker:init"),
        Part("ray._private.ray_constants:RAY_DISABLE_FAILURE_SIGNAL_HANDLER"),
    ),
)

SHORT_MESSAGES = Feature(
    "messages of Ray in one line",
    (Part("ray._private.worker:print_to_stdstream", "data, ignore_prefix", caller="ray._private.worker:connect"),),
)

ADDRESS_CHECK = Feature(
    "quick check of RAY_ADDRESS",
    (
        Part("ray._private.services:canonicalize_bootstrap_address", "addr, temp_dir=None"),
        Part("ray._private.services:extract_ip_port", "bootstrap_address"),
        Part("ray._private.services:find_gcs_addresses", ""),
        Part("ray.core.generated.gcs_service_pb2_grpc:NodeInfoGcsServiceServicer.CheckAlive", "self, request, context"),
    ),
)

AUTOSCALER = Feature(
    "waiting for nodes of an autoscaler",
    (
        Part("ray.experimental.internal_kv:internal_kv_get_gcs_client", ""),
        Part("ray.experimental.internal_kv:_internal_kv_get", "key, *, namespace=None"),
        Part("ray._raylet:InnerGcsClient", attributes="get_cluster_status"),
        Part("ray.core.generated.autoscaler_pb2:GetClusterStatusReply", attributes="CLUSTER_RESOURCE_STATE_FIELD_NUMBER"),
        Part("ray.core.generated.autoscaler_pb2:AutoscalingState", attributes="AUTOSCALER_STATE_VERSION_FIELD_NUMBER"),
        Part("ray.core.generated.autoscaler_pb2:NodeState", attributes="RAY_NODE_TYPE_NAME_FIELD_NUMBER"),
        Part("ray._private.ray_constants:DEBUG_AUTOSCALING_STATUS"),
    ),
)

TOKEN_CHECK = Feature(
    "the doctor's check of Ray's token on each node",
    (Part("ray._private.authentication.authentication_utils:is_token_auth_enabled", ""),),
)

FREE_RESOURCES = Feature(
    "leaving busy nodes out of the doctor's all-reduce", (Part("ray._private.state:available_resources_per_node", ""),)
)


@needs(LOOPBACK, otherwise={})
def loopback_environment() -> dict[str, str]:
    """Return environment variables with which Ray listens on loopback only. Ray reads them when it is imported."""
    return {LOOPBACK_VARIABLE: "0"}


@needs(CURRENT_CLUSTER, otherwise=None)
def current_cluster_file(temporary_folder: str) -> Path | None:
    """Return the file that contains the address of the cluster that `ray start` started last on this machine."""
    return Path(temporary_folder, "ray", CURRENT_CLUSTER_FILE)


@needs(SIGNALS, otherwise=None)
def keep_own_signal_handlers() -> None:
    """Make `ray.init` leave the handlers of SIGTERM to this program.

    Ray's own handlers end the process. The Python handler does so without a message, after up to half a minute. The handler of
    Ray's C++ core prints a stack trace and aborts the process three seconds later.
    """
    from ray._private import ray_constants, utils

    utils.set_sigterm_handler = lambda sigterm_handler: None
    ray_constants.RAY_DISABLE_FAILURE_SIGNAL_HANDLER = True


@needs(SHORT_MESSAGES, otherwise=None)
def shorten_messages(show: Callable[[str], object]) -> None:
    """Call `show` with the first sentence of each message that Ray prints about its cluster. A message has some twenty lines."""
    from ray._private import worker

    def print_first_sentence(data: Mapping[str, Any], ignore_prefix: bool) -> None:
        show(re.split(r"\n|(?<=\.) ", data["lines"][0])[0])

    worker.print_to_stdstream = print_first_sentence


def resolve_address(address: str) -> tuple[str, str]:
    """Return the host and port at which Ray would connect to the head. The address `auto` means a head on this machine.

    Raises:
        ConnectionError: the address is `auto`, and no Ray runs on this machine.
        ValueError: the text is not an address.
    """
    from ray._private import services

    host, port = services.extract_ip_port(services.canonicalize_bootstrap_address(address))
    return str(host), str(port)


def addresses_of_this_machine() -> set[str]:
    """Return the `host:port` of the heads whose nodes run on this machine."""
    from ray._private import services

    return set(services.find_gcs_addresses())


def head_status(address: str, token: str | None, timeout_seconds: float) -> "grpc.StatusCode":
    """Call the Ray head at `host:port` over gRPC and return the status code.

    A head answers this call at once, and refuses it without the right token. `ray.init` would retry for minutes.
    """
    import grpc

    metadata = (("authorization", f"Bearer {token}"),) if token else ()
    with grpc.insecure_channel(address, options=(("grpc.enable_http_proxy", 0),)) as channel:
        try:
            channel.unary_unary("/ray.rpc.NodeInfoGcsService/CheckAlive")(b"", timeout=timeout_seconds, metadata=metadata)
        except grpc.RpcError as error:
            code: grpc.StatusCode = error.code()
            return code
    return grpc.StatusCode.OK


@needs(AUTOSCALER, otherwise=False)
def has_autoscaler() -> bool:
    """Return whether an autoscaler can add nodes to the cluster."""
    return _has_autoscaler_v2() or _has_autoscaler_v1()


def _has_autoscaler_v2() -> bool:
    """Return whether version 2 of the autoscaler runs, which `ray up` and KubeRay start.

    It reports its version to Ray's control store, and each node that it started has a type.
    """
    from ray.core.generated.autoscaler_pb2 import GetClusterStatusReply
    from ray.experimental.internal_kv import internal_kv_get_gcs_client

    reply = internal_kv_get_gcs_client().get_cluster_status(timeout_s=STATUS_TIMEOUT_SECONDS)
    status = GetClusterStatusReply.FromString(reply)
    nodes = status.cluster_resource_state.node_states
    return status.autoscaling_state.autoscaler_state_version > 0 and any(node.ray_node_type_name for node in nodes)


def _has_autoscaler_v1() -> bool:
    """Return whether version 1 of the autoscaler runs.

    Every head publishes a status. Without an autoscaler, the type of each node in the status is `node_<node ID>`.
    """
    import ray
    from ray._private.ray_constants import DEBUG_AUTOSCALING_STATUS
    from ray.experimental.internal_kv import _internal_kv_get

    report = json.loads(_internal_kv_get(DEBUG_AUTOSCALING_STATUS) or "{}").get("autoscaler_report") or {}
    types = {**(report.get("active_nodes") or {}), **(report.get("idle_nodes") or {})}
    ids = {f"node_{node['NodeID']}" for node in ray.nodes()}
    return any(name not in ids for name in types)


@needs(TOKEN_CHECK, otherwise=None)
def asks_for_token() -> bool | None:
    """Return whether Ray's processes on this node ask each other for a token; None if this is unknown."""
    from ray._private.authentication.authentication_utils import is_token_auth_enabled

    return bool(is_token_auth_enabled())


@needs(FREE_RESOURCES, otherwise=None)
def free_resources_by_node() -> dict[str, dict[str, float]] | None:
    """Return the free resources of each node, by node ID; None if they are unknown."""
    from ray._private.state import available_resources_per_node

    return dict(available_resources_per_node())


def autoscaler_config_file(head: str) -> Path | None:
    """Return the cluster file of the autoscaler of the head at `host:port`; None if none runs on this machine.

    Ray stores no copy of the file. A job's driver runs on the same machine as the autoscaler, whose command line names the file.
    """
    import psutil

    for process in psutil.process_iter(["cmdline"]):
        options = dict(argument.partition("=")[::2] for argument in process.info["cmdline"] or ())
        if options.get("--gcs-address") == head and "--autoscaling-config" in options:
            return Path(options["--autoscaling-config"]).expanduser()
    return None


def job_config() -> dict[str, Any]:
    """Return the settings of the `ray job submit` that started this program; empty if it was started otherwise."""
    config: dict[str, Any] = json.loads(os.environ.get(JOB_CONFIG_VARIABLE) or "{}")
    return config
