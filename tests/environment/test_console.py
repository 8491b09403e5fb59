"""The console of commands and notebooks."""

import io
import sys

import pytest
from rich import console as rich_console

from ablations.engine.environment.console import LOG_WIDTH_CHARACTERS, Paragraph, make_console


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("stream", [io.StringIO, Terminal])  # Jupyter's streams say that they are terminals
def test_a_notebook_gets_lines_as_a_log_does(stream: type[io.StringIO], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rich_console, "_is_jupyter", lambda: True)
    monkeypatch.setattr(sys, "stdout", stream())
    console = make_console()
    assert (console.is_terminal, console.is_jupyter, console.width) == (False, False, LOG_WIDTH_CHARACTERS)


@pytest.mark.parametrize(("stream", "terminal"), [(io.StringIO, False), (Terminal, True)])
def test_a_program_gets_a_terminal_if_it_has_one(
    stream: type[io.StringIO], terminal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "JUPYTER_COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "stdout", stream())
    assert make_console().is_terminal is terminal


def test_a_paragraph_is_wrapped_at_the_width_without_blanks_at_the_ends_of_lines() -> None:
    words = [f"{'x' * (number % 9 + 1)}" for number in range(100)]
    console = rich_console.Console(width=60, file=io.StringIO())
    with console.capture() as capture:
        console.print(Paragraph(" ".join(words) + "\x1b"))
    lines = capture.get().splitlines()
    assert " ".join(lines) == " ".join(words) + r"\x1b"
    assert 50 < max(map(len, lines)) <= 60
    assert all(line == line.rstrip() for line in lines)
