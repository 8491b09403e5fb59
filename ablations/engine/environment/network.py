"""Whether a TCP address answers."""

import socket


def accepts_connections(address: str, timeout_seconds: float = 2.0) -> bool:
    """Return whether somebody listens at `host:port`."""
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=timeout_seconds):
            return True
    except OSError:
        return False
