"""Private parts of Ray: used in one place, checked before use, and done without where they have changed."""

import ast
import importlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray import cloudpickle
from ray.exceptions import OutOfMemoryError, RayActorError, RayTaskError

from ablations.engine.environment import provenance, ray_processes
from ablations.engine.scheduling import capacity
from ablations.engine.scheduling.ray_internals import compatibility, key_value_store, tune
from ablations.engine.scheduling.ray_internals.compatibility import Feature, Part, is_available
from ablations.engine.scheduling.tune_adapters import explain, last_failure
from ablations.engine.trial import process_failures
from tests.helpers.project import PROJECT

PRIVATE_MODULES = ("internal_kv", "generated", "_raylet")
CONSTANTS = {
    ray_processes.LOOPBACK_VARIABLE: "environment/ray_processes.py",
    provenance.JOB_CONFIG_VARIABLE: "environment/provenance.py",
    capacity.HEAD_RESOURCE: "scheduling/capacity.py",
}
"""Undocumented environment variables and resources, each with the one module that contains it. Ray ignores unknown ones."""
UNDOCUMENTED = {*CONSTANTS}
FEATURES = {
    name: feature for module in (key_value_store, tune) for name, feature in vars(module).items() if isinstance(feature, Feature)
}
PARTS = [
    pytest.param(name, part, id=f"{name}-{part.path.rpartition(':')[2]}-{part.attributes.partition(' ')[0]}")
    for name, feature in FEATURES.items()
    for part in feature.parts
]
INTERNAL_NAMES = re.compile(
    r"ray\.scripts|ray_current_cluster|health_check_failure|run_metadata|temporary_state|"
    r"(Initializing|(Res|S)cheduling|Running|Restarting|Resizing|Preempting|ShuttingDown|Errored|Finished|Aborted)State|"
    r"InsufficientClusterResourcesError|WorkerHealthCheck\w+Error|WorkerGroupStartupTimeoutError"
)
"""Names of Ray that are internal although they have no underscore."""


@pytest.fixture(autouse=True)
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let each test check the parts anew."""
    monkeypatch.setattr(compatibility, "_checked", {})


# In one place


def private_uses(tree: ast.AST) -> Iterator[str]:
    """Yield uses of private names of Ray, as far as names tell: variables of other names are not followed."""
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Attribute):
            names = [ast.unparse(node)]
            if INTERNAL_NAMES.fullmatch(node.attr):
                yield node.attr
        elif isinstance(node, ast.Constant) and node.value in UNDOCUMENTED:
            yield str(node.value)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and (found := INTERNAL_NAMES.match(node.value)):
            yield found.group()
        for name in names:
            root, *parts = name.split(".")
            if root in ("ray", "tune", "ray_train", "actor", "controller") and any(
                part in PRIVATE_MODULES or (part.startswith("_") and not part.startswith("__")) for part in parts
            ):
                yield name


def test_no_private_part_of_ray_is_used_elsewhere() -> None:
    own = PROJECT / "ablations/engine/scheduling/ray_internals"
    files = [path for root in ("ablations", "resnet_core") for path in (PROJECT / root).rglob("*.py") if own not in path.parents]
    uses = [(path, use) for path in files for use in private_uses(ast.parse(path.read_text()))]
    assert not [(path, use) for path, use in uses if not path.match(CONSTANTS.get(use, "nowhere"))]


@pytest.mark.parametrize(
    "code",
    [
        "import ray._private.state",
        "from ray.train._internal.session import get_session",
        "from ray.experimental.internal_kv import _internal_kv_get",
        "from ray.core.generated import gcs_pb2",
        "ray._private.worker.get_dashboard_url()",
        "trial.run_metadata.last_result",
        "trial.temporary_state.ray_actor",
        "Path(base, 'ray', 'ray_current_cluster')",
        "[sys.executable, '-m', 'ray.scripts.scripts']",
    ],
)
def test_a_private_part_is_recognized(code: str) -> None:
    assert list(private_uses(ast.parse(code)))


# Checked


@pytest.mark.parametrize("name", sorted(FEATURES))
def test_the_installed_ray_has_all_parts(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert is_available(FEATURES[name]), capsys.readouterr().err


def remove(part: Part, monkeypatch: pytest.MonkeyPatch) -> None:
    """Take a part out of Ray: what it names, or the class whose attributes it lists."""
    module_name, _, names = part.path.partition(":")
    module = importlib.import_module(module_name)
    owner: Any = module
    *outer, last = names.split(".")
    for each in outer:
        owner = getattr(owner, each)
    if part.attributes:
        monkeypatch.setattr(owner, last, type(last, (), {}))
        return
    try:
        monkeypatch.delattr(owner, last)
    except (TypeError, AttributeError):  # classes of the C++ core cannot change, and an object has its class's methods
        monkeypatch.setattr(module, outer[0], SimpleNamespace())


def assert_off(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        assert not is_available(FEATURES[name])
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"Ray {ray.__version__}: ")
    assert line.endswith(f"; off: {FEATURES[name].name}.")


@pytest.mark.slow
@pytest.mark.parametrize(("name", "part"), PARTS)
def test_without_a_part_its_feature_is_off_and_one_line_says_so(
    name: str, part: Part, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    remove(part, monkeypatch)
    assert_off(name, capsys)


@pytest.mark.parametrize(("name", "part"), [each for each in PARTS if each.values[1].parameters is not None])  # type: ignore[union-attr]
def test_with_other_parameters_its_feature_is_off_and_one_line_says_so(
    name: str, part: Part, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module, _, names = part.path.partition(":")
    *outer, last = names.split(".")
    owner: Any = importlib.import_module(module)
    for each in outer:
        owner = getattr(owner, each)
    monkeypatch.setattr(owner, last, lambda something_new: None)
    assert_off(name, capsys)


@pytest.mark.parametrize(("name", "part"), [each for each in PARTS if each.values[1].caller])  # type: ignore[union-attr]
def test_a_replacement_that_ray_would_never_call_turns_its_feature_off(
    name: str, part: Part, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module, _, names = part.caller.partition(":")
    *outer, last = names.split(".")
    owner: Any = importlib.import_module(module)
    for each in outer:
        owner = getattr(owner, each)
    monkeypatch.setattr(owner, last, lambda *_: None)
    assert_off(name, capsys)


# Ray Tune


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (process_failures.ProcessFailure("made no step for 600 s", "process"), "made no step for 600 s"),
        (RayTaskError("reset", "a traceback", ValueError("of Tune")), "RayTaskError: "),
        (None, "its process ended for an unknown reason"),
    ],
)
def test_the_reason_of_a_crash_is_read_from_tunes_trial(tmp_path: Path, error: Exception | None, reason: str) -> None:
    (file := tmp_path / "error.pkl").write_bytes(cloudpickle.dumps(error))
    failure = last_failure(SimpleNamespace(pickled_error_file=str(file) if error else None))
    assert failure.reason.startswith(reason)
    assert failure.cause == "process"


def test_a_kill_for_memory_is_an_error_that_tune_handles() -> None:
    assert not isinstance(OutOfMemoryError("killed"), RayActorError)
    failure = explain(OutOfMemoryError("The node was 3.8GB used / 4.0GB limit: killed"))
    assert isinstance(failure, RayActorError)
    assert (failure.outcome, failure.preempted) == ("oom", False)


# Done without

CHANGED = """
import functools, importlib, sys
from ablations.engine.cli.study import main
from ablations.engine.study.definition import Study

def with_another_parameter(function):
    def changed(*arguments, something_new=None, **named):
        return function(*arguments, **named)
    return changed

for path in sys.argv.pop().split():
    module, _, names = path.partition(":")
    owner = importlib.import_module(module)
    *outer, last = names.split(".")
    for each in outer:
        owner = getattr(owner, each)
    setattr(owner, last, with_another_parameter(getattr(owner, last)))
sys.exit(main(Study(name="changed", question="?", factors={"shortcut": ("none", "A")}, baseline={"shortcut": "A"}, preset="smoke")))
"""
"""A study in whose driver Ray's functions at these paths take one parameter more, and do the same."""

OFF = {
    "ray.experimental.internal_kv:_internal_kv_list": key_value_store.KEY_VALUE_STORE,
    "ray.air.execution._internal:RayActorManager._actor_task_failed": tune.CRASHES,
}


@pytest.mark.slow
@pytest.mark.ray
def test_a_study_whose_ray_has_changed_is_trained_and_says_what_is_off(tmp_path: Path) -> None:
    script = tmp_path / "study.py"
    script.write_text(CHANGED)
    home = {"RESNET_ABLATIONS_HOME": str(tmp_path / "home"), "RAY_ADDRESS": "local", "MLFLOW_TRACKING_URI": ""}
    done = subprocess.run(
        [sys.executable, str(script), "--seeds", "1", " ".join(OFF)],
        cwd=tmp_path,
        env={**os.environ, **home, "PYTHONPATH": str(PROJECT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert {feature.name: done.stderr.count(f"; off: {feature.name}.") for feature in OFF.values()} == {
        feature.name: 1 for feature in OFF.values()
    }


def test_the_parameter_that_ray_adds_to_actors_methods_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.tune.trainable.function_trainable import FunctionTrainable

    def execute(self: object, fn: object, *, _ray_trace_ctx: object = None) -> None: ...

    part = Part("ray.tune.trainable.function_trainable:FunctionTrainable.execute", "self, fn")
    monkeypatch.setattr(FunctionTrainable, "execute", execute)
    assert part.problem() == ""
