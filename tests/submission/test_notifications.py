"""Notifications arrive once, are retried, and delay nothing; the address stays out of every record."""

import logging
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from ablations.engine.cli.supervision_options import read_webhook
from ablations.engine.environment import provenance
from ablations.engine.submission.supervision import notifications
from ablations.engine.submission.supervision.notifications import Notifier
from resnet_core import ConfigError
from tests.helpers.webhook import Webhook, running_webhook


@pytest.fixture
def webhook() -> Iterator[Webhook]:
    with running_webhook() as found:
        yield found


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notifications, "RETRY_DELAYS_SECONDS", (0.01, 0.02, 0.05))


def test_a_message_is_posted_once_as_slack_reads_it(webhook: Webhook) -> None:
    notifier = Notifier(webhook.url)
    notifier.send("done: 4 of 4 runs")
    notifier.close()
    assert webhook.texts == ["done: 4 of 4 runs"]


def test_a_server_that_is_busy_is_asked_again_until_it_accepts(webhook: Webhook) -> None:
    webhook.codes = [503, 429]
    notifier = Notifier(webhook.url)
    notifier.send("done")
    notifier.close()
    assert (webhook.texts, webhook.requests) == (["done"], 3)


def test_a_refusal_is_final_and_its_warning_does_not_name_the_address(webhook: Webhook, caplog: pytest.LogCaptureFixture) -> None:
    webhook.codes = [404]
    notifier = Notifier(webhook.url)
    with caplog.at_level(logging.WARNING):
        notifier.send("done")
        notifier.close()
    assert webhook.requests == 1
    assert "the notification was not sent: its address answers 404" in caplog.text
    assert webhook.secret not in caplog.text


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
def test_a_redirect_is_refused_and_not_followed_without_the_text(
    webhook: Webhook, code: int, caplog: pytest.LogCaptureFixture
) -> None:
    webhook.codes = [code]
    notifier = Notifier(webhook.url)
    with caplog.at_level(logging.WARNING):
        notifier.send("done")
        notifier.close()
    assert f"the notification was not sent: its address answers {code} (a redirect, which is not followed)" in caplog.text
    assert (webhook.texts, webhook.requests) == ([], 1)


def test_a_server_of_another_protocol_gets_one_warning_and_no_traceback(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            with suppress(OSError):  # the server was closed
                while True:
                    client, _ = server.accept()
                    with client:
                        client.recv(65536)
                        client.sendall(b"220 mail.example.org\r\n")

        threading.Thread(target=answer, daemon=True).start()
        notifier = Notifier(f"http://127.0.0.1:{server.getsockname()[1]}/services/abcdef")
        with caplog.at_level(logging.WARNING):
            notifier.send("done")
            notifier.close()
    assert [record.getMessage() for record in caplog.records] == [
        "the notification was not sent: its address does not answer (BadStatusLine)"
    ]
    assert "Traceback" not in capfd.readouterr().err


def test_the_end_of_a_study_says_why_the_last_attempt_failed(
    webhook: Webhook, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(notifications, "RETRY_DELAYS_SECONDS", (60.0,))
    webhook.codes = [500]
    notifier = Notifier(webhook.url)
    with caplog.at_level(logging.WARNING):
        notifier.send("done")
        notifier.close(1.0)
    assert "the notification was not sent: its address answers 500" in caplog.text


def test_an_address_that_never_answers_delays_nothing_but_the_end_and_that_for_a_bounded_time(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(notifications, "RETRY_DELAYS_SECONDS", (60.0,))
    notifier = Notifier("http://127.0.0.1:9/services/abcdef")
    began = time.monotonic()
    notifier.send("one")
    assert time.monotonic() - began < 0.1
    with caplog.at_level(logging.WARNING):
        notifier.close(0.3)
    assert 0.25 < time.monotonic() - began < 2
    assert "abcdef" not in caplog.text


def test_no_address_sends_nothing() -> None:
    notifier = Notifier("")
    notifier.send("done")
    notifier.close()
    assert notifier._thread is None


def test_the_address_is_left_out_of_commands_and_messages(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    secret = "https://chat.example.org/incoming/9f8e7d6c"
    file = tmp_path / "address.txt"
    file.write_text(f"{secret}\n")
    assert read_webhook(f"@{file}") == secret
    monkeypatch.setattr("sys.argv", ["my_study.py", "--notify", secret, f"--notify={secret}", "--rerun"])
    assert "9f8e7d6c" not in provenance.resubmit_command()
    assert provenance.resubmit_command() == "python my_study.py --notify '…' '--notify=…'"
    assert "9f8e7d6c" not in provenance.redact_secrets(f"OSError: {secret} does not answer")


@pytest.mark.parametrize(
    "address",
    [
        "https://hooks.slack.com/services/T0/B1/secret",
        "https://discord.com/api/webhooks/1/secret",
        "https://x.webhook.office.com/a/secret",
    ],
)
def test_webhooks_of_known_services_are_redacted_wherever_they_are(address: str) -> None:
    assert "secret" not in provenance.redact_secrets(f"error: unrecognized arguments: --notfy {address}")
    assert provenance.redact_secrets("https://example.org/docs/page") == "https://example.org/docs/page"


@pytest.mark.parametrize(
    "text",
    [
        *("", "hooks.slack.com/services/secret", "ftp://host/secret", "@/no/such/secret-file"),
        *("http://host:99999/services/secret", "http://host:8x/services/secret", "https://host/services/secr\u00e9t"),
    ],
)
def test_what_is_no_address_is_refused_without_repeating_it(text: str) -> None:
    with pytest.raises(ConfigError) as error:
        read_webhook(text)
    assert str(error.value).startswith("--notify")
    assert "services/secret" not in str(error.value)
