"""Whoever reads a program's output, or does not, has no say in what it does."""

import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from ablations.engine.environment import scratch_folders
from tests.helpers.project import PROJECT

STUDY = ("ablations/shortcuts.py", "--preset", "smoke", "--seeds", "1", "--levels", "shortcut=A", "depth=8")
COMMANDS = {
    "study": ("ablations/shortcuts.py", "--help"),
    "plan": (*STUDY, "--plan", "--no-calibrate"),
    "service": ("-m", "ablations.engine", "--help"),
    "model": ("-m", "resnet_core.model", "--depth", "8"),
    "data": ("-m", "resnet_core.data", "prepare", "--preset", "digits"),
}
ONLY_WHERE_IT_COUNTS = {name: COMMANDS[name] for name in ("study", "service")}
"""Those that import no torch."""
SPEAK = """
import os, sys
from resnet_core.streams import accept_everything
accept_everything()
print("3 × 0.1 ± 0.2 … häus \\udcff")
print("error: ×", file=sys.stderr)
for line in range(20_000):
    print("more than any buffer holds")
open(sys.argv[1], "w").write(f"{os.get_inheritable(1)}, done")
"""
LATIN_1 = {"PYTHONIOENCODING": "latin-1"}
ASCII = {"PYTHONIOENCODING": "ascii"}
NO_LOCALE = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def environment(home: Path, variables: dict[str, str]) -> dict[str, str]:
    return {**os.environ, "RESNET_ABLATIONS_HOME": str(home), "RAY_ADDRESS": "local", **variables}


def spoken(folder: Path, variables: dict[str, str], shell: str = "") -> tuple[int, str, str]:
    """Exit code and output of a program that has much to say, run with such redirections."""
    (folder / "speak.py").write_text(SPEAK, encoding="utf-8")
    command = f'"$@" {shell}; echo $? > {folder}/code'
    done = subprocess.run(
        ["bash", "-c", command, "bash", sys.executable, str(folder / "speak.py"), str(folder / "end")],
        cwd=PROJECT,
        env=environment(folder, variables),
        capture_output=True,
        check=True,
    )
    assert (folder / "end").read_text() == "True, done"
    encoding = variables.get("PYTHONIOENCODING", "utf-8")
    return int((folder / "code").read_text()), done.stdout.decode(encoding), done.stderr.decode(encoding)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variables", "out", "err"),
    [
        (ASCII, "3 x 0.1 +/- 0.2 ... h\\xe4us \\udcff", "error: x"),
        (NO_LOCALE, "3 x 0.1 +/- 0.2 ... h\\xe4us \\udcff", "error: x"),
        (LATIN_1, "3 × 0.1 ± 0.2 ... häus \\udcff", "error: ×"),
        ({"PYTHONUTF8": "1"}, "3 × 0.1 ± 0.2 … häus \\udcff", "error: ×"),
    ],
)
def test_characters_that_an_encoding_lacks_are_replaced(tmp_path: Path, variables: dict[str, str], out: str, err: str) -> None:
    code, output, error = spoken(tmp_path, variables)
    assert (code, output.splitlines()[0], output.count("\n"), error) == (0, out, 20_001, f"{err}\n")


@pytest.mark.slow
@pytest.mark.parametrize(
    "shell", ["| head -1", ">&-", "2>&-", "<&- >&- 2>&-", "> /dev/full", "> /dev/full 2>&1"], ids=lambda shell: shell.strip()
)
def test_output_that_nobody_takes_is_lost_without_a_word(tmp_path: Path, shell: str) -> None:
    code, _, error = spoken(tmp_path, {}, shell)
    assert (code, error.strip()) in ((0, ""), (0, "error: ×"))


def test_a_file_that_has_the_number_of_a_closed_stream_is_not_written_to(tmp_path: Path) -> None:
    program = tmp_path / "speak.py"
    program.write_text(f"file = open({str(tmp_path / 'data')!r}, 'w')\nassert file.fileno() == 1\n{SPEAK}", encoding="utf-8")
    command = ["bash", "-c", '"$@" >&-', "bash", sys.executable, str(program), str(tmp_path / "end")]
    subprocess.run(command, cwd=PROJECT, check=True, capture_output=True)
    assert (tmp_path / "end").exists()
    assert (tmp_path / "data").read_text() == ""


def test_a_pipe_that_is_full_and_does_not_block_is_waited_for(tmp_path: Path) -> None:
    code = f"import os; os.set_blocking(1, False)\n{SPEAK}"
    command = ["bash", "-c", '"$@" | (sleep 1; cat)', "bash", sys.executable, "-c", code, str(tmp_path / "end")]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=True)
    assert (tmp_path / "end").exists(), done.stderr
    assert done.stdout.count("\n") == 20_001


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["plan", *(pytest.param(name, marks=pytest.mark.nightly) for name in sorted({*COMMANDS} - {"plan"}))]
)
def test_every_command_speaks_ascii_where_it_has_to(tmp_path: Path, name: str) -> None:
    command = [sys.executable, *COMMANDS[name]]
    done = subprocess.run(command, cwd=PROJECT, env=environment(tmp_path, NO_LOCALE), capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.isascii()
    assert done.stdout.count(b"\n") > 5


@pytest.mark.slow
@pytest.mark.parametrize("name", ONLY_WHERE_IT_COUNTS)
def test_a_command_whose_reader_is_gone_ends_as_it_would_have(tmp_path: Path, name: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, *COMMANDS[name]]
    done = subprocess.run(command, cwd=PROJECT, env=environment(tmp_path, {}), stdout=writer, stderr=subprocess.PIPE, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.nightly
def test_a_study_whose_reader_is_gone_and_lacks_characters_trains_to_its_end(home: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as killed:
        pass
    left = home / "tune" / scratch_folders.owned_folder_name("train").replace(f"-{os.getpid()}", f"-{killed.pid}")
    left.mkdir(parents=True)
    with subprocess.Popen(
        [sys.executable, *STUDY],
        cwd=PROJECT,
        env=environment(home, NO_LOCALE),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    ) as study:
        assert study.stdout
        assert study.stdout.readline().startswith(b"Data: ")
        assert study.stdout.readline() == b"shortcuts on synthetic: 1 run to train, 0 done already.\n"
        study.stdout.close()
        assert study.wait(300) == 0
    assert not list((home / "tune").iterdir()), "its own folder is removed, and that of a process that was killed"
    with closing(sqlite3.connect(home / "mlflow.db")) as database:
        assert [status for (status,) in database.execute("SELECT status FROM runs")] == ["FINISHED"] * 2
