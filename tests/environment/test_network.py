"""TCP reachability."""

import socket

import pytest

from ablations.engine.environment.network import accepts_connections


def test_a_listening_port_accepts_connections_and_a_closed_one_does_not() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        assert accepts_connections(address)
    assert not accepts_connections(address)


@pytest.mark.parametrize("address", ["", "127.0.0.1", "127.0.0.1:", "127.0.0.1:port", "127.0.0.1:99999", "127.0.0.1:-1"])
def test_an_address_without_a_valid_port_accepts_no_connections(address: str) -> None:
    assert not accepts_connections(address)
