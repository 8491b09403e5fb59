"""TCP reachability."""

import socket


def accepts_connections(address: str, timeout_seconds: float = 2.0) -> bool:
    """Return whether a TCP connection to `host:port` can be opened within the timeout.

    Ray itself notices the loss of a machine only after about 15 s. An address without a valid port accepts none.
    """
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=timeout_seconds):
            return True
    except (OSError, ValueError, OverflowError):
        return False
