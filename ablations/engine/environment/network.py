"""TCP addresses and their reachability."""

import ipaddress
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


def parse_ip(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """Return an IP address. An IPv4 address that is written as an IPv6 address becomes IPv4."""
    ip = ipaddress.ip_address(text)
    return getattr(ip, "ipv4_mapped", None) or ip


def is_loopback(address: str) -> bool:
    """Return whether a host name or IP address is this machine's loopback."""
    try:
        return parse_ip(address.strip("[]")).is_loopback
    except ValueError:
        return address == "localhost"
