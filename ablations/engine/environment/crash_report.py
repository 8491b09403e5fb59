"""How a program ends, whatever happens: an exit code, and one line on standard error where it did not do what was asked.

Of an error that nobody thought of, the rest is in a file, for whoever mends it.
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
    """Run a program's work and return the exit code: that of the work, 1 after a signal or an error, 2 for a wrong request.

    Args:
        interrupted: the last line of a program that was asked to stop.
    """
    accept_everything()
    interrupts = signals.InterruptHandler()
    try:
        return _tried(work, interrupts)
    except KeyboardInterrupt:
        signals.exit_on_signals(interrupted)  # another one finds nothing left to do
        print(interrupted, file=sys.stderr)
        return signals.INTERRUPTED_EXIT_CODE


def _tried(work: Callable[[], int], interrupts: signals.InterruptHandler) -> int:
    try:
        return work()
    except Exception as error:
        if interrupts.received:  # a library that is interrupted may make an error of its own of it
            raise KeyboardInterrupt from error
        if isinstance(error, ConfigError):
            print(f"error: {redact_secrets(str(error))}", file=sys.stderr)
            return 2
        print(f"error: {write(error)}", file=sys.stderr)  # what nobody thought of is no wall of text either
        return 1


def write(error: Exception) -> str:
    """Writes the traceback to a file in `<home>/logs`; returns what to say, in one line."""
    said = redact_secrets(f"{type(error).__name__}: {error}".partition("\n")[0][:500])
    lines = [redact_secrets(line) for part in traceback.format_exception(error) for line in part.splitlines()]
    try:
        where = _write("\n".join(lines) + "\n")
    except (OSError, ConfigError) as reason:  # better in the way than lost
        return f"{said} (its traceback could be written to no file: {reason})\n" + "\n".join(lines)
    return f"{said} (this was not foreseen; its traceback: {where})"


def _write(text: str) -> Path:
    folder = paths.home() / "logs"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"error-{datetime.now(UTC):%Y%m%d-%H%M%S}-{os.getpid()}.txt"
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
        file.write(text)
    return path
