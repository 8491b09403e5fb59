"""Whatever is asked for is either a plan or one line that says what is wrong: hundreds of drawn requests, each night thousands."""

import contextlib
import io
import json
import math
import os
import resource
import signal
import string
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
import ray
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from ablations.engine.cli import commands as service_command
from ablations.engine.cli import options, start_up
from ablations.engine.cli.study import main
from ablations.engine.cluster import local_service
from ablations.engine.environment.storage import check_storage, make_storage
from ablations.engine.study.definition import Study
from ablations.engine.study.expansion import make_draft
from ablations.engine.study.plan import Plan
from ablations.engine.study.request import Options, StudyRequest
from ablations.engine.submission import search_submission, study_submission
from ablations.engine.submission.planning import preview
from ablations.engine.tracking import connection
from ablations.hyperparameters import STUDY as HYPERPARAMETERS
from ablations.responses import STUDY as RESPONSES
from ablations.shortcuts import STUDY as SHORTCUTS
from resnet_core import PRESETS, ConfigError, RunSpec, override
from resnet_core.config import CHANGEABLE, change
from resnet_core.data import __main__ as data_command
from resnet_core.data import sources
from resnet_core.fields import MAX_MESSAGE_CHARACTERS
from resnet_core.model.summary import main as model_command
from resnet_core.overrides import from_flat, run_schema

CASES = int(os.environ.get("FUZZ_CASES", "100"))
"""Cases of each fuzzed command or function: random ones where the number is given, else always the same."""
fuzzed = settings(
    max_examples=CASES,
    derandomize="FUZZ_CASES" not in os.environ,
    database=None,
    deadline=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)

# --- what is drawn ---

ODD = ["", " ", "=", ",", "-", "--", "none", "None", "nan", "-inf", "1e999", "-0.0", "0x10", "1_0", "٣", "²", "é", "½", "true"]
ODD += ["a\nb", "\r", "\x00", "\x1b[2J\x1b]0;owned\x07", "\x7f", "\u202etxt", "\u2028", "\ud800", "\udcff", "𝟙", "\ufeff"]
ODD += ["../../etc/passwd", "$(reboot)", "; rm -rf ~", "`id`", "'", '"', "\\", "%s%n", "{0.__class__}", "%(prog)s", "@/etc/hosts"]
ODD += ["<script>alert(1)</script>", "[bold]", "[/]", r"$\frac", "9" * 5000, "-" + "9" * 40, "1" + "0" * 30, "1e18", "x" * 10_000]
ODD += [",".join("1" * 3000), "(" * 500, "[2,[2,2]]", '{"a": 1}']
NUMBERS = st.integers(-2, 130).map(str) | st.sampled_from(["8", "20", "110", "10000000", "2147483648"])
odd = st.sampled_from(ODD) | st.text(max_size=12) | st.text(st.characters(categories=["Cs", "Cc", "Cf", "Zl"]), max_size=5)


def fitting(name: str) -> st.SearchStrategy[str]:
    """Text that the field with this name may accept, or nearly."""
    hint = run_schema().hint(name)
    kinds = [kind for kind in (hint, *get_args(hint)) if kind is not type(None)]
    literal = next((kind for kind in (*kinds, *get_args(kinds[-1])) if get_origin(kind) is Literal), None)
    if literal:
        return st.lists(st.sampled_from(get_args(literal)), min_size=1, max_size=2).map(",".join)
    if name == "optim.changes":
        entry = st.builds(change, st.integers(1, 9), st.sampled_from(CHANGEABLE), st.floats(0, 1))
        return st.lists(entry, max_size=3).map(",".join)
    if any(get_origin(kind) is tuple for kind in kinds):
        return st.lists(NUMBERS | st.floats(0, 1).map(str), max_size=4).map(",".join)
    if hint is bool:
        return st.sampled_from(["true", "false", "yes", "0"])
    if name == "data.root":
        return st.sampled_from(["/nowhere", "~nobody/x", "missing"])
    return NUMBERS | st.floats(0, 1).map(str)


def mostly(good: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.integers(0, 9).flatmap(lambda place: odd if place == 9 else good)


FIELDS = sorted(run_schema().names)
fields = st.sampled_from(FIELDS) | st.sampled_from(FIELDS).map(lambda name: name.rpartition(".")[2])


@st.composite
def assigned(draw: st.DrawFn, most: int) -> str:
    name = draw(st.sampled_from(FIELDS))
    values = draw(st.lists(mostly(fitting(name)), min_size=1, max_size=most))
    return f"{draw(mostly(st.sampled_from([name, name.rpartition('.')[2]])))}{draw(mostly(st.just('=')))}{','.join(values)}"


def option(name: str, values: st.SearchStrategy[str], most: int = 1) -> st.SearchStrategy[list[str]]:
    return st.lists(values, min_size=most and 1, max_size=most).map(lambda found: [name, *found])


counts, shares = mostly(st.integers(1, 4).map(str)), mostly(st.sampled_from(["1", "0.5", "2", "0"]))
levels = mostly(assigned(most=3)) | st.sampled_from(["depth=8,14", "shortcut=A,B"])
study_options = st.lists(
    st.one_of(
        option("--set", mostly(assigned(most=1)), 4),
        option("--levels", levels, 3),
        option("--preset", mostly(st.sampled_from(["smoke", "smoke", *PRESETS]))),
        option("--seeds", counts | st.sampled_from(["10000", "1000000", "9" * 18])),
        option("--probe", mostly(fitting("probes")), 2),
        st.tuples(st.sampled_from(["--workers", "--max-concurrent"]), counts),
        st.tuples(st.sampled_from(["--cpus-per-worker", "--gpus-per-worker"]), shares),
        option("--hang-timeout", mostly(st.sampled_from(["0.5", "600", "604800", "1e12"]))),
        st.tuples(st.sampled_from(["--storage", "--tracking-uri"]), odd),
        st.sampled_from([["--plan"], ["--rerun"], ["--log-models"]]),
        st.lists(odd, min_size=1, max_size=2),
    ),
    max_size=4,
).map(lambda groups: ["--preset", "smoke", *(word for group in groups for word in group)])
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | odd | st.just(5000).map(lambda digits: 10**digits),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(odd, inner, max_size=2) | st.tuples(inner, inner),
    max_leaves=6,
)


@st.composite
def mutated(draw: st.DrawFn) -> Any:
    """The flat form of a preset with some fields changed, left out, added, or not even a mapping."""
    flat: dict[Any, Any] = dict(draw(st.sampled_from(list(PRESETS.values()))).flat())
    for name in draw(st.lists(st.sampled_from(FIELDS), max_size=4)):
        change = draw(st.integers(0, 9))
        if change == 0:
            flat.pop(name, None)
        elif change == 1:
            flat[draw(odd | st.integers() | st.just(()) | fields)] = draw(json_values)
        else:
            flat[name] = draw(fitting(name) if change < 7 else json_values)
    return draw(st.sampled_from([flat] * 20 + [list(flat), None, "", [flat]]))


# --- what is looked at ---


@pytest.fixture(scope="module", autouse=True)
def watched(tmp_path_factory: pytest.TempPathFactory, local_state: Path) -> Iterator[list[Plan]]:
    """The plans that would have been executed. Ray is not started, and nothing is written but decoded data."""
    planned: list[Plan] = []

    def recorded(plan: Plan, _: Options) -> int:
        planned.append(plan)
        return 0

    before, handler = set(local_state.iterdir()), signal.getsignal(signal.SIGTERM)
    empty = tmp_path_factory.mktemp("empty")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(start_up, "start_ray_beside_mlflow", lambda *_: None)
        patch.setattr(study_submission, "run_study", recorded)
        patch.setattr(search_submission, "run_search", recorded)
        patch.setattr(preview, "preview", recorded)
        patch.setattr(local_service, "up", lambda _: None)
        patch.setattr(sources, "MEMORY_LIMIT_GIB", 0.05)  # so that what is drawn and accepted takes no time
        patch.setenv("HOME", str(empty))
        patch.chdir(empty)
        yield planned
    signal.signal(signal.SIGTERM, handler)
    assert not ray.is_initialized()
    assert {path.name for path in set(local_state.iterdir()) - before} <= {"data"}
    assert not list(empty.iterdir())


def outcome(command: Callable[[], Any]) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = command() or 0
        except SystemExit as exit_:
            code = exit_.code or 0
    return code, out.getvalue(), err.getvalue()


def is_refused(code: int, out: str, err: str) -> bool:
    """True if a request was refused, which is done in one clean line or not at all."""
    if code == 0:
        assert err == ""
        return False
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert err.endswith("\n")
    assert err[:-1].isprintable()
    assert len(err) < MAX_MESSAGE_CHARACTERS + 100
    assert "Traceback" not in err
    return True


def planned_by(watched: list[Plan], study: Study, arguments: list[str]) -> Plan | None:
    """The plan that a study's command line leads to; None if it is refused."""
    watched.clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["study.py", *arguments])
        code, out, err = outcome(lambda: main(study))
    if is_refused(code, out, err):
        assert not watched
        return None
    if out.startswith("usage: "):
        return None
    (plan,) = watched
    return plan


def as_text(value: Any) -> str:
    """A value as a command line gives it."""
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def assert_survives_flattening(spec: RunSpec) -> None:
    flat = spec.flat()
    assert from_flat(flat) == from_flat(json.loads(json.dumps(flat))) == spec
    assert from_flat({name: as_text(value) for name, value in flat.items()}) == spec


# --- the properties ---


@fuzzed
@given(study=st.sampled_from([SHORTCUTS, RESPONSES]), arguments=study_options)
def test_a_studys_command_line_is_a_plan_or_one_line(watched: list[Plan], study: Study, arguments: list[str]) -> None:
    plan = planned_by(watched, study, arguments)
    if plan:
        assert plan.runs
        assert len({run.fingerprint for run in plan.runs}) == len(plan.runs)
        assert_survives_flattening(plan.runs[-1].spec)


VALUES = ["", " ", "None", "true", "-1", "0", "1e309", "nan", "-inf", "9" * 5000, "[]", "[0.5,0.75]", "1,2,3", "x", "[bold]", "\0"]
"""Values of any field that no type of field expects."""
OBJECTS = [None, True, -1, 0, 2**80, 10**5000, 1e308, math.inf, math.nan, "", "x", "\ud800", object(), b"1"]
OBJECTS += [(), [], [[1]], ["a", None], {}, {1: 2}, {3}]
"""The same in Python."""


@pytest.mark.slow
@pytest.mark.parametrize("name", FIELDS)
def test_no_value_of_any_field_ends_in_a_traceback(watched: list[Plan], name: str) -> None:
    for value in VALUES:
        planned_by(watched, SHORTCUTS, ["--preset", "smoke", "--set", f"{name}={value}"])
        planned_by(watched, SHORTCUTS, ["--preset", "smoke", "--levels", f"{name}={value}"])
    for value in ("None", "1e309", "nan", "[0.5,0.75]"):
        planned_by(watched, HYPERPARAMETERS, ["--preset", "smoke", "--space", "lr", "--trials", "1", "--set", f"{name}={value}"])
    for thing in OBJECTS:
        for part, values in (("factors", {name: thing}), ("factors", {name: (thing,)}), ("settings", {name: thing})):
            changes: dict[str, Any] = {"on": {}, "baseline": {}, part: values}
            survives_or_is_one_line(partial(based, changes))


def based(changes: dict[str, Any]) -> RunSpec:
    """The first cell of a study with these fields."""
    spec: RunSpec = make_draft(replace(SHORTCUTS, **changes), StudyRequest(preset="smoke")).base
    return spec


def survives_or_is_one_line(make: Callable[[], RunSpec]) -> None:
    try:
        spec = make()
    except ConfigError as error:
        message = str(error)
    else:
        assert_survives_flattening(spec)
        return
    assert message.isprintable()
    assert len(message) < MAX_MESSAGE_CHARACTERS + 100


@fuzzed
@given(values=mutated())
def test_loading_a_spec_gives_one_that_survives_or_one_line(values: Any) -> None:
    survives_or_is_one_line(lambda: from_flat(values))


@fuzzed
@given(
    name=st.sampled_from(list(PRESETS)),
    values=st.dictionaries(fields | odd, json_values | odd | NUMBERS, min_size=1, max_size=3),
)
def test_overriding_a_spec_gives_one_that_survives_or_one_line(name: str, values: dict[str, Any]) -> None:
    survives_or_is_one_line(lambda: override(PRESETS[name], values))


HERE = ["", "~", "file:", "file://", "file://{here}/", "sqlite:///", "sqlite:///missing/", "sqlite:///{here}/", "{here}/"]
NOWHERE = [
    "mysql://",
    "oracle://",
    "postgresql://127.0.0.1:9/",
    "postgresql+",
    "http://127.0.0.1:9/",
    "http://127.0.0.1:",
    "http://[",
]
below = odd.map(lambda text: text.replace("..", "").lstrip("/"))


def is_reached_or_one_line(look: Callable[[], object]) -> bool:
    try:
        _, out, err = outcome(look)
    except ConfigError as error:
        message = str(error)
    else:
        assert (out, err) == ("", "")
        return True
    assert message.isprintable()
    assert len(message) < MAX_MESSAGE_CHARACTERS + 100
    return False


def chosen(option: str, address: str) -> Options:
    return options.parse_options(SHORTCUTS, [f"{option}={address}"])


@pytest.fixture(scope="module")
def somewhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("somewhere")


@fuzzed
@given(scheme=st.sampled_from(HERE), place=below)
def test_a_folder_and_a_database_are_reached_or_one_line_says_why_not(somewhere: Path, scheme: str, place: str) -> None:
    address = scheme.format(here=somewhere) + place
    with contextlib.chdir(somewhere):
        is_reached_or_one_line(lambda: connection.is_new_database(chosen("--tracking-uri", address).tracking_uri))
        if is_reached_or_one_line(lambda: check_storage(chosen("--storage", address).storage)):
            is_reached_or_one_line(lambda: make_storage(chosen("--storage", address).storage))


@fuzzed
@given(scheme=st.sampled_from(NOWHERE), place=odd)
def test_a_server_that_is_nowhere_is_one_line(scheme: str, place: str) -> None:
    assert not is_reached_or_one_line(lambda: connection.connect(chosen("--tracking-uri", scheme + place).tracking_uri))


WORDS = "prepare show up down env --preset smoke --set --seed 1 --depth 20 --block basic --stages 2,2 --mlflow-port --ray-port 1 "
WORDS += "--width --classes --image-size --shortcut B 8 pad=1 lr=0.1 data.name=imagefolder"
words = st.sampled_from(WORDS.split())


@fuzzed
@given(
    command=st.sampled_from([data_command.main, model_command, service_command.main]),
    arguments=st.lists(words | words | odd, max_size=8),
)
def test_the_other_commands_refuse_in_one_line_too(command: Callable[[list[str]], int | None], arguments: list[str]) -> None:
    if command is data_command.main:  # `show` draws a picture, `prepare` decodes: not of interest here
        arguments = [*arguments, "--set", "data.name=imagefolder", "data.root=/nowhere"]
    is_refused(*outcome(lambda: command(arguments)))


HUGE = ["depth=600000002", "depth=10000000000", "width=1000000000", "num_classes=1000000000", "in_channels=1000000000"]
HUGE += ["image_size=1000000", "train_examples=1000000000000", "test_examples=1000000000000", "global_batch_size=1000000000000"]
HUGE += ["epochs=1000000000000", "iterations=1000000000000000", "warmup_steps=10000000000", f"stages={','.join('1' * 3000)}"]
HUGE += ["probe_epochs=1000000000", f"milestones={','.join('0' * 50_000)}", f"depth={'9' * 5000}", f"lr={'9' * 100_000}"]
HUGE += ["pad=100000000"]
STREAMED = ["data.name=imagefolder", "data.stream=true", "data.root=/nowhere"]


@pytest.mark.parametrize(
    "arguments",
    [
        *(["--set", text] for text in HUGE if not text.startswith("depth=")),
        *(["--levels", text] for text in HUGE if text.startswith("depth=")),
        ["--seeds", "1000000"],
        ["--seeds", "1000000000000"],
        ["--workers", "1000000000"],
        ["--levels", f"lr={','.join(str(i / 1e6) for i in range(10_001))}"],
        ["--levels", *(f"{name}={','.join(map(str, range(50)))}" for name in ("lr", "momentum", "weight_decay", "warmup_steps"))],
        ["--cpus-per-worker", "1e-300"],
        ["--gpus-per-worker", "1e308"],
        ["--set", *(f"x{i}=1" for i in range(100_000))],
        ["--set", *STREAMED, "image_size=1000000"],
        ["--set", *STREAMED, "decode_workers=1000000"],
    ],
    ids=lambda arguments: " ".join(arguments)[:40],
)
def test_huge_requests_take_neither_time_nor_memory(watched: list[Plan], arguments: list[str]) -> None:
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    plan = planned_by(watched, SHORTCUTS, ["--preset", "smoke", *arguments])
    assert time.process_time() - began < 5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300 * 1024, "KiB"
    assert plan is None or len(plan.runs) < 100


@pytest.mark.slow
@pytest.mark.nightly
def test_as_many_runs_as_are_accepted_are_planned_in_seconds(watched: list[Plan]) -> None:
    rates = ",".join(str((i + 1) / 1000) for i in range(1250))
    began = time.process_time()
    plan = planned_by(watched, SHORTCUTS, ["--preset", "smoke", "--seeds", "1", "--levels", f"lr={rates}"])
    assert plan
    assert len(plan.runs) == 10_000
    assert time.process_time() - began < 20


@pytest.mark.parametrize("arguments", [["--probe", "moods"], ["--set", f"data.root={string.printable}", "data.name=imagefolder"]])
def test_a_refusal_quotes_what_was_given_in_characters_that_do_nothing(watched: list[Plan], arguments: list[str]) -> None:
    assert planned_by(watched, SHORTCUTS, arguments) is None
