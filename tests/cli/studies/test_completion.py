"""Shells complete commands, options and the names of studies."""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ablations.engine.cli import commands


def complete(line: str, uri: str, home: Path) -> list[str]:
    """Return what argcomplete offers for a line, as a shell asks for it."""
    environment = {
        **os.environ,
        "_ARGCOMPLETE": "1",
        "_ARGCOMPLETE_IFS": "\n",
        "_ARGCOMPLETE_SHELL": "bash",
        "COMP_LINE": line,
        "COMP_POINT": str(len(line)),
        "MLFLOW_TRACKING_URI": uri,
        "RESNET_ABLATIONS_HOME": str(home),
    }
    code = "import os; from ablations.engine.cli import commands; commands.main()"
    script = f"exec 8>&1; {sys.executable} -c '{code}' >/dev/null 2>&1"
    done = subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True, check=False, timeout=60)
    return [word.strip() for word in done.stdout.splitlines()]


def test_commands_options_and_studies_are_completed(stored_uri: str, tmp_path: Path) -> None:
    assert {"list", "logs"} <= set(complete("ablations l", stored_uri, tmp_path))
    assert "--older-than" in complete("ablations clean --o", stored_uri, tmp_path)
    assert complete("ablations show st", stored_uri, tmp_path) == ["stored"]
    assert complete("ablations show st", "http://127.0.0.1:9", tmp_path) == []
    for line in ("export st", "compare st", "compare stored st", "clean stored st"):
        assert complete(f"ablations {line}", stored_uri, tmp_path) == ["stored"], line


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_code_for_a_shell_is_accepted_by_it(shell: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert commands.main(["completion", shell]) == 0
    code = capsys.readouterr().out
    assert "ablations" in code
    if shutil.which(shell):
        file = tmp_path / "code"
        file.write_text(code)
        assert subprocess.run([shell, "-n", str(file)], check=False).returncode == 0


@pytest.mark.skipif(not shutil.which("zsh"), reason="there is no zsh")
@pytest.mark.parametrize("set_up", ["", "autoload -Uz compinit; compinit -u; "])
def test_zsh_takes_the_code_with_and_without_its_completion_system(
    set_up: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert commands.main(["completion", "zsh"]) == 0
    script = f"{set_up}eval {shlex.quote(capsys.readouterr().out)}; print -r -- $_comps[ablations]"
    done = subprocess.run(
        ["zsh", "-f", "-c", script],
        env={**os.environ, "HOME": str(tmp_path), "ZDOTDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.stdout.strip(), done.stderr) == ("_python_argcomplete", "")
