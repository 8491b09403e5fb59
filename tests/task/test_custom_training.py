"""A training of one's own: what its workload accepts, trains, saves and refuses."""

import functools
import math
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from mlflow import MlflowException
from mlflow.utils.validation import _validate_metric_name

from ablations import Context, Epoch, Metric, Study, Task
from ablations.engine.study.expansion import make_plan
from ablations.engine.study.request import StudyRequest
from ablations.engine.task.custom_training import CustomTraining, TaskSpec
from ablations.engine.trial import worker
from ablations.engine.trial.job import Job
from resnet_core import ConfigError, Diverged

LOSS = Metric("valid/loss", unit="nats")


@dataclass(frozen=True, kw_only=True)
class Config:
    rate: float = 0.5
    kind: Literal["line", "curve"] = "line"
    epochs: int = 4


def train(config: Config, context: Context) -> Iterator[Epoch]:
    """Walk at random; every epoch halves the way with some noise."""
    done, value = (context.restore["epoch"], context.restore["value"]) if context.restore else (0, torch.tensor(8.0))
    for epoch in range(done + 1, config.epochs + 1):
        noise = torch.rand((), generator=torch.Generator().manual_seed(1000 * context.seed + epoch))
        value = value * config.rate + noise
        context.alive()
        yield Epoch(metrics={"valid/loss": value, "train/loss": 1}, checkpoint={"epoch": epoch, "value": value})


def task(**changes: Any) -> Task:
    return Task(**{"name": "walk", "config": Config, "train": train, "metric": LOSS, **changes})


def study(**changes: Any) -> Study:
    return Study(**{"name": "s", "question": "?", "task": task(), "factors": {"kind": ("line", "curve")}, **changes})


def job_of(folder: Path, task: Task, **settings: Any) -> Job:
    workload = CustomTraining(task)
    (folder / "checkpoints").mkdir(exist_ok=True)
    return Job(
        fingerprint="run",
        spec=workload.override(workload.presets["default"], settings).flat(),
        data_version=workload.load_data(workload.presets["default"], folder, download=False).version,
        folder="run",
        storage=str(folder / "checkpoints"),
        cache=str(folder),
        cpus_per_worker=1,
        gpus_per_worker=0,
        workload=workload.pickled(),
    )


def epochs_of(job: Job) -> list[dict[str, Any]]:
    return list(worker.train_epochs(job, "cpu"))


def losses(reports: list[dict[str, Any]]) -> list[float]:
    return [report["metrics"]["valid/loss"] for report in reports]


def test_a_study_of_a_task_has_its_fields_as_factors_and_settings() -> None:
    request = StudyRequest(levels={"rate": ("0.25", "0.5")}, overrides={"epochs": "2"}, seeds=2)
    plan = make_plan(study(), request, cache=Path())
    assert [str(cell) for cell in plan.cells] == [f"kind={kind} rate={rate}" for kind in ("line", "curve") for rate in (0.25, 0.5)]
    assert {run.spec.config.epochs for run in plan.runs} == {2}
    assert len({run.fingerprint for run in plan.runs}) == 8
    assert plan.metric == LOSS


def test_epochs_are_reported_with_their_time_and_metrics_as_numbers(tmp_path: Path) -> None:
    reports = epochs_of(job_of(tmp_path, task()))
    assert [report["epoch"] for report in reports] == [1, 2, 3, 4]
    assert all(isinstance(value, float) for report in reports for value in report["metrics"].values())
    seconds = [report["metrics"]["train_seconds"] for report in reports]
    assert seconds == sorted(seconds)
    assert reports[0]["metrics"]["epoch_seconds"] == pytest.approx(seconds[0])


def test_an_interrupted_training_continues_to_the_same_numbers(tmp_path: Path) -> None:
    whole = losses(epochs_of(_in(tmp_path / "whole")))
    job = _in(tmp_path / "parts")
    with closing(worker.train_epochs(job, "cpu")) as reports:
        assert [next(reports)["epoch"] for _ in range(2)] == [1, 2]
    again = epochs_of(job)
    assert losses(again) == whole
    assert [report["epoch"] for report in again] == [1, 2, 3, 4]


def _in(folder: Path) -> Job:
    folder.mkdir()
    return job_of(folder, task())


def nothing(config: Config, context: Context) -> Iterator[Epoch]:
    yield from ()


def no_metric(config: Config, context: Context) -> Iterator[Epoch]:
    yield Epoch(metrics={"loss": 1.0})


def no_epoch(config: Config, context: Context) -> Iterator[Any]:
    yield {"valid/loss": 1.0}


def empty(config: Config, context: Context) -> Iterator[Epoch]:
    yield from ()


def refused_by_mlflow(config: Config, context: Context) -> Iterator[Epoch]:
    yield Epoch(metrics={"valid/loss": 1.0, "valid/acc@1": 0.5})


def no_number(config: Config, context: Context) -> Iterator[Epoch]:
    yield Epoch(metrics={"valid/loss": "low"})  # type: ignore[dict-item]


def not_a_number(config: Config, context: Context) -> Iterator[Epoch]:
    yield Epoch(metrics={"valid/loss": math.nan})


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (nothing, "train of walk: yields no epoch; accepted: an ablations.Epoch after every epoch"),
        (no_metric, "train of walk: yields no metric valid/loss; it yields loss"),
        (no_epoch, r"train of walk: yields dict; accepted: ablations\.Epoch"),
        (no_number, "train of walk: valid/loss=low: accepted: a number"),
        (empty, "train of walk: yields no epoch; accepted: "),
        (refused_by_mlflow, "train of walk: metric=valid/acc@1: accepted: a name of letters, digits"),
    ],
)
def test_what_a_training_must_not_yield_is_one_line(tmp_path: Path, function: Callable[..., Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        epochs_of(job_of(tmp_path, task(train=function)))


def test_a_metric_that_is_not_finite_is_divergence(tmp_path: Path) -> None:
    with pytest.raises(Diverged, match="valid/loss is nan"):
        epochs_of(job_of(tmp_path, task(train=not_a_number)))


@pytest.mark.parametrize("name", ["valid/acc@1", "a//b", "../a", ".", "/a", "a/", "x" * 251, "loss\n", "", "ok: a.b-c/d e"])
def test_a_metric_s_name_is_accepted_if_mlflow_accepts_it(name: str) -> None:
    if name.startswith("ok"):
        _validate_metric_name(name)
        assert Metric(name).name == name
        return
    with pytest.raises(ConfigError, match=r"^metric="):
        Metric(name)
    if len(name) <= 250 and name == name.strip():
        with pytest.raises(MlflowException):
            _validate_metric_name(name)


def cannot_save(config: Config, context: Context) -> Iterator[Epoch]:
    yield Epoch(metrics={"valid/loss": 1.0}, checkpoint={"config": config})


def test_a_checkpoint_that_only_code_could_load_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"checkpoint of walk: .*Config.*accepted: tensors, numbers, text, lists and dicts"):
        epochs_of(job_of(tmp_path, task(train=cannot_save)))


@dataclass
class Thawed:
    rate: float = 0.5


@dataclass(frozen=True)
class Untyped:
    rate = 0.5


@dataclass(frozen=True)
class Seeded:
    seed: int = 0


@dataclass(frozen=True)
class Bare:
    rate: float


@dataclass(frozen=True)
class WrongDefault:
    rate: float = "fast"  # type: ignore[assignment]


def no_generator(config: Config, context: Context) -> dict[str, float]:
    return {"valid/loss": 1.0}


def no_context(config: Config) -> Iterator[Epoch]:
    yield Epoch(metrics={"valid/loss": 1.0})


def _inside_a_function() -> Callable[..., Iterator[Epoch]]:
    def inner(config: Config, context: Context) -> Iterator[Epoch]:
        yield Epoch(metrics={"valid/loss": 1.0})

    return inner


@pytest.mark.parametrize("function", [functools.partial(train), torch.enable_grad()(train)])
def test_a_partial_or_decorated_generator_is_a_training(function: Any) -> None:
    assert task(train=function).train is function


@pytest.mark.parametrize("name", ["valid/loss (β)", "valid//loss", "/loss", "../loss", "loss%", "x" * 251])
def test_a_metric_that_mlflow_would_refuse_is_refused_before_anything_starts(name: str) -> None:
    with pytest.raises(ConfigError, match=r"^metric=.*: accepted: .* letters, digits"):
        Metric(name)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"config": Thawed}, r"Thawed: its instances can change; accepted: @dataclass\(frozen=True"),
        ({"config": Untyped}, "Untyped.rate=0.5: has no type; accepted: rate: float = 0.5"),
        ({"config": Seeded}, r"Seeded.seed: a run has its own; accepted: context\.seed in train"),
        ({"config": Bare}, r"Bare\(\): .*rate.*; accepted: a default for every field, or presets"),
        ({"presets": {"quick": 3}}, "preset quick=3: accepted: a Config"),
        ({"metric": "valid/loss"}, "metric=valid/loss: accepted: an ablations.Metric"),
        ({"train": 3}, "train=3: accepted: a function of a configuration and a context"),
        ({"name": "a b"}, "task name=a b: accepted:"),
        ({"data_version": 3}, "data_version=3: accepted: text, or a function that returns it"),
        ({"train": _inside_a_function()}, "is defined inside a function"),
        (
            {"train": no_generator},
            "train: no_generator: does not yield; accepted: a generator function of a configuration and a context",
        ),
        ({"train": no_context}, "train: no_context: too many positional arguments; accepted: a generator function"),
        ({"metric": Metric("epoch_seconds")}, "metric=epoch_seconds: a study reports its own metric of this name"),
        ({"config": WrongDefault}, "rate=fast: accepted: a number"),
        ({"presets": {3: Config()}}, "presets=.*: accepted: configurations by name"),
        ({"sources": ["module"]}, r'sources=\["module"\]: accepted: a list of modules, classes or functions'),
    ],
)
def test_a_wrong_task_is_rejected_in_one_line_before_anything_starts(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_plan(study(task=task(**changes), factors={"rate": (0.1, 0.2)}), StudyRequest(), cache=Path())


@dataclass(frozen=True, kw_only=True)
class Endless:
    rate: float = 0.5
    epochs: int | None = None


@dataclass(frozen=True, kw_only=True)
class Worded:
    epochs: str = "many"


@pytest.mark.parametrize("config", [Endless, Worded])
def test_a_field_epochs_that_is_no_number_says_nothing_about_the_length(config: type) -> None:
    workload = CustomTraining(task(config=config))
    spec = workload.presets["default"]
    assert (workload.units_of_work(spec.flat(), 0), workload.total_epochs(spec, None)) == (1.0, None)
    assert workload.units_of_work({"epochs": "7"}, 0) == 7


def test_a_field_that_the_configuration_lacks_is_named_with_near_ones() -> None:
    with pytest.raises(ConfigError, match=r"factors rte: no such field; did you mean rate\?$"):
        study(factors={"rte": (0.1, 0.2)})


def fails(config: Config) -> str:
    raise OSError("no such disk")


def kind_of_data(config: Config) -> str:
    return f"{config.kind} at {config.epochs}"


def test_requested_levels_do_not_decide_which_study_it_is() -> None:
    def base_id(levels: tuple[str, ...], epochs: str = "4") -> str:
        request = StudyRequest(levels={"kind": levels}, overrides={"epochs": epochs})
        return make_plan(study(task=task(data_version=kind_of_data)), request, cache=Path()).base_id

    assert base_id(("line", "curve")) == base_id(("curve",)) == base_id(("line",))
    assert base_id(("line",)) != base_id(("line",), "9")


def test_an_error_in_the_data_version_is_one_line() -> None:
    with pytest.raises(ConfigError, match="data_version of walk: OSError: no such disk"):
        make_plan(study(task=task(data_version=fails)), StudyRequest(), cache=Path())


def test_a_changed_seed_workers_data_or_configuration_is_another_run() -> None:
    workload = CustomTraining(task())
    spec = workload.presets["default"]
    assert isinstance(spec, TaskSpec)
    runs = [(spec, "1"), (spec, "2"), (replace(spec, seed=1), "1"), (replace(spec, world_size=2), "1")]
    runs.append((workload.override(spec, {"rate": 0.25}), "1"))
    assert len({workload.fingerprint(each, version) for each, version in runs}) == 5
