"""Where a submission came from, and how to submit it again: command, commit, versions, machine."""

import json
import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from resnet_core.fields import printable

PACKAGES = ("ray", "torch", "torchvision", "mlflow", "optuna", "numpy", "scipy", "statsmodels")
SECRET = re.compile(
    r"((?:pass(?:word|wd|phrase)|token|secret|(?:api|access|account|private)_?key|credential|authorization)\w*[\"']?\s*[:=]\s*).*",
    re.IGNORECASE,
)
PRIVATE_KEY = re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END|\Z)", re.DOTALL)
ARCHIVED = "$Format:%H$"
"""The commit, in an archive that git made: there, `export-subst` in .gitattributes fills it in."""
LONGEST_DIFF = 100_000
"""Characters of local changes that are kept."""


def origin() -> dict[str, str]:
    """Where this process comes from, by name."""
    versions = {name: metadata.version(name) for name in PACKAGES}
    return {
        "command": _command(sys.argv),
        **git_state(),
        "git.diff": _local_changes(),
        "python": platform.python_version(),
        **versions,
        "platform": platform.platform(),
        "submitted": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }


def git_state() -> dict[str, str]:
    """The commit that this project's files are of, and whether they differ from it; `unknown` where nothing tells.

    Of files that a submission sent along, also the name that Ray gave them: a hash of their names and contents.
    """
    upload = _upload()
    of_upload = {"upload": upload} if upload else {}
    if _git("ls-files", "--error-unmatch", __file__) is None:  # no git, or a folder in another project
        return {"git.commit": "unknown" if ARCHIVED.startswith("$") else ARCHIVED, "git.dirty": "unknown", **of_upload}
    return {
        "git.commit": _git("rev-parse", "HEAD") or "unknown",
        "git.dirty": str(bool(_git("status", "--porcelain"))).lower(),
        **of_upload,
    }


def _local_changes() -> str:
    """How files differ from the commit, without what looks like a secret; nothing where the repository is another project's."""
    if _git("rev-parse", "--show-toplevel") != str(Path(__file__).resolve().parents[2]):
        return ""
    changes = PRIVATE_KEY.sub("…", (_git("diff", "HEAD") or "")[:LONGEST_DIFF])
    return "\n".join(map(without_secrets, changes.splitlines()))


def without_secrets(text: str) -> str:
    """One printable line, without the passwords of addresses and the rest of it after what is named like a secret."""
    return SECRET.sub(r"\1…", printable(text))


def again() -> str:
    """What submits this study again: what is done is not trained again, whatever this submission was told."""
    words = [word for word in sys.argv if word not in ("--fresh", "--report")]
    if not submission_id():
        return _command(words)
    return f"ray job submit {'--working-dir . ' if _upload() else ''}-- {_command(words)}"


def _command(words: Sequence[str]) -> str:
    return shlex.join(["python", *map(without_secrets, words)])


def _upload() -> str:
    """What a submission sent along as its working folder: Ray's name for it, or an address."""
    return printable(_job_config().get("runtime_env", {}).get("working_dir", "").removeprefix("gcs://"))


def submission_id() -> str | None:
    """The name that `ray job submit` gave this program, if that started it."""
    name: str | None = _job_config().get("metadata", {}).get("job_submission_id")
    return name


def _job_config() -> dict[str, Any]:
    config: dict[str, Any] = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR") or "{}")
    return config


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
