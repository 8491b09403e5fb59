"""Top-level error handling of a program: an exit code, and one line on standard error after a failure.

The traceback of an unexpected error goes to a file in `<home>/logs`, so that the terminal stays readable.
"""

import os
import sys
import traceback
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from ablations.engine.environment import paths, signals
from ablations.engine.environment.provenance import redact_secrets
from resnet_core.fields import ConfigError
from resnet_core.streams import accept_everything


def run_program(work: Callable[[], int], interrupted: str) -> int:
    """Run `work` and return an exit code: its own, 1 after a signal or an unexpected error, that of a ConfigError.

    Args:
        work: the body of the program; returns its exit code.
        interrupted: line to print on standard error after SIGINT or SIGTERM.
    """
    accept_everything()
    interrupts = signals.InterruptHandler()
    try:
        return _run_and_report(work, interrupts)
    except KeyboardInterrupt:
        signals.exit_on_signals(interrupted)  # a second signal exits at once: nothing is left to clean up
        print(interrupted, file=sys.stderr)
        return signals.INTERRUPTED_EXIT_CODE


def _run_and_report(work: Callable[[], int], interrupts: signals.InterruptHandler) -> int:
    try:
        return work()
    except Exception as error:
        if interrupts.received:  # a library may turn the interrupt into an error of its own
            raise KeyboardInterrupt from error
        if isinstance(error, ConfigError):
            print(f"error: {redact_secrets(str(error))}", file=sys.stderr)
            return error.exit_code
        print(f"error: {write(error)}", file=sys.stderr)
        return 1


def write(error: Exception) -> str:
    """Write the traceback of an unexpected error to a file in `<home>/logs`; return one line that names the error and the file.

    If no file can be written, the returned text includes the traceback, so that it is not lost.
    """
    message = redact_secrets(f"{type(error).__name__}: {error}".partition("\n")[0][:500])
    lines = [redact_secrets(line) for part in traceback.format_exception(error) for line in part.splitlines()]
    try:
        path = _write_to_log_folder("\n".join(lines) + "\n")
    except (OSError, ConfigError) as reason:
        return f"{message} (unexpected error; its traceback could not be written to a file: {reason})\n" + "\n".join(lines)
    return f"{message} (unexpected error; traceback: {path})"


def _write_to_log_folder(text: str) -> Path:
    folder = paths.home() / "logs"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"error-{datetime.now(UTC):%Y%m%d-%H%M%S}-{os.getpid()}.txt"
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
        file.write(text)
    return path
