"""Private parts of Ray: used in one place, checked before use, and done without where they have changed."""

import ast
import importlib
import os
import pickle
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
import ray
from ray import cloudpickle
from ray.train import ControllerError
from ray.train.v2._internal.exceptions import InsufficientClusterResourcesError, WorkerHealthCheckFailedError
from ray.train.v2._internal.execution.controller.state import FinishedState, InitializingState, RunningState
from ray.tune.search import BasicVariantGenerator, ConcurrencyLimiter, Searcher

from ablations.engine.scheduling.ray_internals import cluster, compatibility, key_value_store, train, tune
from ablations.engine.scheduling.ray_internals.compatibility import Feature, Part, SourceText, is_available
from ablations.engine.scheduling.tune_adapters import _last_failure
from tests.helpers.project import PROJECT

PRIVATE_MODULES = ("internal_kv", "generated", "_raylet")
UNDOCUMENTED = {cluster.LOOPBACK_VARIABLE, cluster.JOB_CONFIG_VARIABLE, cluster.HEAD_RESOURCE, *train.TRAIN_ENVIRONMENT}
FEATURES = {
    name: feature
    for module in (cluster, key_value_store, train, tune)
    for name, feature in vars(module).items()
    if isinstance(feature, Feature)
}
PARTS = [
    pytest.param(name, part, id=f"{name}-{part.path.rpartition(':')[2]}-{part.attributes.partition(' ')[0]}")
    for name, feature in FEATURES.items()
    for part in feature.parts
    if isinstance(part, Part)
]
TEXTS = [
    pytest.param(name, text, id=f"{name}-{text.text}")
    for name, feature in FEATURES.items()
    for text in feature.parts
    if isinstance(text, SourceText)
]
INTERNAL_NAMES = re.compile(
    r"ray\.scripts|ray_current_cluster|health_check_failure|run_metadata|temporary_state|pickled_error_file|"
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
    assert not [f"{path}: {use}" for path in files for use in private_uses(ast.parse(path.read_text()))]


@pytest.mark.parametrize(
    "code",
    [
        "import ray._private.state",
        "from ray.train._internal.session import get_session",
        "from ray.experimental.internal_kv import _internal_kv_get",
        "from ray.core.generated import gcs_pb2",
        "ray._private.worker.get_dashboard_url()",
        "os.environ['RAY_TRAIN_METRICS_ENABLED'] = '0'",
        "trains = state == 'RunningState'",
        "type(error).__name__ == 'InsufficientClusterResourcesError'",
        "getattr(error, 'health_check_failure', error)",
        "trial.run_metadata.last_result",
        "trial.temporary_state.ray_actor",
        "trial.pickled_error_file",
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


@pytest.mark.slow
@pytest.mark.parametrize(("name", "text"), TEXTS)
@pytest.mark.parametrize("how", ["gone", "other text"])
def test_without_a_source_text_its_feature_is_off_and_one_line_says_so(
    name: str, text: SourceText, how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(compatibility._package_folder() / "_private", tmp_path / "_private", ignore=shutil.ignore_patterns("*.so"))
    shutil.copytree(compatibility._package_folder() / "_common", tmp_path / "_common")
    file = tmp_path / text.file
    if how == "gone":
        file.unlink()
    else:
        file.write_text(file.read_text().replace(text.text, "of another version"))
    monkeypatch.setattr(compatibility, "_package_folder", lambda: tmp_path)
    assert_off(name, capsys)


def test_source_texts_are_checked_without_importing_ray() -> None:
    code = (
        "import sys; from ablations.engine.scheduling.ray_internals import cluster; "
        "print(cluster.loopback_environment(), cluster.current_cluster_file('/tmp')); assert 'ray' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, check=True, capture_output=True, text=True)
    assert done.stdout == f"{{'{cluster.LOOPBACK_VARIABLE}': '0'}} /tmp/ray/ray_current_cluster\n"


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


# Ray Train


class Observer:
    def started(self) -> None:
        self.lock = threading.Lock()  # which cannot be pickled, like the heartbeat's

    def stepped(self, trains: bool | None) -> None:
        self.steps = [*getattr(self, "steps", []), trains]

    def finished(self) -> None: ...


def test_copies_of_a_callback_have_observers_of_their_own() -> None:
    """Train pickles callbacks for the controller, and once more for each worker after the controller has started."""
    (callback,) = train.controller_callbacks(Observer())
    pickled = cloudpickle.dumps(callback)
    one, other = pickle.loads(pickled), pickle.loads(pickled)
    one.after_controller_start(None)
    cloudpickle.dumps(other)


def test_an_observer_is_told_when_a_group_trains() -> None:
    (callback,) = train.controller_callbacks(observer := Observer())
    callback.after_controller_state_update(InitializingState(), RunningState())
    callback.after_worker_group_poll_status(None)
    callback.after_controller_state_update(RunningState(), FinishedState())
    assert observer.steps == [True, None, False]


def turn_off(feature: Feature, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(compatibility._checked, feature, False)


def test_a_shortage_of_nodes_is_a_failure_like_others_where_it_is_not_recognized(monkeypatch: pytest.MonkeyPatch) -> None:
    shortage = ControllerError(InsufficientClusterResourcesError("too few"))
    assert train.is_resource_shortage(shortage)
    assert not train.is_resource_shortage(ControllerError(ValueError("another")))
    turn_off(train.GROUP_FAILURES, monkeypatch)
    assert not train.is_resource_shortage(shortage)


def test_the_crash_of_a_worker_is_taken_out_of_trains_error(monkeypatch: pytest.MonkeyPatch) -> None:
    crash, own = ray.exceptions.ActorDiedError(), ValueError("of a run")
    wrapped = WorkerHealthCheckFailedError("a worker crashed", crash)
    assert train.crash_of_worker(wrapped) is crash
    assert train.crash_of_worker(own) is own
    turn_off(train.GROUP_FAILURES, monkeypatch)
    assert train.crash_of_worker(wrapped) is wrapped


# Ray Tune


def test_a_trial_is_read_as_far_as_its_parts_are_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (file := tmp_path / "error.pkl").write_bytes(cloudpickle.dumps(ValueError("of a run")))
    actor = Mock()
    trial = SimpleNamespace(
        run_metadata=SimpleNamespace(last_result={"epoch": 3}),
        pickled_error_file=str(file),
        temporary_state=SimpleNamespace(ray_actor=actor),
    )
    assert tune.last_report(trial) == {"epoch": 3}
    assert str(tune.last_error(trial)) == "of a run"
    assert _last_failure(trial).reason == "ValueError: of a run"
    tune.execute_in_process(trial, print)
    actor.execute.remote.assert_called_once_with(print)
    for feature in (tune.LAST_REPORTS, tune.FAILURE_CAUSES, tune.STOPPED_TRAINING):
        turn_off(feature, monkeypatch)
    assert tune.last_report(trial) == {}
    assert _last_failure(trial).reason == "its process ended for an unknown reason"
    tune.execute_in_process(trial, print)
    actor.execute.remote.assert_called_once()


@pytest.mark.parametrize("searcher", [BasicVariantGenerator(max_concurrent=1), ConcurrencyLimiter(Searcher(), max_concurrent=1)])
def test_the_limit_of_a_searcher_stays_where_it_is_not_known(
    searcher: BasicVariantGenerator | ConcurrencyLimiter, monkeypatch: pytest.MonkeyPatch
) -> None:
    tune.set_max_trials(searcher, 4)
    assert searcher.max_concurrent == 4
    turn_off(tune.PARALLEL_RUNS, monkeypatch)
    tune.set_max_trials(searcher, 8)
    assert searcher.max_concurrent == 4


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
    "ray._private.utils:set_sigterm_handler": cluster.SIGNALS,
    "ray._private.worker:print_to_stdstream": cluster.SHORT_MESSAGES,
    "ray.experimental.internal_kv:internal_kv_get_gcs_client": cluster.AUTOSCALER,
    "ray.tune.execution.tune_controller:TuneController._maybe_update_trial_queue": tune.HUNG_TRIALS,
    "ray.tune.execution.tune_controller:TuneController._maybe_add_actors": tune.CONCURRENCY,
    "ray.tune.execution.tune_controller:TuneController._update_trial_queue": tune.IDLE_SEARCH,
    "ray.tune.execution.tune_controller:TuneController._process_trial_failure": tune.TRIAL_FAILURES,
    "ray.tune.execution.tune_controller:TuneController.save_to_dir": tune.NO_SNAPSHOTS,
    "ray.air.execution._internal:RayActorManager._actor_task_failed": tune.CRASH_CAUSES,
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
