"""Provenance of a submission: command, commit, local changes, versions and machine, and the command that resubmits it."""

import difflib
import json
import os
import platform
import re
import shlex
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from resnet_core.fields import printable

JOB_CONFIG_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Undocumented environment variable that contains the settings of `ray job submit`, as JSON."""
PACKAGES = ("ray", "torch", "torchvision", "mlflow", "optuna", "numpy", "scipy", "statsmodels")
"""Packages whose versions are recorded."""
SECRET = re.compile(
    r"((?:pass(?:word|wd|phrase)|token|secret|(?:api|access|account|private)_?key|credential|authorization)\w*[\"']?\s*[:=]\s*).*",
    re.IGNORECASE,
)
"""Rest of a line that starts with a name such as `token=`. The group is the part before the secret."""
WEBHOOK = re.compile(
    r"(https?://[^\s\"'/]*hooks?[^\s\"'/]*/|https?://[^\s\"']*?/(?:web)?hooks?/)[^\s\"']+",
    re.IGNORECASE,
)
"""Address of a webhook, such as `https://hooks.slack.com/services/…`. The group is the part before the secret."""
PRIVATE_KEY = re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END|\Z)", re.DOTALL)
ARCHIVED = "$Format:%H$"
"""Commit of the sources if `git archive` made them: it replaces this placeholder (`export-subst` in .gitattributes)."""
MAX_DIFF_CHARACTERS = 100_000
"""Maximum length of the stored local changes."""
MAX_CHANGED_CHARACTERS = 1000
"""Maximum length of the list of changed files."""
CODE = ("..", "../../../resnet_core")
"""Folders of the training code, relative to this one. Studies, tests and documentation are not part of it."""
UNTRACKED = ("ls-files", "--others", "--exclude-standard", "--full-name")
"""Git command that lists untracked files."""


_secrets: set[str] = set()
"""Secrets of this process: see `hide_secret`."""
_call: ContextVar[str] = ContextVar("call", default="")
"""Call of the Python API that this submission belongs to; empty for a command."""


@contextmanager
def called_as(call: str) -> Iterator[None]:
    """Record a call of the Python API, as text, in place of the command of this process."""
    token = _call.set(call)
    try:
        yield
    finally:
        _call.reset(token)


def submission_origin() -> dict[str, str]:
    """Return the provenance of this process by name: command, commit, local changes, versions, platform and time."""
    versions = {name: metadata.version(name) for name in PACKAGES}
    return {
        "command": redact_secrets(_call.get()) or _command(sys.argv),
        **git_state(),
        "git.diff": _local_changes(),
        "python": platform.python_version(),
        **versions,
        "platform": platform.platform(),
        "submitted": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }


def git_state() -> dict[str, str]:
    """Return the commit of this project's files, and the files of the training code that differ from it.

    Values are `unknown` outside a repository. If the job uploaded its working folder, the result also has Ray's name for it, a hash
    of file names and contents.
    """
    upload = _upload()
    of_upload = {"upload": upload} if upload else {}
    if _git("ls-files", "--error-unmatch", __file__) is None:  # no git, or inside the repository of another project
        return {"git.commit": "unknown" if ARCHIVED.startswith("$") else ARCHIVED, "git.dirty": "unknown", **of_upload}
    commit, changed = _git("rev-parse", "HEAD"), _changed_code()
    if commit is None or changed is None:
        return {"git.commit": commit or "unknown", "git.dirty": "unknown", **of_upload}
    where = {"git.changed": printable(", ".join(changed))[:MAX_CHANGED_CHARACTERS]} if changed else {}
    return {"git.commit": commit, "git.dirty": str(bool(changed)).lower(), **where, **of_upload}


def _changed_code() -> list[str] | None:
    """Return the files of the training code that differ from the commit, relative to the repository; None if git fails."""
    changed = _python_files(CODE, "diff", "--name-only", "HEAD")
    new = _python_files(CODE, *UNTRACKED)
    return None if changed is None or new is None else changed + [f"{name} (untracked)" for name in new]


def _python_files(folders: Sequence[str], *command: str) -> list[str] | None:
    found = _git(*command, "-z", "--", *(f"{folder}/*.py" for folder in folders))
    return None if found is None else [name for name in found.split("\0") if name]


def _local_changes() -> str:
    """Return the diff to the commit, without text that looks like a secret; empty inside the repository of another project.

    It includes untracked Python files of this project, such as studies.
    """
    top = Path(__file__).resolve().parents[3]
    if _git("rev-parse", "--show-toplevel") != str(top):
        return ""
    changes = _git("diff", "HEAD") or ""
    for name in _python_files((*CODE, "../.."), *UNTRACKED) or ():
        with suppress(OSError):
            lines = (top / name).read_text(encoding="utf-8", errors="replace").splitlines()
            changes += "\n" + "\n".join(difflib.unified_diff([], lines, "/dev/null", f"b/{name}", lineterm=""))
    changes = PRIVATE_KEY.sub("…", changes[:MAX_DIFF_CHARACTERS])
    return "\n".join(map(redact_secrets, changes.splitlines()))


def hide_secret(secret: str) -> None:
    """Leave a secret out of everything that `redact_secrets` returns from now on."""
    if secret:
        _secrets.add(secret)


def redact_secrets(text: str) -> str:
    """Return a printable line without secrets: passwords in addresses, webhooks, and everything after a name such as `token=`."""
    for secret in _secrets:
        text = text.replace(secret, "…")
    return SECRET.sub(r"\1…", WEBHOOK.sub(r"\1…", printable(text)))


def resubmit_command() -> str:
    """Return the command that submits this study again, without the options that would train or report finished runs anew."""
    if _call.get():
        return redact_secrets(_call.get())
    words = [word for word in sys.argv if word not in ("--rerun", "--fresh", "--report")]
    if not submission_id():
        return _command(words)
    return f"ray job submit {'--working-dir . ' if _upload() else ''}-- {_command(words)}"


def _command(words: Sequence[str]) -> str:
    return shlex.join(["python", *map(redact_secrets, words)])


def _upload() -> str:
    """Return Ray's name or the address of the working folder that the job uploaded; empty if there is none."""
    return printable(_job_config().get("runtime_env", {}).get("working_dir", "").removeprefix("gcs://"))


def submission_id() -> str | None:
    """Return the job's submission ID; None if `ray job submit` did not start this program."""
    name: str | None = _job_config().get("metadata", {}).get("job_submission_id")
    return name


def _job_config() -> dict[str, Any]:
    """Return the settings of the `ray job submit` that started this program; empty if it was started otherwise."""
    config: dict[str, Any] = json.loads(os.environ.get(JOB_CONFIG_VARIABLE) or "{}")
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


def machine_id() -> str:
    """Return an ID of the machine or container in which process IDs are unique: host name, boot ID and PID namespace.

    A host name alone may belong to two machines, or to two containers of one. On systems other than Linux, the ID is only the host
    name.
    """
    known = [socket.gethostname()]
    with suppress(OSError):
        known += [Path("/proc/sys/kernel/random/boot_id").read_text().strip(), os.readlink("/proc/self/ns/pid")]
    return " ".join(known)
