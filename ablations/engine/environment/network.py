"""TCP reachability."""

import socket


def accepts_connections(address: str, timeout_seconds: float = 2.0) -> bool:
    """Return whether a TCP connection to `host:port` can be opened within the timeout.

    A caller that asked Ray instead would learn of a lost machine only after about 15 s. The answer is False for an address without
    a valid port.
    """
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=timeout_seconds):
            return True
    except (OSError, ValueError, OverflowError):
        return False
