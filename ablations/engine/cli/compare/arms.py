"""The two sides of a comparison: a commit, the working tree, or a configuration, whose study runs in a process of its own."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ablations.engine.study.factors import format_level
from resnet_core.fields import ConfigError, reject

WORKING_TREE = "."
ACCEPTED = "accepted: a commit, . for the working tree, or a configuration such as optim.lr=0.2 or '{\"optim.lr\": 0.2}'"


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One side of a comparison."""

    name: str
    """The side as it was given."""
    study: Path
    """File of the study."""
    commit: str = ""
    """Commit to train; empty for the working tree."""
    fields: Mapping[str, str] = field(default_factory=dict)
    """Fields that differ from the study."""
    folder: Path | None = None
    """Root of the code to import; None: what this Python imports."""

    def document(self, options: Sequence[str]) -> tuple[int, dict[str, Any] | None]:
        """Run the study with `--json`; return its exit code and its document, which is None if it has printed none.

        Its messages go to standard error.

        Raises:
            ConfigError: the study rejects the request.
        """
        command = [sys.executable, str(self.study), "--json", *options]
        error = ""
        with tempfile.TemporaryFile("w+", encoding="utf-8") as document:
            with subprocess.Popen(  # noqa: S603
                command,
                env=self._environment(),
                stdout=document,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
                start_new_session=True,  # a terminal's Ctrl-C would reach it a second time, which ends a study at once
            ) as process:
                try:
                    for line in process.stderr or ():
                        if line.startswith("error: "):
                            error = line.removeprefix("error: ").strip()
                        else:
                            sys.stderr.write(f"{self.name}: {line}")
                    code = process.wait()
                except KeyboardInterrupt:
                    process.send_signal(signal.SIGINT)
                    sys.stderr.writelines(f"{self.name}: {line}" for line in process.stderr or ())
                    process.wait()  # its checkout must not disappear under it
                    raise
            document.seek(0)
            text = document.read()
        if error and code > 1:
            found = ConfigError(f"{self.name}: {error}")
            found.exit_code = code
            raise found
        if error:
            print(f"{self.name}: {error}", file=sys.stderr)
        try:
            return code, json.loads(text)
        except ValueError:
            return code, None

    def _environment(self) -> dict[str, str]:
        if self.folder is None:
            return dict(os.environ)
        path = os.pathsep.join(filter(None, (str(self.folder), os.environ.get("PYTHONPATH"))))
        # Workers of a running cluster may import other code than that of the commit.
        return {**os.environ, "PYTHONPATH": path, "RAY_ADDRESS": "local"}


def parse_arm(text: str, study: Path) -> Arm:
    """Return a side of a comparison; raise ConfigError for text that is neither a commit nor a configuration."""
    arm = Arm(name=text, study=study)
    if text == WORKING_TREE:
        return arm
    if text.lstrip().startswith("{"):
        return replace(arm, fields=_json_fields(text))
    if "=" in text:
        return replace(arm, fields=_assignments(text))
    commit = _git(study.parent, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{text}^{{commit}}")
    if not commit:
        raise reject("compare", text, ACCEPTED)
    return replace(arm, commit=commit)


@contextmanager
def checked_out(arm: Arm, *, own_code: bool) -> Iterator[Arm]:
    """Yield the side with its code in place. A commit is checked out in a worktree of its own, which is removed at the end.

    Args:
        arm: the side.
        own_code: import the code of the repository that holds the study, as for a commit.
    """
    root = _git(arm.study.parent, "rev-parse", "--show-toplevel")
    if not arm.commit:
        yield replace(arm, folder=Path(root)) if own_code and root else arm
        return
    assert root is not None, "parse_arm has found the commit"
    relative = arm.study.resolve().relative_to(Path(root).resolve())
    with tempfile.TemporaryDirectory(prefix="ablations-compare-") as folder:
        checkout = Path(folder) / "checkout"
        if _git(Path(root), "worktree", "add", "--detach", "--quiet", str(checkout), arm.commit) is None:
            raise reject("compare", arm.name, "git cannot check it out in a worktree")
        try:
            if not (checkout / relative).exists():
                raise reject("--study", str(relative), f"does not exist in {arm.name}; accepted: a study of both sides")
            yield replace(arm, study=checkout / relative, folder=checkout)
        finally:
            _git(Path(root), "worktree", "remove", "--force", str(checkout))


def _assignments(text: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for word in text.split():
        name, mark, value = word.partition("=")
        if not mark or not name or name in found:
            raise reject("compare", text, ACCEPTED)
        found[name] = value
    return found


def _json_fields(text: str) -> dict[str, str]:
    try:
        values = json.loads(text)
    except ValueError as error:
        raise reject("compare", text, ACCEPTED) from error
    return {str(name): format_level(value) for name, value in values.items()}


def _git(folder: Path, *arguments: str) -> str | None:
    """Return the output of git in a folder; None if it fails."""
    try:
        done = subprocess.run(  # noqa: S603
            ["git", *arguments],  # noqa: S607
            cwd=folder,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None
