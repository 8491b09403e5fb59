"""What a person sees while a study runs."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from ablations.engine.study import Request, make_plan
from ablations.engine.terminal import Progress
from ablations.shortcuts import STUDY


def test_a_run_whose_process_died_does_not_count_as_running_until_it_has_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ablations.engine.terminal.HEARTBEAT_SECONDS", 0.0)
    shown = io.StringIO()
    plan = make_plan(STUDY, Request(preset="smoke"), cache=tmp_path)
    first, second = plan.runs[:2]
    metrics = {"train/error": 1.0, "test/error": 2.0}
    with Progress(Console(file=shown, width=120), plan, plan.runs) as progress:
        for run in (first, second):
            progress.started(run)
        progress.interrupted(first, "its process died")
        progress.epoch(second, 1, metrics)
        progress.started(first)
        progress.epoch(second, 2, metrics)
    assert [line.split(" · ")[1] for line in shown.getvalue().splitlines() if "running" in line] == ["1 running", "2 running"]
