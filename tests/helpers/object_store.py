"""A local S3 server behind a TCP proxy whose connections can break."""

import math
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress


class Line:
    """TCP proxy in front of the server. It closes connections once `left` bytes were uploaded, until `left` is increased."""

    def __init__(self, server: int) -> None:
        self.server = server
        self.left = math.inf
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self.listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def store(self, name: str) -> str:
        """Return the address of a storage folder on the server."""
        return f"s3://bucket/{name}?scheme=http&endpoint_override=127.0.0.1:{self.port}"

    def _accept(self) -> None:
        with suppress(OSError):  # the listener was closed
            while True:
                client, _ = self.listener.accept()
                server = socket.create_connection(("127.0.0.1", self.server))
                threading.Thread(target=self._carry, args=(client, server, True), daemon=True).start()
                threading.Thread(target=self._carry, args=(server, client, False), daemon=True).start()

    def _carry(self, source: socket.socket, sink: socket.socket, up: bool) -> None:
        with suppress(OSError), source:
            while self.left > 0 and (data := source.recv(65536)):
                self.left -= len(data) if up else 0
                if self.left > 0:
                    sink.sendall(data)
            for end in (source, sink):
                end.shutdown(socket.SHUT_RDWR)


@contextmanager
def object_store() -> Iterator[Line]:
    """Start a server with one bucket, and yield the proxy in front of it."""
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        try:
            assert server.stderr
            port = next(int(text.rsplit(":", 1)[1]) for text in server.stderr if "Running on" in text)
            threading.Thread(target=server.stderr.read, daemon=True).start()  # its log must not fill the pipe
            with urllib.request.urlopen(urllib.request.Request(f"http://127.0.0.1:{port}/bucket", method="PUT")):
                pass
            line = Line(port)
            yield line
            line.listener.close()
        finally:
            server.kill()
