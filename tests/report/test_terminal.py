"""Terminal output while a study runs."""

import io
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pandas as pd
import pytest
from rich.console import Console

from ablations.engine.report import terminal
from ablations.engine.report.fitted_table import FittedTable
from ablations.engine.study.expansion import make_plan
from ablations.engine.study.plan import Plan
from ablations.engine.study.request import StudyRequest
from ablations.engine.submission.progress import Progress
from ablations.shortcuts import STUDY
from tests.helpers import synthetic_study
from tests.helpers.synthetic_findings import cell, findings


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def table_of(width: int, *, factors: int = 2, problems: bool = False) -> list[str]:
    """Lines of the results of cells that differ in so many factors."""
    names = [f"{chr(97 + i)}_factor" for i in range(factors)]
    cells = [cell(" ".join(f"{name}=level-{j}" for name in names), problems={"failed": 1} if problems else {}) for j in range(3)]
    design = SimpleNamespace(
        factors=dict.fromkeys(names), metric=synthetic_study.TEST_ERROR, title="t", question="q?", test_examples=0, kind="factorial"
    )
    text = io.StringIO()
    Console(file=text, width=width).print(terminal.result_view(cast(Any, design), findings(*cells)))
    return [line.rstrip() for line in text.getvalue().splitlines()]


METRICS = {"train/error": 1.0, "test/error": 2.0}


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return make_plan(STUDY, StudyRequest(preset="smoke"), cache=tmp_path)


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
    monkeypatch.setattr("ablations.engine.submission.progress.TOTALS_INTERVAL_SECONDS", 0.05)
    shown = io.StringIO()

    def said() -> str:
        before = shown.tell()
        until(lambda: shown.tell() > before)
        return shown.getvalue()[before:].splitlines()[0]

    with Progress(Console(file=shown, width=120), plan, plan.runs) as progress:
        assert said().startswith(
            "0 of 24 done · 0 running (processes are starting, or wait for free resources: see ray status) · 0 failed"
        )
        progress.started(plan.runs[0])
        said()
        assert said().startswith("0 of 24 done · 1 running · 0 failed")
        progress.epoch(plan.runs[0], 1, METRICS)
        progress.ended(plan.runs[0], "completed")
    end = shown.tell()
    time.sleep(0.2)
    assert shown.tell() == end


def test_a_line_is_left_out_where_another_has_just_been_written(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ablations.engine.submission.progress.TOTALS_INTERVAL_SECONDS", 5.0)
    shown = io.StringIO()
    with Progress(Console(file=shown, width=120), plan, plan.runs) as progress:
        for run in plan.runs:
            progress.started(run)
            progress.ended(run, "failed", "for a reason")
            time.sleep(0.05)
    assert "running" not in shown.getvalue()


def test_a_wide_terminal_has_all_columns_of_the_results() -> None:
    _, header, *lines = table_of(200, problems=True)
    shown = "a_factor b_factor test error % train error % n difference [95 %] p, adjusted parameters s / run note"
    assert " ".join(header.split()) == shown
    assert lines[1].split()[:2] == ["level-1", "level-1"]
    assert lines[1].endswith("12.3  1 failed")
    assert not any("Not shown" in line for line in lines)


@pytest.mark.parametrize(
    ("width", "left"),
    [
        (100, "s / run"),
        (80, "train error %, parameters, s / run"),
        (60, "train error %, p, adjusted, parameters, s / run"),
    ],
)
def test_a_narrow_terminal_leaves_out_what_matters_least_and_says_so(width: int, left: str) -> None:
    _, header, *lines = table_of(width)
    assert all(len(line) <= width for line in [header, *lines])
    assert header.startswith("a_factor  b_factor  ")
    assert [line.split()[:2] for line in lines[:3]] == [[f"level-{j}"] * 2 for j in range(3)]
    assert "test error %" in header
    assert "8.12 ± 0.43" in lines[1]
    assert " ".join(lines[3:]).strip().startswith(f"Not shown in {width} columns: {left} (see the report, or a wider terminal)")


@pytest.mark.parametrize(
    ("missing", "runs", "said"),
    [
        (1, 1, "1 of 1 run has no result"),
        (1, 3, "1 of 3 runs has no result"),
        (2, 3, "2 of 3 runs have no result"),
    ],
)
def test_a_study_with_missing_results_says_how_many_and_how_to_go_on(missing: int, runs: int, said: str) -> None:
    cells = [cell("a=1"), cell("a=2", None, planned=missing, problems={"missing": missing})]
    rows = pd.DataFrame({"cell": "a=1", "seed": range(runs), "outcome": "missing", "message": ""})
    design = synthetic_study.design({"a": ("1",)}, {})
    text = io.StringIO()
    evidence = cast(Any, SimpleNamespace(design=design, runs=rows))
    terminal.show_results(Console(file=text, width=120), evidence, findings(*cells), "again")
    last = text.getvalue().splitlines()[-1]
    assert last.startswith(said)
    assert last.endswith("again")


def test_names_that_do_not_fit_are_folded_and_not_cut() -> None:
    lines = table_of(60, factors=8)[2:]
    assert "…" not in "".join(lines)
    assert "".join(lines).count("8.12 ± 0.43") == 3
    shown = "".join("".join(line.split()) for line in lines)
    assert shown.count("1") >= 8


def test_a_factor_with_the_name_of_a_column_stays() -> None:
    table = FittedTable(["epochs"], ["epochs", "time"], optional=["epochs", "time"], elsewhere="elsewhere")
    table.add_row(["5 as a level", "5 epochs long", "an hour"])
    text = io.StringIO()
    Console(file=text, width=20).print(table)
    assert [line.rstrip() for line in text.getvalue().splitlines()] == [
        "epochs           ".rstrip(),
        "5 as a level",
        "Not shown in 20",
        "columns: epochs,",
        "time (elsewhere)",
    ]


def test_what_runs_is_named_in_a_narrow_terminal(plan: Plan) -> None:
    text = io.StringIO()
    progress = Progress(Console(file=text, width=40), plan, plan.runs)
    run = plan.runs[0]
    progress.started(run)
    progress.epoch(run, 1, METRICS)
    progress.console.print(progress._render())
    assert f"{run}  " in text.getvalue()


def test_runs_of_a_cell_that_failed_for_the_same_reason_are_one_line() -> None:
    given = synthetic_study.evidence()
    for seed, message in ((0, "disk full"), (1, "no network"), (2, "disk full")):
        given = synthetic_study.without(given, f"shortcut=A depth=20/{seed}", "failed", message)
    assert terminal.failure_lines(given) == [
        "shortcut=A depth=20 seeds=0,2: failed, disk full",
        "shortcut=A depth=20 seed=1: failed, no network",
    ]
