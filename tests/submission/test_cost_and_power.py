"""Cost and power of a study, estimated before it trains."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import nn

from ablations.engine.analysis.statistics.power import Spread, expected_power, smallest_detectable
from ablations.engine.scheduling.capacity import RunResources
from ablations.engine.study.definition import Study
from ablations.engine.study.expansion import make_plan
from ablations.engine.study.plan import Plan
from ablations.engine.study.request import StudyRequest
from ablations.engine.submission.planning.calibration import calibrate
from ablations.engine.submission.planning.cost_and_power import (
    ComputeMode,
    CostModel,
    compute_mode,
    difference_spread,
    estimate_cost,
    power,
)
from ablations.engine.submission.planning.view import _power_lines
from ablations.engine.task.metric import Metric
from ablations.engine.tracking.run_queries import CompletedRun
from resnet_core import DataConfig, Images, RunSpec, measure_cost, override
from tests.helpers.synthetic_study import design

STUDY = Study(name="depths", question="How deep?", factors={"depth": (8, 14)}, baseline={"depth": 8}, preset="smoke", seeds=2)
STEPS = 8
"""Steps of a run on `smoke`: two epochs of four."""


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return make_plan(STUDY, StudyRequest(), cache=tmp_path)


def past(
    spec: RunSpec, seconds: float, changes: Mapping[str, Any] | None = None, *, on_gpu: bool = False, images: int = 128
) -> CompletedRun:
    text = {name: str(value) for name, value in override(spec, changes or {}).flat().items()}
    return CompletedRun(spec=text, train_examples=images, seconds=seconds, device="a computer", on_gpu=on_gpu)


def deepest(plan: Plan) -> RunSpec:
    spec: RunSpec = plan.runs[0].spec
    return spec


@pytest.mark.parametrize(
    "changes",
    [
        {
            "seed": 7,
            "lr": 0.5,
            "momentum": 0,
            "weight_decay": 0,
            "schedule": "cosine",
            "milestones": (0.1,),
            "label_smoothing": 0.1,
        },
        {"bn_momentum": 0.2, "zero_init_residual": True, "flip": False, "pad": 0, "normalize": "pixel", "decode_workers": 3},
        {"probes": ("gradients",), "warmup_steps": 3, "momentum_form": "caffe", "decay": "weights"},
    ],
)
def test_a_finished_run_of_the_same_shape_tells_how_long_another_takes(plan: Plan, changes: Mapping[str, Any]) -> None:
    estimate = estimate_cost(plan, plan.runs, [past(deepest(plan), 12, changes)])
    assert estimate.seconds == {run.fingerprint: 12 for run in plan.runs if run.spec.depth == 14}
    assert estimate.source == "finished runs on a computer"


@pytest.mark.parametrize(
    "changes",
    [
        *({"depth": 20, "stages": None}, {"shortcut": "B"}, {"width": 16}, {"global_batch_size": 64}, {"image_size": 16}),
        *(
            {"precision": "bf16"},
            {"deterministic": True},
            {"channels_last": False},
            {"compile": True},
            {"checkpoint_activations": True},
            {"world_size": 2},
        ),
    ],
    ids=str,
)
def test_a_finished_run_of_another_shape_tells_nothing(plan: Plan, changes: Mapping[str, Any]) -> None:
    estimate = estimate_cost(plan, plan.runs, [past(deepest(plan), 12, changes)])
    assert (estimate.runs_estimated, estimate.source) == (0, "")


@pytest.mark.parametrize(
    ("length", "factor"), [({"epochs": 1}, 2), ({"epochs": 8}, 1 / 4), ({"iterations": 5}, STEPS / 5)], ids=str
)
def test_time_grows_with_the_steps_of_the_training(plan: Plan, length: Mapping[str, Any], factor: float) -> None:
    estimate = estimate_cost(plan, plan.runs[:1], [past(deepest(plan), 10, length)])
    assert estimate.total_seconds == pytest.approx(10 * factor)


@pytest.mark.slow
def test_where_cells_have_other_training_images_runs_on_as_many_tell_best(tmp_path: Path) -> None:
    study = Study(name="amounts", question="?", factors={"train_examples": (300, 1437)}, settings={"depth": 8}, seeds=1)
    plan = make_plan(study, StudyRequest(), cache=tmp_path)
    few, many = (next(run for run in plan.runs if run.spec.data.train_examples == count) for count in (300, 1437))
    steps = {run: run.spec.optim.total_steps(plan.training_examples(run)) for run in (few, many)}
    assert steps == {few: 40, many: 220}
    finished = [past(few.spec, 80, images=300), past(many.spec, 220, images=1437)]
    assert estimate_cost(plan, plan.runs, finished).seconds == {few.fingerprint: 80, many.fingerprint: 220}
    assert estimate_cost(plan, plan.runs, finished[1:]).seconds == {few.fingerprint: 40, many.fingerprint: 220}
    models = {compute_mode(few.spec): CostModel(per_layer=1, per_multiply_add=0)}
    assert estimate_cost(plan, plan.runs, [], lambda _: models).seconds == {few.fingerprint: 8 * 40, many.fingerprint: 8 * 220}


def test_of_several_finished_runs_the_median_counts(plan: Plan) -> None:
    finished = [past(deepest(plan), seconds, {"seed": seed}) for seed, seconds in enumerate((10, 11, 90))]
    assert estimate_cost(plan, plan.runs[:1], finished).total_seconds == 11


def test_runs_on_gpus_do_not_tell_of_runs_on_cpus(plan: Plan) -> None:
    finished = [past(deepest(plan), 1, on_gpu=True), past(deepest(plan), 30)]
    assert estimate_cost(plan, plan.runs[:1], finished).total_seconds == 30
    on_gpu = estimate_cost(plan, plan.runs[:1], finished, gpus_per_worker=0.5)
    assert (on_gpu.total_seconds, on_gpu.gpu_hours) == (1, 0.5 / 3600)
    assert on_gpu.source.endswith("; runs that share a GPU take longer")


def test_only_what_no_finished_run_tells_of_is_measured_and_each_network_once(plan: Plan) -> None:
    asked: list[RunSpec] = []

    def measure(specs: Sequence[RunSpec]) -> Mapping[ComputeMode, CostModel]:
        asked.extend(specs)
        return {compute_mode(specs[0]): CostModel(per_layer=1, per_multiply_add=0)}

    estimate = estimate_cost(plan, plan.runs, [past(deepest(plan), 12)], measure)
    assert [spec.depth for spec in asked] == [8]
    assert list(estimate.seconds.values()) == [12, 12, 8 * STEPS, 8 * STEPS]
    assert estimate.source == "finished runs on a computer and a few steps measured here"
    estimate_cost(plan, plan.runs, [past(run.spec, 1) for run in plan.runs], measure)
    assert len(asked) == 1


def test_a_modelled_run_has_its_steps_forwards_backwards_and_tests(plan: Plan) -> None:
    spec = deepest(plan)
    models = {compute_mode(spec): CostModel(per_layer=0, per_multiply_add=1)}
    estimate = estimate_cost(plan, plan.runs[:1], [], lambda _: models)
    trained, tested = STEPS * 32, 2 * 50
    assert estimate.total_seconds == measure_cost(spec.model, 8).flops * (3 * trained + tested)


def test_what_cannot_be_measured_stays_open(plan: Plan) -> None:
    estimate = estimate_cost(plan, plan.runs, [], lambda _: {}, at_once=2)
    assert (estimate.runs_estimated, estimate.source, estimate.hours) == (0, "", 0)


@pytest.mark.parametrize(("at_once", "hours"), [(1, 13), (2, 7), (4, 5), (50, 5), (None, None)])
def test_runs_start_in_order_as_soon_as_there_is_room(tmp_path: Path, at_once: int | None, hours: float | None) -> None:
    plan = make_plan(STUDY, StudyRequest(overrides={"epochs": 1}, levels={"depth": ("8", "14", "20", "26")}), cache=tmp_path)
    runs = plan.runs[:4]
    finished = [past(run.spec, 3600 * hour) for run, hour in zip(runs, (5, 3, 3, 2), strict=True)]
    assert estimate_cost(plan, runs, finished, at_once=at_once).hours == hours


@pytest.mark.parametrize(
    ("workers", "cpus_per_worker", "gpus_per_worker", "expected"),
    [
        *((1, 1, 0, 16), (1, 4, 0, 4), (3, 1, 0, 5), (1, 1, 1, 2), (1, 1, 0.25, 8), (2, 1, 1, 1), (1, 32, 0, 0), (1, 0.1, 0, 160)),
        (1, 1, 0.4, 4),  # no worker spans two GPUs with a part of each
    ],
)
def test_a_machine_holds_as_many_runs_as_its_scarcest_resource(
    workers: int, cpus_per_worker: float, gpus_per_worker: float, expected: int
) -> None:
    resources = RunResources(workers=workers, cpus_per_worker=cpus_per_worker, gpus_per_worker=gpus_per_worker)
    assert resources.runs_on({"CPU": 16, "GPU": 2}) == expected


def test_measured_steps_give_a_time_for_every_network(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ablations.engine.submission.planning.calibration.BUDGET_SECONDS", 0.1)
    varied = [replace(run, spec=override(run.spec, {"precision": "bf16"}), fingerprint=f"{run}") for run in plan.runs]
    estimate = estimate_cost(
        plan,
        [*plan.runs, *varied],
        [],
        partial(calibrate, sizes_of=lambda _: plan.dataset.sizes, cpus_per_worker=1, gpus_per_worker=0),
    )
    assert estimate.runs_estimated == 8
    assert all(0.001 < seconds < 60 for seconds in estimate.seconds.values())
    shallow, deep = (estimate.seconds[run.fingerprint] for run in sorted(plan.runs, key=lambda run: run.spec.depth)[::2])
    assert shallow < deep


def test_a_step_longer_than_the_budget_is_the_only_one(monkeypatch: pytest.MonkeyPatch) -> None:
    from ablations.engine.submission.planning import calibration

    steps: list[int] = []
    monkeypatch.setattr(calibration, "BUDGET_SECONDS", 0.0)
    assert calibration._median_seconds(lambda: steps.append(1)) > 0
    assert len(steps) == 1


def test_costs_are_found_from_two_measurements_and_never_negative() -> None:
    from ablations.engine.submission.planning.calibration import _fit

    model = _fit([(10, 1e9, 10 * 2e-3 + 1.0), (50, 2e9, 50 * 2e-3 + 2.0)])
    assert (model.per_layer, model.per_multiply_add) == pytest.approx((2e-3, 1e-9))
    falling = _fit([(10, 1e9, 3.0), (50, 2e9, 2.0)])
    assert min(falling.per_layer, falling.per_multiply_add) >= 0
    assert _fit([(10, 1e9, 3.0)]).seconds(10, 1e9) == pytest.approx(3)


def test_a_gpu_that_is_not_here_is_not_measured(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert calibrate([deepest(plan)], lambda _: plan.dataset.sizes, cpus_per_worker=1, gpus_per_worker=1) == {}


@dataclass(frozen=True, kw_only=True)
class Gray:
    """A network that accepts images and classes like those of digits only."""

    width: int = 8

    def build(self, image_size: int, in_channels: int, num_classes: int) -> nn.Module:
        if (image_size, in_channels, num_classes) != (8, 1, 3):
            raise ValueError(f"{image_size} pixels, {in_channels} channels, {num_classes} classes")
        return nn.Sequential(nn.Conv2d(in_channels, self.width, 3), nn.Flatten(), nn.Linear(36 * self.width, num_classes))


def three_digits(config: DataConfig) -> Images:
    images = np.zeros((256, 8, 8, 1), np.uint8)
    return Images(train=(images, np.arange(256) % 3), classes=("a", "b", "c"))


def test_own_networks_are_timed_on_images_of_the_shape_of_the_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ablations.engine.submission.planning.calibration.MAX_STEPS", 3)
    study = Study(name="gray", question="?", model=Gray, reader=three_digits, factors={"width": (8, 16)}, preset="smoke", seeds=1)
    own = make_plan(study, StudyRequest(), cache=tmp_path)
    measure = partial(calibrate, sizes_of=lambda _: own.dataset.sizes, cpus_per_worker=1, gpus_per_worker=0)
    estimate = estimate_cost(own, own.runs, [], measure)
    assert estimate.runs_estimated == 2
    assert estimate.total_seconds > 0


def errors_of(*values: float, depth: int) -> dict[str, float]:
    return {f"depth={depth}/{seed}": value for seed, value in enumerate(values)}


DEPTHS = {"depth": ("20", "56")}


def test_the_spread_of_paired_differences_so_far_says_what_more_seeds_find() -> None:
    """Textbooks give 34 pairs for a difference of half a known standard deviation (80 % power, 5 %, two-sided)."""
    made = design(DEPTHS, {"depth": "20"}, seeds=34)
    found = power(made, errors_of(5, 9, 40, depth=20) | errors_of(6, 11, 43, 80, depth=56))  # differences 1, 2, 3
    assert found is not None
    assert found.difference_std == pytest.approx(1)
    assert found.source == "the standard deviation of 1 comparison so far"
    assert (found.seeds, found.comparisons) == (34, 1)
    assert found.detectable_alone == found.detectable_corrected == pytest.approx(0.787, abs=0.005), "0.495 at a known spread"
    assert (found.difference_std_low, found.difference_std_high) == pytest.approx((0.659, 3.081), abs=0.001)
    known = power(made, errors_of(*[0] * 34, depth=20) | errors_of(*([-0.985, 0.985] * 17), depth=56))
    assert known is not None
    assert known.difference_std == pytest.approx(1, abs=0.001)
    assert known.seeds_needed in (34, 35, 36)


def test_spreads_of_cells_stand_in_for_those_of_differences() -> None:
    found = power(design(DEPTHS, {"depth": "20"}), errors_of(1, 2, 3, depth=56))
    assert found is not None
    assert found.difference_std == pytest.approx(2**0.5)
    assert found.source == "√2 × the standard deviation of 1 cell so far"


def test_before_there_are_seeds_published_spreads_speak_for_cifar10_and_nothing_for_others() -> None:
    assert power(design(DEPTHS), errors_of(1, depth=20)) is None
    found = power(replace(design(DEPTHS), dataset="cifar10"), {})
    assert found is not None
    assert found.difference_std == pytest.approx(0.205 * 2**0.5, abs=0.001)
    assert found.source == "√2 × the root mean square between seeds in 6 published results"


def test_equal_differences_do_not_promise_to_find_anything() -> None:
    equal = errors_of(1.1, 2.1, 3.1, depth=20) | errors_of(1.4, 2.4, 3.4, depth=56)
    found = power(design(DEPTHS, {"depth": "20"}), equal)
    assert found is not None
    assert found.difference_std > 1, "that of the seeds"


def test_spreads_of_comparisons_are_pooled_as_variances() -> None:
    made = design({"depth": ("20", "32", "56")}, {"depth": "20"})
    found = power(made, errors_of(0, 0, depth=20) | errors_of(0, 2, depth=32) | errors_of(0, 0, depth=56))
    assert found is not None
    assert found.difference_std == pytest.approx(1), "the variances are 2 and 0"
    assert found.source == "the root mean square of 2 comparisons so far"


@pytest.mark.slow
@pytest.mark.parametrize("pilots", [400, pytest.param(10_000, marks=pytest.mark.nightly)])
@pytest.mark.parametrize("comparisons", [1, 3, 6])
@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_a_plan_gives_the_power_that_it_promises(seeds: int, comparisons: int, pilots: int) -> None:
    """Power is 80 % on average over pilots with 2, 3 and 5 seeds, where a study of 10 seeds follows. The true spread is 1."""
    depths = tuple(str(20 + 6 * k) for k in range(comparisons + 1))
    made, random = design({"depth": depths}, {"depth": "20"}, seeds=10), np.random.default_rng(seeds)
    drawn = random.normal(scale=0.5**0.5, size=(pilots, len(depths), seeds)) + random.normal(size=(pilots, 1, seeds))
    stds, df = np.empty(pilots), 0.0
    for pilot, errors in enumerate(drawn):
        values = {
            name: e for depth, row in zip(depths, errors, strict=True) for name, e in errors_of(*row, depth=int(depth)).items()
        }
        spread, _ = difference_spread(made, values) or (None, "")
        assert spread is not None
        stds[pilot], df = spread.std, spread.df
    for family in (1, comparisons):
        detectable = smallest_detectable(Spread(1.0, df), 10, family)
        assert detectable is not None
        given = [expected_power(detectable * std, Spread(1.0, math.inf), 10, family) for std in stds]
        assert 0.75 < np.mean(given) < 0.85


def test_more_comparisons_find_less_and_need_more_seeds() -> None:
    spreads = errors_of(1, 1.2, 1.4, depth=20)
    one = power(design(DEPTHS, {"depth": "20"}), spreads)
    five = power(design({"depth": ("20", "32", "44", "56", "110", "8")}, {"depth": "20"}), spreads)
    assert one is not None
    assert five is not None
    assert (one.comparisons, five.comparisons) == (1, 5)
    assert one.detectable_alone == five.detectable_alone
    assert (five.detectable_corrected or 0) > (one.detectable_corrected or 0) > 0
    assert (five.seeds_needed or 0) > (one.seeds_needed or 0) > 3


def test_two_seeds_find_nothing_and_a_hundred_may_not_be_enough() -> None:
    found = power(design(DEPTHS, {"depth": "20"}, seeds=2), errors_of(10, 20, depth=20))
    assert found is not None
    assert (found.detectable_alone, found.detectable_corrected, found.seeds_needed) == (None, None, None)


def test_in_another_unit_the_target_is_a_hundredth_of_the_values() -> None:
    made = replace(design(DEPTHS, {"depth": "20"}), metric=Metric("valid/loss", "nats"), task="chars", dataset="cifar10")
    found = power(made, errors_of(1.31, 1.33, 1.36, depth=20))
    assert found is not None
    assert found.target == 0.01
    shown = "\n".join(_power_lines(found, made.metric))
    assert "0.01 nats take" in shown
    assert "points" not in shown
    assert power(made, {}) is None, "published errors say nothing about a loss"
