"""Where a submission came from, and how to submit it again: command, commit, versions, machine."""

import json
import os
import platform
import re
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from resnet_core.fields import printable

PACKAGES = ("ray", "torch", "torchvision", "mlflow", "optuna", "numpy", "scipy", "statsmodels")
SECRET = re.compile(r"((?:password|passwd|token|secret|api_?key|credential)\w*[\"']?\s*[:=]\s*).*", re.IGNORECASE)
LONGEST_DIFF = 100_000
"""Characters of local changes that are kept."""


def origin() -> dict[str, str]:
    """Where this process comes from, by name."""
    versions = {name: metadata.version(name) for name in PACKAGES}
    return {
        "command": printable(shlex.join(["python", *sys.argv])),
        **git_state(),
        "git.diff": _local_changes(),
        "python": platform.python_version(),
        **versions,
        "platform": platform.platform(),
        "submitted": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }


def git_state() -> dict[str, str]:
    """The commit of this project, and whether files differ from it; `unknown` without git."""
    commit, changes = _git("rev-parse", "HEAD"), _git("status", "--porcelain")
    return {"git.commit": commit or "unknown", "git.dirty": "unknown" if changes is None else str(bool(changes)).lower()}


def _local_changes() -> str:
    """How files differ from the commit, without what looks like a secret; nothing where the repository is another project's."""
    if _git("rev-parse", "--show-toplevel") != str(Path(__file__).resolve().parents[2]):
        return ""
    lines = (_git("diff", "HEAD") or "")[:LONGEST_DIFF].splitlines()
    return "\n".join(SECRET.sub(r"\1…", printable(line)) for line in lines)


def again() -> str:
    """What submits this study again: what is done is not trained again, whatever this submission was told."""
    words = ["python", *(word for word in sys.argv if word not in ("--fresh", "--report"))]
    return f"{'ray job submit -- ' if submission_id() else ''}{shlex.join(words)}"


def submission_id() -> str | None:
    """The name that `ray job submit` gave this program, if that started it."""
    config = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR") or "{}")
    name: str | None = config.get("metadata", {}).get("job_submission_id")
    return name


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(  # noqa: S603
            ["git", *arguments],  # noqa: S607
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None
