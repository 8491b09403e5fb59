"""The options of a study about its end: failures, checkpoints and notifications."""

import argparse
import os
import re
from pathlib import Path
from urllib.parse import urlsplit

from ablations.engine.environment import paths
from ablations.engine.environment.provenance import hide_secret
from resnet_core.fields import ConfigError, reject

KEPT = ("last", "none")
NOTIFY_VARIABLE = "RESNET_ABLATIONS_NOTIFY"
"""Environment variable with the default of `--notify`."""
ACCEPTED_WEBHOOK = "accepted: https://… of a webhook, or @FILE with this address in it"


def add_supervision_options(training: "argparse._ArgumentGroup", notification: "argparse._ArgumentGroup") -> None:
    """Add the options to the group of training and to that of notifications."""
    training.add_argument(
        "--keep-checkpoints",
        default="last",
        metavar="last|none",
        help="checkpoints to keep of a run with a result: the last one, or none, which leaves no network to read (default: last)",
    )
    training.add_argument(
        "--stop-after-failures",
        type=int,
        default=3,
        metavar="K",
        help="stop the study if its first K runs all fail with the same error; 0: never (default: 3)",
    )
    notification.add_argument(
        "--notify",
        metavar="URL|@FILE",
        help="webhook, such as Slack's, that is told of the end of the study: an address, or a file with it, since others can read "
        f"a command line (default: {NOTIFY_VARIABLE})",
    )
    notification.add_argument(
        "--notify-after",
        type=int,
        default=3,
        metavar="K",
        help="also notify when more than K runs have diverged or failed (default: 3)",
    )


def check_supervision(given: argparse.Namespace) -> None:
    """Raise ConfigError for wrong values of these options."""
    if given.keep_checkpoints not in KEPT:
        raise reject("--keep-checkpoints", given.keep_checkpoints, f"accepted: {', '.join(KEPT)}")
    if given.keep_checkpoints == "none" and given.log_models:
        raise ConfigError("--keep-checkpoints none, --log-models: models are made of checkpoints; accepted: one of them")
    for name in ("stop_after_failures", "notify_after"):
        if getattr(given, name) < 0:
            raise reject(f"--{name.replace('_', '-')}", getattr(given, name), "accepted: 0 or more")


def read_webhook(text: str | None) -> str:
    """Return the address of a webhook, and keep it out of all messages and records; empty if there is none.

    Args:
        text: the address, or `@FILE`; None for the environment variable.

    Raises:
        ConfigError: not an address, or a file that cannot be read. The message does not repeat the address.
    """
    option = "--notify" if text is not None else NOTIFY_VARIABLE
    address = (os.environ.get(NOTIFY_VARIABLE, "") if text is None else text).strip()
    if not address:
        if text is not None:
            raise reject(option, "", ACCEPTED_WEBHOOK)
        return ""
    if address.startswith("@"):
        file = paths.absolute_path(option, address[1:])
        try:
            address = Path(file).read_text(encoding="utf-8").strip()
        except (OSError, ValueError) as error:
            raise reject(option, f"@{file}", f"cannot be read ({error}); {ACCEPTED_WEBHOOK}") from error
    try:
        parts = urlsplit(address)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and re.fullmatch("[!-~]+", address) is not None
        valid = valid and parts.port != 0  # raises ValueError for a port that is no number, or above 65535
    except ValueError:
        valid = False
    if not valid:
        raise ConfigError(f"{option}: is not the address of a webhook; {ACCEPTED_WEBHOOK}")
    hide_secret(address)
    return address
