"""What a person sees while a study runs."""

import io
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from ablations.engine import terminal
from ablations.engine.study import Plan, Request, make_plan
from ablations.engine.terminal import Progress
from ablations.shortcuts import STUDY


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


METRICS = {"train/error": 1.0, "test/error": 2.0}


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return make_plan(STUDY, Request(preset="smoke"), cache=tmp_path)


def test_a_run_whose_process_died_does_not_count_as_running_until_it_has_another(plan: Plan) -> None:
    progress = Progress(Console(file=io.StringIO()), plan, plan.runs)
    first, second = plan.runs[:2]
    for run in (first, second):
        progress.started(run)
    progress.interrupted(first, "its process died")
    progress.epoch(second, 1, METRICS)
    assert " · 1 running · " in str(progress._totals())
    progress.started(first)
    assert " · 2 running · " in str(progress._totals())


def test_a_log_says_how_far_a_study_is_also_when_nothing_happens(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terminal, "HEARTBEAT_SECONDS", 0.05)
    shown = io.StringIO()

    def said() -> str:
        before = shown.tell()
        until(lambda: shown.tell() > before)
        return shown.getvalue()[before:].splitlines()[0]

    with Progress(Console(file=shown, width=120), plan, plan.runs) as progress:
        assert said().startswith("0 of 24 done · 0 running (processes start, or wait for room: ray status) · 0 failed")
        progress.started(plan.runs[0])
        said()
        assert said().startswith("0 of 24 done · 1 running · 0 failed")
        progress.epoch(plan.runs[0], 1, METRICS)
        progress.ended(plan.runs[0], "completed")
    end = shown.tell()
    time.sleep(0.2)
    assert shown.tell() == end


def test_a_line_is_left_out_where_another_has_just_been_written(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terminal, "HEARTBEAT_SECONDS", 5.0)
    shown = io.StringIO()
    with Progress(Console(file=shown, width=120), plan, plan.runs) as progress:
        for run in plan.runs:
            progress.started(run)
            progress.ended(run, "failed", "for a reason")
            time.sleep(0.05)
    assert "running" not in shown.getvalue()
