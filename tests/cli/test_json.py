"""`--json` prints one document to standard output, and `--expect` decides the exit code."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ablations.engine.cli import dispatch, options
from ablations.engine.cli.study import main
from ablations.engine.environment import crash_report
from ablations.engine.environment.console import document_on_stdout
from ablations.engine.study.plan import Plan
from ablations.engine.study.request import Options
from ablations.engine.submission import reporting
from ablations.engine.tracking.journal import study_is_locked_error
from resnet_core import ConfigError
from tests.helpers.json_schemas import problems
from tests.helpers.stored_study import RUNS, STUDY


def run_main(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Run the command line; return exit code, standard output and standard error."""
    monkeypatch.setattr(sys, "argv", ["stored.py", *arguments])
    monkeypatch.setenv("RAY_ADDRESS", "local")
    with pytest.raises(SystemExit) as exit_:
        main(STUDY)
    assert isinstance(exit_.value.code, int)
    return exit_.value.code, *capfd.readouterr()


def test_a_report_as_json_is_the_findings_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], stored_uri: str
) -> None:
    monkeypatch.setattr(reporting, "publish", lambda *_, **__: None)  # figures take a minute on a busy machine
    code, out, err = run_main(
        monkeypatch, capfd, "--report", "--json", "--tracking-uri", stored_uri, "--expect", "depth matters", "--seeds", "2"
    )
    found = json.loads(out)
    assert problems("findings", found) == []
    assert (found["study"]["name"], found["complete"], found["looks"]) == ("stored", True, [2])
    assert "secret" not in out
    assert [each["verdict"] for each in found["expectations"]] == ["not shown"]
    assert code == 3
    assert "depth matters: not shown" in err


def test_a_plan_as_json_counts_what_is_done_and_names_every_run(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], stored_uri: str
) -> None:
    arguments = ["--plan", "--json", "--no-calibrate", "--tracking-uri", stored_uri]
    code, out, _ = run_main(monkeypatch, capfd, *arguments, "--seeds", "4")
    found = json.loads(out)
    assert problems("plan", found) == []
    assert (code, found["runs"], found["done"], found["missing"]) == (0, RUNS + 4, RUNS, 4)
    assert [run["done"] for run in found["cells"][0]["runs"]] == [True] * 3 + [False]
    assert len({run["fingerprint"] for cell in found["cells"] for run in cell["runs"]}) == RUNS + 4
    assert found["cells"][0]["levels"] == {"shortcut": "none", "depth": 8}
    assert (found["estimate"]["runs"], found["estimate"]["seconds"]) == (0, None)  # no measured run is like these
    reason = "this machine has none"  # tests see no GPU
    assert {"gpus_per_worker": 0, "reason": reason, "other_devices": ""}.items() <= found["resources"].items()


def test_designs_are_compared_by_their_cost_and_by_what_they_find(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], stored_uri: str
) -> None:
    options_ = ("--plan", "--design", "all", "--no-calibrate", "--tracking-uri", stored_uri)
    code, out, _ = run_main(monkeypatch, capfd, *options_, "--json")
    compared = json.loads(out)
    assert code == 0
    assert compared["schema"] == "ablations-designs/1"
    found = {each["design"]: each for each in compared["designs"]}
    assert list(found) == ["factorial", "one-at-a-time", "ladder"]
    assert [each["design"] for each in compared["impossible"]] == ["screening", "screening-iii"]
    assert (found["factorial"]["cells"], found["factorial"]["runs"], found["factorial"]["missing"]) == (4, RUNS, 0)
    assert (found["one-at-a-time"]["cells"], found["ladder"]["cells"]) == (3, 3)
    assert (found["one-at-a-time"]["effects"], found["ladder"]["effects"]) == (2, 3)  # and the whole ladder
    assert found["factorial"]["detectable"] < found["one-at-a-time"]["detectable"] < found["ladder"]["detectable"]
    code, out, _ = run_main(monkeypatch, capfd, *options_)
    assert code == 0
    assert "screening is not possible: design=screening: the study has 2 factors with two levels; accepted: 4 to 15" in " ".join(
        out.split()
    )


@pytest.mark.parametrize("more", [["--plan"], ["--report"], []])
def test_an_error_is_one_line_on_standard_error(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], stored_uri: str, more: list[str]
) -> None:
    def started(*_: object, **__: object) -> None:
        raise AssertionError("Ray was started")

    monkeypatch.setattr("ray.init", started)
    arguments = ["--json", "--tracking-uri", stored_uri, "--expect", "shortcut=B better than A", *more]
    code, out, err = run_main(monkeypatch, capfd, *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("error: --expect=shortcut=B better than A: B is no level of shortcut; accepted: none, A")


def test_a_study_that_runs_already_has_an_exit_code_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    def work() -> int:
        raise study_is_locked_error("small", "process 7")

    assert crash_report.run_program(work, "interrupted") == 5
    assert capsys.readouterr().err == "error: study=small: is running already: process 7 holds it; wait until it ends, or stop it\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "verdicts", "expected"),
    [
        (0, [], 0),
        (0, ["shown", "shown"], 0),
        (0, ["shown", "not shown"], 3),
        (0, ["not shown", "contradicted"], 4),
        (1, ["not shown"], 1),
        (1, ["contradicted"], 1),
    ],
)
def test_the_exit_code_is_that_of_the_worst_expectation_unless_a_run_has_no_result(
    monkeypatch: pytest.MonkeyPatch, stored_uri: str, code: int, verdicts: list[str], expected: int
) -> None:
    from ablations.engine.analysis.verdicts import expectations

    def assess(*_: object) -> tuple[expectations.Assessment, ...]:
        return tuple(expectations.Assessment(expectation="?", verdict=verdict, text="?") for verdict in verdicts)

    def train(plan: Plan, given: Options) -> int:
        return code

    monkeypatch.setenv("RAY_ADDRESS", "local")
    monkeypatch.setattr(expectations, "assess", assess)
    monkeypatch.setattr(dispatch, "train", train)
    emitted: list[str] = []
    chosen = options.parse_options(STUDY, ["--json", "--tracking-uri", stored_uri])
    assert dispatch.carry_out(STUDY, chosen, emitted.append) == expected
    assert [json.loads(text)["complete"] for text in emitted] == [True]


def test_a_study_whose_results_cannot_be_read_keeps_its_exit_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    codes = iter([1, 0])
    monkeypatch.setenv("RAY_ADDRESS", "local")
    monkeypatch.setattr(dispatch, "train", lambda *_: next(codes))
    chosen = options.parse_options(STUDY, ["--json", "--tracking-uri", f"sqlite:///{tmp_path}/none.db"])
    assert dispatch.carry_out(STUDY, chosen, pytest.fail) == 1
    assert "the database does not exist" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="the database does not exist"):
        dispatch.carry_out(STUDY, chosen, pytest.fail)


def test_output_of_libraries_and_child_processes_goes_to_standard_error(capfd: pytest.CaptureFixture[str]) -> None:
    with document_on_stdout() as emit:
        print("of Python")
        os.write(1, b"of a library\n")
        subprocess.run([sys.executable, "-c", "print('of a child')"], check=True)
        emit('{"a": 1}\n')
    print("afterwards")
    out, err = capfd.readouterr()
    assert out == '{"a": 1}\nafterwards\n'
    assert sorted(err.splitlines()) == ["of Python", "of a child", "of a library"]


def test_a_document_survives_a_reader_that_has_gone(tmp_path: Path) -> None:
    code = "from ablations.engine.environment.console import document_on_stdout as d\nwith d() as emit:\n    emit('x' * 10**6)"
    done = subprocess.run(f'{sys.executable} -c "{code}" | head -c 1', shell=True, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("x", "")
