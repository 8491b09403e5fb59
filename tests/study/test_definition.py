"""An error in a study file is one line that names the field, the value and what is accepted."""

import copy
import math
import pickle
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from ablations.engine.study.definition import Study
from resnet_core import ConfigError
from tests.helpers.project import PROJECT

RIGHT: dict[str, Any] = {"name": "x", "question": "?", "factors": {"depth": (8, 14)}}

WRONG = {
    "no such field": ({"seed": 3}, "Study: seed: no such field; accepted, by name: name, question, factors, baseline, seeds"),
    "a name with a slash": ({"name": "../etc"}, "study name=../etc: accepted: up to 64 of a-z"),
    "a name that is no text": ({"name": 3}, "study name=3: accepted: up to 64 of a-z"),
    "no question": ({"question": None}, "question=None: accepted: a sentence"),
    "an unknown preset": ({"preset": "mnist"}, "preset=mnist: accepted: smoke, digits"),
    "several presets": ({"preset": ["smoke"]}, 'preset=["smoke"]: accepted: smoke, digits'),
    "a level alone": ({"factors": {"width": 16}}, "factors width=16: accepted: a list of levels, such as width: [A, B]"),
    "digits": ({"factors": {"width": "16"}}, "factors width=16: accepted: a list of levels"),
    "an unordered set": ({"factors": {"shortcut": {"A", "B"}}}, "accepted: a list of levels"),
    "no levels": ({"factors": {"width": ()}}, "factors width: accepted: one or more levels"),
    "no factors": ({"factors": {}}, "factors={}: accepted: one factor or more"),
    "factors that are no mapping": ({"factors": ["depth"]}, 'factors=["depth"]: accepted: values by field'),
    "an unknown factor": ({"factors": {"dept": (8,)}}, "factors dept: no such field; did you mean depth"),
    "a factor without a name": ({"factors": {3: (8,)}}, "factors field=3: accepted: a name"),
    "an unknown level": ({"factors": {"shortcut": ("A", "D")}}, "model.shortcut=D: accepted: none, A, B, C"),
    "a level of another type": ({"factors": {"flip": (True, 2)}}, "data.flip=2: accepted: true, false"),
    "a level twice": ({"factors": {"width": (8, 8.0)}}, "factors width=8,8: a level is named twice"),
    "a list twice": ({"factors": {"milestones": ([0.5], (0.5,))}}, "factors milestones=[0.5],[0.5]: a level is named twice"),
    "nested lists": ({"factors": {"milestones": ([[0.5]],)}}, "optim.milestones=[0.5]: accepted: a number"),
    "a baseline of no factor": ({"baseline": {"width": 8}}, "baseline=width: not a factor; accepted: depth"),
    "a baseline that is no level": ({"baseline": {"depth": 20}}, "baseline depth=20: accepted: a level of it: 8, 14"),
    "a baseline twice": ({"baseline": {"depth": 8, "model.depth": 8}}, "baseline=model.depth: is the same field as depth"),
    "a baseline that is no mapping": ({"baseline": 8}, "baseline=8: accepted: values by field"),
    "no seeds": ({"seeds": 0}, "seeds=0: accepted: a number of replicates"),
    "seeds as text": ({"seeds": "3..12"}, "seeds=3..12: accepted: a number of replicates, 1 or more; a range, (3, 12)"),
    "seeds from zero": ({"seeds": (0, 1)}, "seeds=[0, 1]: accepted: a number of replicates"),
    "no margin": ({"margin": 0}, "margin=0: accepted: a number above 0, in the unit of differences"),
    "an infinite margin": ({"margin": math.inf}, "margin=Infinity: accepted: a number above 0"),
    "a margin that is text": ({"margin": "0.5"}, "margin=0.5: accepted: a number above 0"),
    "a margin that is a truth value": ({"margin": True}, "margin=true: accepted: a number above 0"),
    "seeds as a setting": ({"settings": {"seed": 3}}, "settings=seed: accepted: --seeds N"),
    "workers as a setting": ({"settings": {"world_size": 2}}, "settings=world_size: accepted: --workers N"),
    "a setting of another type": ({"settings": {"lr": None}}, "optim.lr=None: accepted: a number"),
    "a setting twice": ({"settings": {"lr": 1, "optim.lr": 2}}, "settings=optim.lr: is the same field as lr"),
    "a space that is none": ({"space": {"lr": (0, 1)}}, 'space={"lr": [0, 1]}: accepted: a function of a trial'),
    "an unknown design": (
        {"design": "random"},
        "design=random: accepted: factorial, one-at-a-time, ladder, screening, screening-iii",
    ),
    "arms that are no mapping": ({"arms": ("a", "b")}, 'arms=["a", "b"]: accepted: settings by name'),
    "one arm": ({"arms": {"a": {}}}, "arms=a: is the only one; accepted: two arms or more"),
    "an unknown field of an arm": ({"arms": {"a": {}, "b": {"momentun": 0}}}, "arms b momentun: no such field; did you mean"),
    "a wrong value of an arm": ({"arms": {"a": {}, "b": {"nesterov": 3}}}, "optim.nesterov=3: accepted: true, false"),
    "arms that are the same": (
        {"arms": {"a": {"lr": 1}, "b": {"optim.lr": 1.0}}},
        "arms=b: sets the same as a; accepted: arms that differ",
    ),
    "an arm that sets a factor": ({"arms": {"a": {}, "b": {"depth": 8}}}, "arms b=depth: is a factor of the study as well"),
    "an arm with a seed": ({"arms": {"a": {}, "b": {"seed": 8}}}, "arms b=seed: cannot differ between arms"),
    "an arm without a name": ({"arms": {"a": {}, "b c": {}}}, "arms=b c: accepted as a name"),
    "a baseline that is no arm": (
        {"arms": {"a": {}, "b": {"lr": 1}}, "baseline": {"arm": "c"}},
        "baseline arm=c: accepted: a, b",
    ),
    "a baseline that is a list of arms": (
        {"arms": {"a": {}, "b": {"lr": 1}}, "baseline": {"arm": ["a"]}},
        'baseline arm=["a"]: accepted: a, b',
    ),
    "a pair of no factors": ({"zip": [("depth", "width")]}, "zip=width: not a factor; accepted: depth"),
    "a pair of one": ({"zip": [("depth",)]}, 'zip=["depth"]: accepted: groups of factors'),
    "a pair that is text": ({"zip": "depth"}, "zip=depth: accepted: groups of factors"),
    "a pair of unequal length": (
        {"factors": {"depth": (8, 14), "width": (8, 12, 16)}, "zip": ("depth", "width")},
        "zip=depth+width: depth has 2, width has 3 levels; accepted: as many levels of each",
    ),
    "a factor in two pairs": (
        {"factors": {"depth": (8, 14), "width": (8, 12), "lr": (1, 2)}, "zip": [("depth", "width"), ("lr", "depth")]},
        "zip=depth: is named twice",
    ),
    "a baseline that is no pair": (
        {"factors": {"depth": (8, 14), "width": (8, 12)}, "zip": ("depth", "width"), "baseline": {"depth": 8, "width": 12}},
        "baseline depth+width=8+12: accepted: levels that are paired with each other",
    ),
    "a design of a search": (
        {"design": "ladder", "space": lambda trial: None},
        "design=ladder: accepted without a search space",
    ),
    "changes of no preset": ({"on": {"mnist": {}}}, "preset=mnist: accepted: smoke"),
    "changes of nothing": ({"on": {"smoke": {"levels": {}}}}, "on smoke=levels: accepted: factors, baseline, settings"),
    "changes that are none": ({"on": {"smoke": None}}, "on smoke=None: accepted: changes of factors, baseline, settings"),
    "a level on a preset": ({"on": {"smoke": {"factors": {"depth": 8}}}}, "on smoke: factors depth=8: accepted: a list"),
    "a baseline on a preset": (
        {"baseline": {"depth": 14}, "on": {"smoke": {"factors": {"depth": (8, 20)}}}},
        "on smoke: baseline depth=14: accepted: a level of it: 8, 20",
    ),
}


@pytest.mark.parametrize(("changes", "message"), WRONG.values(), ids=WRONG)
def test_an_invalid_study_is_rejected_on_creation(changes: Mapping[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        Study(**{**RIGHT, **changes})
    assert str(error.value).startswith(message) or message in str(error.value)
    assert str(error.value).isprintable()


@pytest.mark.parametrize("name", ["name", "question"])
def test_a_missing_field_is_named(name: str) -> None:
    with pytest.raises(ConfigError, match=f"^Study: {name} is missing"):
        Study(**{other: value for other, value in RIGHT.items() if other != name})


def test_fields_are_given_by_name() -> None:
    with pytest.raises(ConfigError, match=r"^Study: 'x': no such field; accepted, by name"):
        Study("x", "?")  # type: ignore[call-arg]


def test_a_study_has_no_default_baseline_and_values_of_the_fields_types() -> None:
    study = Study(**RIGHT, settings={"milestones": [0.5], "lr": "0.1"})
    assert study.baseline == {}
    assert study.settings == {"milestones": (0.5,), "lr": 0.1}
    assert Study(**RIGHT | {"factors": {"depth": ["8", 14.0]}}).factors == {"depth": (8, 14)}
    assert Study(**RIGHT, baseline={"model.depth": "8"}).baseline == {"depth": 8}


def test_a_study_can_be_copied_and_pickled() -> None:
    study = Study(**RIGHT, baseline={"depth": 8})
    assert pickle.loads(pickle.dumps(study)) == copy.deepcopy(study) == study


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "code", "message"),
    [
        ("seed=3, ", 2, "error: Study: seed: no such field; accepted"),
        ("preset='mnist', ", 2, "error: preset=mnist: accepted: smoke, digits"),
        ("seeds=10**5, ", 2, "error: --seeds=100000: with 2 levels, accepted: at most 10,000 runs"),
        ("settings=1 / 0, ", 1, "Traceback (most recent call last):"),
    ],
)
def test_an_invalid_study_file_exits_with_2_and_other_errors_exit_as_in_python(
    tmp_path: Path, text: str, code: int, message: str
) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "from ablations.engine.cli.study import main\nfrom ablations.engine.study.definition import Study\n"
        f"STUDY = Study({text}name='x', question='?', factors={{'depth': (8, 14)}})\n"
        "main(STUDY)\n"
    )
    command = [sys.executable, str(file), "--preset", "smoke", "--plan"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=PROJECT)
    assert done.returncode == code, done.stderr
    assert done.stderr.startswith(message)
    assert (done.stderr.count("\n") == 1) == (code == 2)
