"""A proxy in front of an MLflow server that simulates failures of the server and of the network."""

import http.client
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum, auto
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Mode(Enum):
    """Ways in which the proxy handles a request."""

    PASS = auto()
    REFUSE = auto()
    """Close the connection. The server does not get the request."""
    SLOW = auto()
    """Forward the request after a delay."""
    UNAVAILABLE = auto()
    """Answer 503. The server does not get the request."""
    LOSE = auto()
    """Forward the request, but close the connection without a response."""
    BAD_GATEWAY = auto()
    """Forward the request, but answer 502."""
    SILENT = auto()
    """Do not answer until the proxy stops. The server does not get the request."""


class Proxy:
    """A proxy that calls `decide` with the number and content (path and body) of each request, and handles it in that mode.

    Args:
        server_port: port of the MLflow server.
        slow_seconds: delay of requests in mode `SLOW`, in seconds.
    """

    def __init__(self, server_port: int, slow_seconds: float) -> None:
        self.server_port, self.slow_seconds = server_port, slow_seconds
        self.decide: Callable[[int, bytes], Mode] = lambda _number, _content: Mode.PASS
        self.count = 0
        self.gone = threading.Event()
        self._lock = threading.Lock()
        self._listener = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"proxy": self}))
        self.uri = f"http://127.0.0.1:{self._listener.server_port}"

    def always(self, mode: Mode) -> None:
        self.decide = lambda _number, _content: mode

    def only(self, mode: Mode, wanted: Callable[[int, bytes], bool]) -> None:
        """Handle the wanted requests in a mode, and forward all others. Restart the count of requests at 1."""
        self.count = 0
        self.decide = lambda number, content: mode if wanted(number, content) else Mode.PASS

    def from_the_first(self, part: bytes, mode: Mode) -> None:
        """Handle the first request that contains `part`, and all later ones, in a mode."""
        seen = threading.Event()

        def decide(_number: int, content: bytes) -> Mode:
            if part in content:
                seen.set()
            return mode if seen.is_set() else Mode.PASS

        self.decide = decide

    def mode(self, content: bytes) -> Mode:
        with self._lock:
            self.count += 1
            return self.decide(self.count, content)

    @contextmanager
    def listening(self) -> Iterator["Proxy"]:
        thread = threading.Thread(target=self._listener.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield self
        finally:
            self.gone.set()
            self._listener.shutdown()
            thread.join()
            self._listener.server_close()


class _Handler(BaseHTTPRequestHandler):
    proxy: Proxy

    def log_message(self, *_: object) -> None:
        pass

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        mode = self.proxy.mode(self.path.encode() + b" " + body)
        if mode is Mode.SILENT:
            self.proxy.gone.wait()
        if mode is Mode.SLOW:
            time.sleep(self.proxy.slow_seconds)
        if mode is Mode.UNAVAILABLE:
            self._answer(503, b"later")
        if mode in (Mode.SILENT, Mode.REFUSE, Mode.UNAVAILABLE):
            return
        server = http.client.HTTPConnection("127.0.0.1", self.proxy.server_port)
        server.request(self.command, self.path, body, dict(self.headers))
        answer = server.getresponse()
        content = answer.read()
        server.close()
        if mode is Mode.BAD_GATEWAY:
            self._answer(502, b"no answer from upstream")
        elif mode is not Mode.LOSE:
            self._answer(answer.status, content, answer.headers.get("Content-Type", "text/plain"))

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _serve  # noqa: N815 - the base class calls them so

    def _answer(self, status: int, content: bytes, kind: str = "text/plain") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)
