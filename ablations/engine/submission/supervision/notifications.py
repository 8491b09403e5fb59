"""Messages to a webhook, such as Slack's: a POST of `{"text": …}`, sent by a thread that training never waits for.

The address is a secret: whoever has it may write there. It appears in no message, log or record.
"""

import http.client
import json
import logging
import queue
import socket
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import Any

logger = logging.getLogger(__name__)

REQUEST_TIMEOUT_SECONDS = 10.0
"""Timeout of a request, in seconds."""
RETRY_DELAYS_SECONDS: Sequence[float] = (1.0, 2.0, 5.0, 15.0, 30.0, 60.0)
"""Delays before the second and further attempts, in seconds."""
TEMPORARY_ERRORS = (408, 425, 429)
"""HTTP status codes below 500 after which a request is sent again."""
CLOSE_TIMEOUT_SECONDS = 10.0
"""Time for which the end of a study waits for its last message, in seconds."""
INTERRUPTED_TIMEOUT_SECONDS = 1.5
"""Value of `CLOSE_TIMEOUT_SECONDS` for an interrupted study, which may be killed soon."""


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Handler that refuses redirects: urllib would follow most of them by a GET, which loses the text."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        """Follow nothing, so that the answer is an error."""


OPENER = urllib.request.build_opener(_NoRedirects)


class Notifier:
    """Sends messages in their order.

    Args:
        url: address of the webhook; empty to send nothing.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._texts: queue.Queue[str] = queue.Queue()
        self._thread: threading.Thread | None = None
        self._closing = threading.Event()
        self._reason = "its address does not answer"

    def send(self, text: str) -> None:
        """Send a message in the background."""
        if not self._url:
            return
        self._texts.put(text)
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="notifier", daemon=True)
            self._thread.start()

    def close(self, timeout: float = CLOSE_TIMEOUT_SECONDS) -> None:
        """Wait until all messages are sent or given up, at most `timeout` seconds."""
        deadline = time.monotonic() + timeout
        while self._texts.unfinished_tasks and time.monotonic() < deadline:
            time.sleep(0.05)
        self._closing.set()
        if self._texts.unfinished_tasks:
            logger.warning("the notification was not sent: %s", self._reason)

    def _run(self) -> None:
        while True:
            text = self._texts.get()
            try:
                self._deliver(text)
            finally:
                self._texts.task_done()

    def _deliver(self, text: str) -> None:
        reason = ""
        for delay in (0.0, *RETRY_DELAYS_SECONDS):
            if self._closing.wait(delay):
                return
            reason, again = self._post(text)
            self._reason = reason
            if not again:
                break
        if reason:
            logger.warning("the notification was not sent: %s", reason)

    def _post(self, text: str) -> tuple[str, bool]:
        """Send a request; return why it failed, empty if it did not, and whether another attempt may succeed."""
        body = json.dumps({"text": text}).encode()
        request = urllib.request.Request(self._url, body, {"Content-Type": "application/json"})  # noqa: S310 - checked by `read_webhook`
        try:
            with OPENER.open(request, timeout=REQUEST_TIMEOUT_SECONDS):
                return "", False
        except urllib.error.HTTPError as error:
            what = " (a redirect, which is not followed)" if 300 <= error.code < 400 else ""
            return f"its address answers {error.code}{what}", error.code >= 500 or error.code in TEMPORARY_ERRORS
        except (OSError, ValueError, http.client.HTTPException) as error:
            return _reason(error), True


def _reason(error: Exception) -> str:
    """Return why an address does not answer, without the text of the error, which may contain the address."""
    cause = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(cause, socket.gaierror):
        return "the host name of its address cannot be resolved"
    if isinstance(cause, ssl.SSLError):
        return f"its address does not speak TLS, or its certificate is not accepted ({type(cause).__name__})"
    if isinstance(cause, TimeoutError):
        return f"its address does not answer within {REQUEST_TIMEOUT_SECONDS:g} s"
    return f"its address does not answer ({type(cause if isinstance(cause, Exception) else error).__name__})"
