"""Joining a Ray cluster, or starting Ray on this machine."""

import logging
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray
from ray._private import ray_constants, utils, worker
from ray.exceptions import RayError

from ablations.engine.environment import private_files, signals
from ablations.engine.scheduling import ray_address
from ablations.engine.scheduling.capacity import is_one_node
from resnet_core.fields import ConfigError, reject

SENTENCE_END = r"\n|(?<=\.) "
CAPACITY_INTERVAL_SECONDS = 2.0


def connect() -> None:
    """Join the cluster that RAY_ADDRESS names, else start a Ray here that ends with this process.

    Raises:
        ConfigError: no Ray answers at RAY_ADDRESS, it is not for this process, or there is no private place for files.
    """
    # Workers' output stays in Ray's logs: what they have to say comes as reports.
    if not ray.is_initialized():
        # SIGTERM stays this program's: Ray's own handlers end the process at once without a word, later after up to half a minute,
        # and that of its C++ core prints a stack and aborts the process three seconds later, whatever it is doing then.
        utils.set_sigterm_handler = lambda handler: None
        ray_constants.RAY_DISABLE_FAILURE_SIGNAL_HANDLER = True
        address = os.environ.get("RAY_ADDRESS") or "local"
        with signals.deferred_signals():  # half a Ray crashes at the end of its process
            if address == "local":
                _start_here()
            else:
                _join(address)
    worker.print_to_stdstream = _say_in_a_line
    # Tune logs a traceback for each death of a process, which the listener is told of anyway.
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)


def _start_here() -> None:
    private_files.protect_token(create=os.environ.get("RAY_AUTH_MODE", "token").lower() == "token")
    folder, _ = private_files.make_ray_folder()  # the file that locks it stays open as long as this process lives
    try:
        ray.init("local", log_to_driver=False, logging_level=logging.ERROR, _temp_dir=str(folder))
    except Exception as error:
        raise _not_started(error, folder) from error


def _not_started(error: Exception, folder: Path) -> ConfigError:
    """Return the complaint about a Ray that does not start on this machine: its errors are of many types, and name no cause."""
    reason, logs = str(error).partition("\n")[0], folder / "session_latest" / "logs"
    return ConfigError(
        f"Ray does not start on this machine ({reason}). What may be short: memory, space in {folder} and /dev/shm, open "
        f"files (ulimit -n); {logs} may tell. RAY_ADDRESS names a cluster to use instead"
    )


def _join(address: str) -> None:
    private_files.protect_token(create=False)
    ray_address.check(address)
    try:
        ray.init(address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RayError, RuntimeError) as error:
        raise ray_address.refused(address, f"Ray does not answer ({str(error).partition(chr(10))[0]})") from error


def _say_in_a_line(message: Mapping[str, Any], **_: Any) -> None:
    """The first sentence of what Ray has to say of its cluster: without twenty lines of logs, and not amid a table."""
    print(f"Ray: {re.split(SENTENCE_END, message['lines'][0])[0]}", file=sys.stderr)


def check_reachable(option: str, value: str) -> None:
    """Raises ConfigError for a local path on a cluster of several nodes: each would see another folder."""
    if "://" in value or is_one_node():
        return
    raise reject(option, value, "a local path on several nodes; set s3://…, gs://…, http://…, or file:///… if all nodes share it")
