"""Several data sets: each is an ordinary study, and a wrong request is one line before anything starts."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from ablations import Context, Epoch, Metric, Task
from ablations.engine.study.dataset_studies import check_plans, split_by_dataset
from ablations.engine.study.definition import Study
from ablations.engine.study.expansion import make_draft, make_plan
from ablations.engine.study.request import StudyRequest
from resnet_core import ConfigError

RIGHT: dict[str, Any] = {"name": "x", "question": "?", "factors": {"depth": (8, 14)}, "preset": "smoke"}
SIZES = {"few": {"train_examples": 64}, "many": {"train_examples": 128}}


def study(**more: Any) -> Study:
    return Study(**RIGHT | more)


WRONG = {
    "one name": ({"datasets": "digits"}, r"datasets=digits: accepted: \('digits', 'mnist5k'\), or settings by name"),
    "a number": ({"datasets": 3}, "datasets=3: accepted: "),
    "one only": ({"datasets": ("digits",)}, "datasets=digits: is one data set only; accepted: two or more, or --preset digits"),
    "twice": ({"datasets": ("digits", "mnist5k", "digits")}, "datasets=digits: is named twice; accepted: each data set once"),
    "unknown": ({"datasets": ("digits", "svhn")}, "datasets=svhn: no such data set; accepted: smoke, digits, mnist5k"),
    "a name without settings": ({"datasets": {"a": {}, "digits": {}}}, "datasets=a: no such data set"),
    "settings that are none": ({"datasets": {"a": 3, "b": 4}}, "datasets a=3: accepted: values by field"),
    "an unknown field": ({"datasets": {"a": {"roof": 3}, "b": {"root": "x"}}}, "datasets a roof: no such field; did you mean root"),
    "a seed": ({"datasets": {"a": {"seed": 3}, "b": {"root": "x"}}}, "datasets a=seed: accepted: --seeds N"),
    "a wrong value": ({"datasets": {"a": {"data.name": "svhn"}, "b": {}}}, "data.name=svhn: accepted: digits, mnist5k"),
    "a factor": ({"factors": {"train_examples": (32, 64)}, "datasets": SIZES}, "datasets few: sets data.train_examples, but"),
    "a search": ({"datasets": ("digits", "mnist5k"), "space": lambda trial: None}, "a search is on one data set"),
    "a name that is none": ({"datasets": ("digits", "")}, "datasets=: accepted: names of up to 64 characters"),
}


@pytest.mark.parametrize(("changes", "message"), WRONG.values(), ids=WRONG.keys())
def test_wrong_data_sets_of_a_file_are_one_line(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{message}" if not message.startswith("a search") else message) as caught:
        study(**changes)
    assert "\n" not in str(caught.value)


REQUESTS = {
    "one only": ({"datasets": ["digits"]}, "--datasets=digits: is one data set only"),
    "unknown": ({"datasets": ["digits", "svhn"]}, "--datasets=svhn: no such data set"),
    "twice": ({"datasets": ["few", "few"]}, "--datasets=few: is named twice"),
    "a preset and its own preset": (
        {"datasets": ["digits", "mnist5k"], "preset": "smoke"},
        "--preset=smoke: the data set digits is a preset itself; accepted: --preset alone, or --datasets alone",
    ),
    "a setting twice": ({"overrides": {"train_examples": 3}}, "--set train_examples: the data set few sets it"),
    "a level": ({"levels": {"train_examples": ("3", "4")}}, "--datasets few: sets data.train_examples, but train_examples is a"),
}


@pytest.mark.parametrize(("given", "message"), REQUESTS.values(), ids=REQUESTS.keys())
def test_wrong_requests_are_one_line(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{message}"):
        split_by_dataset(study(datasets=SIZES), StudyRequest(**given))


def test_a_search_has_one_data_set() -> None:
    with pytest.raises(ConfigError, match="--datasets: a search is on one data set"):
        split_by_dataset(study(space=lambda trial: None), StudyRequest(datasets=["digits", "mnist5k"]))


def test_a_name_is_a_preset_or_a_data_set_or_a_name_for_settings() -> None:
    given = {"digits": {"epochs": 3}, "fashion_mnist": {"data.root": "/data"}, "mine": {"train_examples": 64}}
    one, two, three = split_by_dataset(study(datasets=given), StudyRequest(seeds=5))
    assert [each.dataset for each in (one, two, three)] == list(given)
    assert (one.request.preset, dict(one.request.overrides)) == ("digits", {"optim.epochs": 3})
    assert dict(two.request.overrides) == {"data.name": "fashion_mnist", "data.root": "/data"}
    assert (two.request.preset, two.study.preset, three.request.seeds) == (None, "smoke", 5)
    assert not one.study.datasets


def test_requested_names_mean_those_of_the_study() -> None:
    given = study(datasets={**SIZES, "most": {"train_examples": 256}})
    parts = split_by_dataset(given, StudyRequest(datasets=["most", "few"]))
    assert [dict(each.request.overrides) for each in parts] == [{"data.train_examples": 256}, {"data.train_examples": 64}]


def test_a_preset_alone_runs_on_one_data_set() -> None:
    given = study(datasets=SIZES)
    assert split_by_dataset(given, StudyRequest(preset="smoke")) == ()
    assert split_by_dataset(study(), StudyRequest()) == ()
    assert len(split_by_dataset(given, StudyRequest(preset="digits", datasets=["few", "many"]))) == 2


def test_each_data_set_has_the_runs_and_the_identity_of_the_ordinary_study(tmp_path: Path) -> None:
    for part in split_by_dataset(study(datasets={"digits": {}, "few": {"train_examples": 64}}), StudyRequest()):
        alone = StudyRequest(preset="digits") if part.dataset == "digits" else StudyRequest(overrides={"data.train_examples": 64})
        here, there = make_plan(part.study, part.request, cache=tmp_path), make_plan(study(), alone, cache=tmp_path)
        assert here.base_id == there.base_id
        assert [run.fingerprint for run in here.runs] == [run.fingerprint for run in there.runs]


def test_the_same_data_under_two_names_is_refused(tmp_path: Path) -> None:
    given = study(datasets={"a": {"train_examples": 64}, "b": {"data.train_examples": 64}})
    plans = [make_plan(each.study, each.request, cache=tmp_path) for each in split_by_dataset(given, StudyRequest())]
    with pytest.raises(ConfigError, match=r"^--datasets: a and b are the same data with the same settings; accepted: each once$"):
        check_plans(["a", "b"], plans)


@dataclass(frozen=True, kw_only=True)
class Config:
    rate: float = 0.1
    text: str = "a"


def train(config: Config, context: Context) -> Iterator[Epoch]:
    yield Epoch(metrics={"valid/loss": config.rate}, checkpoint={})


def task(metric: Metric) -> Task:
    return Task(
        name="t",
        config=Config,
        train=train,
        metric=metric,
        presets={"a": Config(), "b": Config(text="b")},
    )


def test_data_sets_of_a_task_are_its_presets_and_settings() -> None:
    given = Study(
        name="x",
        question="?",
        task=task(Metric("valid/loss")),
        factors={"rate": (0.1, 0.2)},
        datasets={"a": {}, "c": {"text": "c"}},
    )
    one, two = split_by_dataset(given, StudyRequest())
    assert (one.request.preset, dict(two.request.overrides)) == ("a", {"text": "c"})
    with pytest.raises(ConfigError, match="datasets=z: no such data set; accepted: a, b, or a name with settings"):
        replace(given, datasets=("a", "z"))


def test_data_sets_with_different_metrics_are_refused() -> None:
    drafts = [
        make_draft(Study(name="x", question="?", task=task(metric), factors={"rate": (0.1, 0.2)}), StudyRequest())
        for metric in (Metric("valid/loss", unit="nats"), Metric("valid/loss", unit="bits"))
    ]
    with pytest.raises(
        ConfigError, match=r"^--datasets: b is compared by valid loss, bits \(lower is better\), a by valid loss, n"
    ):
        check_plans(["a", "b"], drafts)
