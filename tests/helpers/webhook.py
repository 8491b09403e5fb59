"""A webhook on this machine."""

import json
import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Webhook:
    """A server that answers requests with these status codes, then with 200, and keeps the texts that it has accepted."""

    def __init__(self, *codes: int) -> None:
        self.codes, self.texts, self.requests = list(codes), list[str](), 0
        webhook = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                webhook.requests += 1
                body = self.rfile.read(int(self.headers["Content-Length"]))
                code = webhook.codes.pop(0) if webhook.codes else 200
                if code == 200:
                    webhook.texts.append(json.loads(body)["text"])
                self.send_response(code)
                if 300 <= code < 400:
                    self.send_header("Location", webhook.url)
                self.end_headers()

            def log_message(self, *_: Any) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.secret = secrets.token_hex(8)  # in no source, and so in no stored diff
        self.url = f"http://127.0.0.1:{self.server.server_port}/services/T0/B1/{self.secret}"


@contextmanager
def running_webhook() -> Iterator[Webhook]:
    """Context with a webhook that answers."""
    webhook = Webhook()
    threading.Thread(target=webhook.server.serve_forever, daemon=True).start()
    try:
        yield webhook
    finally:
        webhook.server.shutdown()
        webhook.server.server_close()
