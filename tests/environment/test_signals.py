"""A stopped program reports that it was interrupted, in whatever phase the signal arrives."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ablations.engine.cli import dispatch, study
from ablations.engine.environment import signals
from ablations.shortcuts import STUDY
from resnet_core import ConfigError
from tests.helpers.project import PROJECT

WHILE_IMPORTING = """
import signal, sys

class Watch:
    def find_spec(self, name, *_):
        if name == {imported!r}:
            signal.raise_signal({number})

sys.meta_path.insert(0, Watch())
{program}
"""
IMPORTS = {
    "ablations": "from ablations import Study, main",
    "older packages": "from ablations.engine.cli import main\nfrom ablations.engine.study import Study",
    "modules": "from ablations.engine.cli.study import main\nfrom ablations.engine.study.definition import Study",
}
"""Ways in which study files import the public names."""
STUDY_FILE = """
main(Study(name="x", question="?", factors={"depth": (8,)}, baseline={"depth": 8}, preset="no-such"))
"""
CONSOLE_COMMAND = """
import runpy
runpy.run_module("{module}", run_name="__main__", alter_sys=True)
"""
IGNORED = """
import signal, time
from ablations.engine.environment import crash_report as last_resort

class Object:
    def __del__(self):
        signal.raise_signal(signal.SIGTERM)

def work():
    Object()
    time.sleep(60)
    return 0

last_resort.signals.exit_ignoring_first_signal(last_resort.run_program(work, "was interrupted"))
"""
ENDLESS = """
import atexit, signal, time
from ablations.engine.environment import signals as interrupts

def end():
    signal.raise_signal(signal.SIGTERM)
    print("one", flush=True)
    signal.raise_signal(signal.SIGINT)
    time.sleep(60)

atexit.register(end)
interrupts.exit_ignoring_first_signal(7)
"""
JOINING = """
import signal, sys, time
import ray._private.node
from ablations.engine.environment import crash_report as last_resort

when = getattr(ray._private.node.Node, sys.argv[1], None)

def interrupted(self):
    when(self)
    signal.raise_signal(signal.SIGTERM)

def work():
    from ablations.engine.scheduling import connection

    if when:
        setattr(ray._private.node.Node, sys.argv[1], interrupted)
    connection.connect()
    signal.raise_signal(signal.SIGTERM)
    return 0

code = last_resort.run_program(work, "was interrupted")
time.sleep(4)  # longer than the C++ core, if it has heard of the signal, leaves a process to live
last_resort.signals.exit_ignoring_first_signal(code)
"""


@pytest.mark.parametrize("number", signals.SIGNALS)
def test_a_deferred_signal_is_delivered_at_the_end_of_the_block(number: signal.Signals) -> None:
    heard = signals.InterruptHandler()
    done = False

    def work() -> None:
        nonlocal done
        with signals.deferred_signals():
            signal.raise_signal(number)
            done = True

    with pytest.raises(KeyboardInterrupt):
        work()
    assert done
    assert heard.received
    with pytest.raises(KeyboardInterrupt):  # as before
        signal.raise_signal(number)


def test_a_library_that_replaces_the_handler_of_sigterm_is_interrupted_all_the_same() -> None:
    """`ray.init` does so, and then ends by SystemExit in the middle of its work."""
    heard = signals.InterruptHandler()

    def work() -> None:
        with signals.deferred_signals():
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(15))
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(KeyboardInterrupt):
        work()
    assert heard.received


@pytest.mark.parametrize("first", signals.SIGNALS)
@pytest.mark.parametrize("second", signals.SIGNALS)
def test_a_first_signal_is_noted_and_a_second_one_interrupts(first: signal.Signals, second: signal.Signals) -> None:
    heard = signals.InterruptHandler()

    def work() -> None:
        with signals.first_signal_noted() as is_noted:
            noted.append(is_noted())
            signal.raise_signal(first)
            noted.append(is_noted())
            noted.append(heard.received)
            signal.raise_signal(second)

    noted = list[bool]()
    with pytest.raises(KeyboardInterrupt):
        work()
    assert noted == [False, True, False]
    with pytest.raises(KeyboardInterrupt):  # as before
        signal.raise_signal(first)


def test_an_error_that_a_signal_causes_in_a_library_is_reported_as_an_interrupt(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def act(*_: object) -> int:
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt as error:
            raise ImportError("initialization failed") from error
        return 0

    monkeypatch.setattr(dispatch, "carry_out", act)
    monkeypatch.setattr(sys, "argv", ["shortcuts.py"])
    with pytest.raises(SystemExit) as ended:
        study.main(STUDY)
    assert (ended.value.code, capsys.readouterr().err) == (1, f"{study.INTERRUPTED_MESSAGE}\n")


def ended(home: Path, program: Path, *arguments: str) -> tuple[int, str, str]:
    """Run a program; return its exit code, stdout and stderr."""
    environment = {**os.environ, "RESNET_ABLATIONS_HOME": str(home), "RAY_ADDRESS": "local"}
    command = [sys.executable, str(program), *arguments]
    done = subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("number", signals.SIGNALS)
@pytest.mark.parametrize("imported", ["ablations.engine.environment.crash_report", "numpy"])  # the first import, and a slow one
@pytest.mark.parametrize("imports", IMPORTS)
def test_a_signal_while_a_study_file_imports_is_one_line(
    tmp_path: Path, number: signal.Signals, imported: str, imports: str
) -> None:
    program = f"{IMPORTS[imports]}\n{STUDY_FILE}"
    path = tmp_path / "study.py"
    path.write_text(WHILE_IMPORTING.format(number=int(number), imported=imported, program=program))
    assert ended(tmp_path, path) == (1, "", f"{study.INTERRUPTED_MESSAGE}\n")


@pytest.mark.parametrize("number", signals.SIGNALS)
@pytest.mark.parametrize("module", ["ablations", "ablations.engine"])
def test_a_signal_while_the_console_command_imports_is_one_line(tmp_path: Path, number: signal.Signals, module: str) -> None:
    path = tmp_path / "program.py"
    program = CONSOLE_COMMAND.format(module=module)
    path.write_text(WHILE_IMPORTING.format(number=int(number), imported="psutil", program=program))
    assert ended(tmp_path, path) == (1, "", "interrupted\n")


def test_a_signal_during_a_finalizer_is_not_lost(tmp_path: Path) -> None:
    path = tmp_path / "program.py"
    path.write_text(IGNORED)
    assert ended(tmp_path, path) == (1, "", "was interrupted\n")


def test_importing_a_study_as_a_library_changes_no_signal_handlers(tmp_path: Path) -> None:
    program = "from ablations.shortcuts import STUDY\nprint('in time')"
    path = tmp_path / "notebook.py"
    path.write_text(WHILE_IMPORTING.format(number=int(signal.SIGTERM), imported="numpy", program=program))
    assert ended(tmp_path, path) == (-signal.SIGTERM, "", "")


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.parametrize("when", ["start_head_processes", pytest.param("after the start", marks=pytest.mark.nightly)])
def test_sigterm_while_ray_starts_is_handled_like_any_interrupt(tmp_path: Path, when: str) -> None:
    path = tmp_path / "program.py"
    path.write_text(JOINING)
    assert ended(tmp_path, path, when) == (1, "", "was interrupted\n")


def test_a_second_signal_ends_a_slow_shutdown(tmp_path: Path) -> None:
    path = tmp_path / "program.py"
    path.write_text(ENDLESS)
    assert ended(tmp_path, path) == (7, "one\n", "")


def test_a_failed_start_of_ray_is_one_line_with_a_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ablations.engine.environment import private_files
    from ablations.engine.scheduling import connection

    (taken := tmp_path / "taken").write_text("a file where Ray wants a folder")
    monkeypatch.setenv("RAY_ADDRESS", "local")
    monkeypatch.setattr(private_files, "make_ray_folder", lambda: (taken, 0))
    with pytest.raises(ConfigError, match=r"^Ray does not start on this machine \(.+\). .*RAY_ADDRESS"):
        connection.connect()


@pytest.mark.slow
@pytest.mark.parametrize("number", signals.SIGNALS)
def test_a_first_signal_during_shutdown_does_not_change_the_exit_code(number: signal.Signals, tmp_path: Path) -> None:
    code = f"""
import atexit, signal, sys
atexit.register(signal.raise_signal, {int(number)})  # before it come the callbacks of what was imported later
from ablations.shortcuts import STUDY
from ablations.engine.cli.study import main
sys.argv = ["shortcuts.py", "--preset", "no-such"]
main(STUDY)
"""
    environment = {**os.environ, "RESNET_ABLATIONS_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
