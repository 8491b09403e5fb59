"""Who stops a study hears that it was stopped, whatever it was doing."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ablations.engine import cli, interrupts
from ablations.shortcuts import STUDY

PROJECT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in interrupts.SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", interrupts.SIGNALS)
def test_a_signal_waits_for_the_end_of_what_must_not_be_interrupted(number: signal.Signals) -> None:
    heard = interrupts.Interrupts()
    done = False

    def work() -> None:
        nonlocal done
        with interrupts.held():
            signal.raise_signal(number)
            done = True

    with pytest.raises(KeyboardInterrupt):
        work()
    assert done
    assert heard.heard
    with pytest.raises(KeyboardInterrupt):  # as before
        signal.raise_signal(number)


def test_an_error_that_a_library_makes_of_a_signal_is_told_as_the_interruption_that_it_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def act(*_: object) -> int:
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt as error:
            raise ImportError("initialization failed") from error
        return 0

    monkeypatch.setattr(cli, "_act", act)
    monkeypatch.setattr(sys, "argv", ["shortcuts.py"])
    with pytest.raises(SystemExit) as ended:
        cli.main(STUDY)
    assert (ended.value.code, capsys.readouterr().err) == (1, f"{cli.INTERRUPTED}\n")


@pytest.mark.parametrize("number", interrupts.SIGNALS)
def test_a_signal_at_the_very_end_changes_nothing(number: signal.Signals, tmp_path: Path) -> None:
    code = f"""
import atexit, signal, sys
atexit.register(signal.raise_signal, {int(number)})  # before it come the callbacks of what was imported later
from ablations.shortcuts import STUDY
from ablations.engine.cli import main
sys.argv = ["shortcuts.py", "--preset", "no-such"]
main(STUDY)
"""
    environment = {**os.environ, "RESNET_ABLATIONS_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
