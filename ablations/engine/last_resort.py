"""An error that nobody thought of: one line for whoever submitted, and a file with the rest for whoever mends it."""

import os
import traceback
from datetime import UTC, datetime
from pathlib import Path

from ablations.engine import paths
from ablations.engine.provenance import without_secrets
from resnet_core.fields import ConfigError


def keep(error: Exception) -> str:
    """Writes the traceback to a file in `<home>/logs`; returns what to say, in one line."""
    said = without_secrets(f"{type(error).__name__}: {error}".partition("\n")[0][:500])
    lines = [without_secrets(line) for part in traceback.format_exception(error) for line in part.splitlines()]
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
