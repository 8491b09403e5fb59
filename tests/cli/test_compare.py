"""`ablations compare` plans, trains and judges both sides by their documents."""

import json
import signal
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ablations.engine.cli import commands
from ablations.engine.cli.compare import command
from ablations.engine.cli.compare.arms import Arm, checked_out, parse_arm
from resnet_core import ConfigError

STUDY = '''
"""A study whose runs take no time: it prints the documents of one, as the tests need them."""
import json, sys
arguments = sys.argv[1:]
def given(name):
    words = []
    for word in arguments[arguments.index(name) + 1 :] if name in arguments else []:
        if word.startswith("--"):
            break
        words.append(word)
    return dict(word.split("=") for word in words)
levels, fields = given("--levels"), given("--set")
seeds = int(arguments[arguments.index("--seeds") + 1])
OFFSET = {offset}
if "bad" in levels.get("shortcut", ""):
    print("error: --levels=shortcut=bad: accepted: A, B", file=sys.stderr)
    sys.exit(2)
dataset = fields.get("data", "digits")
if fields.get("busy"):
    print("error: study=s: is running already: process 7 holds it", file=sys.stderr)
    sys.exit(5)
print("some progress", file=sys.stderr)
cells = []
for shortcut in levels.get("shortcut", "A,B").split(","):
    gain = OFFSET + float(fields.get("gain", 0)) + (1 if shortcut == "B" else 0)
    runs = [
        {{
            "seed": seed, "fingerprint": f"{{shortcut}} {{seed}} {{gain}}", "done": False, "outcome": "completed", "run_id": "",
            "value": 10 + seed - gain + 0.01 * seed * gain,
        }}
        for seed in range(seeds)
    ]
    cells.append({{"cell": f"shortcut={{shortcut}}", "levels": {{"shortcut": shortcut}}, "runs": runs}})
count = sum(len(cell["runs"]) for cell in cells)
estimate = {{"seconds": 90.0, "hours": None}}
plan = {{"factors": {{"shortcut": ["A", "B"]}}, "baseline": {{"shortcut": "A"}}, "search": False, "missing": count, "runs": count}}
metric = {{"name": "test/error", "unit": "%", "better": "lower", "label": "test error", "difference_unit": "points"}}
shown = {{"study": {{"name": "s", "question": "?"}}, "protocol": {{"metric": metric}}, "warning": ""}}
shown |= {{"dataset": dataset, "metric": metric | ({{"name": "test/loss"}} if fields.get("loss") else {{}})}}
print(json.dumps({{**shown, "cells": cells, "estimate": estimate, **plan}}))
sys.exit(1 if fields.get("incomplete") and "--plan" not in arguments else 0)
'''


@pytest.fixture
def study(tmp_path: Path) -> Path:
    path = tmp_path / "study.py"
    path.write_text(STUDY.format(offset=0))
    return path


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=n", "-c", "user.email=e@example.com"]
    return subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def commits(study: Path) -> tuple[str, str]:
    """Return two commits of the study, of which the second is better by 2."""
    git(study.parent, "init", "--quiet")
    found = []
    for offset in (0, 2):
        study.write_text(STUDY.format(offset=offset))
        git(study.parent, "add", "study.py")
        git(study.parent, "commit", "--quiet", "--message", f"offset {offset}")
        found.append(git(study.parent, "rev-parse", "HEAD"))
    return found[0], found[1]


def compare(study: Path, *arguments: str) -> int:
    return commands.main(["compare", "--study", str(study), *arguments])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changed", "more", "code"),
    [
        ("gain=1", [], 0),
        ("gain=-1", [], 4),
        ("gain=1", ["--by", "0.98"], 3),
        ("gain=1", ["--by", "1"], 4),
        ("gain=1", ["--seeds", "2"], 3),
        ('{"gain": 1}', ["--seeds", "3"], 0),
        ("shortcut=B", [], 0),
        ("shortcut=B gain=-3", [], 4),
    ],
)
def test_the_exit_code_is_the_verdict_on_a_configuration(study: Path, changed: str, more: list[str], code: int) -> None:
    assert compare(study, ".", changed, *more) == code


def test_json_has_the_verdict_the_numbers_and_both_sides(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert compare(study, ".", "shortcut=B", "--json") == 0
    out, err = capsys.readouterr()
    found: dict[str, Any] = json.loads(out)
    assert (found["schema"], found["verdict"], found["n"]) == ("ablations-comparison/1", "keep", 5)
    assert found["low"] < found["gain"] < found["high"]
    assert found["base"]["values"]["1"] == [11.0]
    assert found["changed"]["fields"] == {"shortcut": "B"}
    assert ".: 5 of 5 runs to train, about 1 min 30 s" in err
    assert "shortcut=B: some progress" in err


def test_a_plan_says_how_long_it_takes_and_trains_nothing(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert compare(study, ".", "incomplete=1 gain=1", "--plan") == 0
    out, err = capsys.readouterr()
    assert (out, err.count("about 1 min 30 s")) == ("", 2)


def test_commits_are_trained_from_worktrees_of_their_own(
    study: Path, commits: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    study.write_text("this is not even Python")
    assert compare(study, *commits) == 0
    assert compare(study, *reversed(commits), "--json") == 4
    found = json.loads(capsys.readouterr().out.partition("\n{")[2].join(["{", ""]))
    assert (found["base"]["commit"], found["changed"]["commit"]) == (commits[1], commits[0])
    assert git(study.parent, "worktree", "list").count("\n") == 0


def test_a_commit_and_the_working_tree_are_compared(study: Path, commits: tuple[str, str]) -> None:
    study.write_text(STUDY.format(offset=3))
    assert compare(study, "HEAD", ".") == 0
    assert compare(study, "HEAD~1", "HEAD", "--by", "2.5") == 4


def test_the_code_of_a_commit_is_imported_from_its_worktree(study: Path, commits: tuple[str, str]) -> None:
    with checked_out(parse_arm(commits[0], study), own_code=True) as arm:
        assert arm.folder is not None
        assert arm._environment()["PYTHONPATH"].startswith(str(arm.folder))
        assert arm.study.parent == arm.folder
    assert not arm.folder.exists()
    assert Arm(name=".", study=study)._environment().get("PYTHONPATH", "").count("checkout") == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "code", "named"),
    [
        ([".", "."], 2, "compare: . and . train the same runs"),
        ([".", "shortcut=bad"], 2, "shortcut=bad: --levels=shortcut=bad: accepted: A, B"),
        ([".", "busy=1"], 5, "busy=1: study=s: is running already: process 7 holds it"),
        ([".", "no-such-commit"], 2, "compare=no-such-commit: accepted: a commit, . for the working tree, or a configuration"),
        ([".", "gain=1", "--seeds", "0"], 2, "--seeds=0"),
        (
            [".", "gain=1 data=cifar10"],
            2,
            "compare: the sides have different datasets: digits; cifar10; accepted: sides that are scored",
        ),
        (["loss=1", "gain=1"], 2, "compare: the sides have different metrics: test/loss % lower"),
        ([".", "gain=1", "--by", "-1"], 2, "--by=-1.0: accepted: a number of 0 or more"),
        ([".", "gain=1 oops"], 2, "compare=gain=1 oops: accepted: a commit"),
        ([".", "{"], 2, "compare={: accepted: a commit"),
        ([".", "shortcut=B", "--levels", "shortcut=A,B"], 2, "several cells"),
    ],
)
def test_what_cannot_be_compared_is_one_line(
    study: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, named: str
) -> None:
    assert compare(study, *arguments) == code
    out, err = capsys.readouterr()
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert (out, len(errors)) == ("", 1)
    assert named in errors[0]


def test_a_study_that_does_not_exist_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert compare(tmp_path / "none.py", ".", "gain=1") == 2
    assert "accepted: the file of a study" in capsys.readouterr().err


def test_runs_without_a_result_decide_nothing(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert compare(study, ".", "gain=1 incomplete=1") == 1
    assert "some run has no result" in capsys.readouterr().err


def test_a_study_of_an_older_version_is_named(study: Path) -> None:
    study.write_text("print('no document')")
    with pytest.raises(ConfigError, match="accepted: a version of this project that has --json"):
        command._plan(Arm(name=".", study=study), [])


@pytest.mark.parametrize("older", [{}, {"resources": {"gpus_per_worker": 0}}])
def test_sides_on_different_devices_are_refused(study: Path, older: dict[str, Any]) -> None:
    arms = [Arm(name=name, study=study) for name in ("HEAD", ".")]
    newer = {"resources": {"gpus_per_worker": 1}}
    with pytest.raises(ConfigError, match=r"HEAD on CPUs and \. on GPUs would train.*accepted: --gpus-per-worker 0 or 1 for both"):
        command._check_devices(arms, [older, newer])
    command._check_devices(arms, [older, older])
    command._check_devices(arms, [newer, newer])


INTERRUPTIBLE = """
import os, pathlib, signal, sys, time

received = []
signal.signal(signal.SIGINT, lambda *_: received.append(1))
print("ready", file=sys.stderr, flush=True)
while not received:
    time.sleep(0.05)
time.sleep(1)  # to save what it has
pathlib.Path(__file__).with_suffix(".txt").write_text(f"{len(received)} {os.getsid(0) == os.getpid()}")
"""


def test_an_interrupt_reaches_a_side_once_and_waits_for_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = tmp_path / "study.py"
    study.write_text(INTERRUPTIBLE)
    shown: list[str] = []

    def write(text: str) -> None:
        shown.append(text)
        if "ready" in text:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr("sys.stderr", SimpleNamespace(write=write, writelines=lambda lines: shown.extend(lines)))
    with pytest.raises(KeyboardInterrupt):
        Arm(name="base", study=study).document([])
    assert study.with_suffix(".txt").read_text() == "1 True", "a session of its own: a terminal's Ctrl-C does not reach it, too"
