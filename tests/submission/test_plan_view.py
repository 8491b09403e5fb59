"""The plan of a study as printed before it trains."""

import io
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from rich.console import Console

from ablations import Context, Epoch, Metric, Study, Task
from ablations.engine.study.design import Design
from ablations.engine.study.expansion import make_plan
from ablations.engine.study.plan import Plan
from ablations.engine.study.request import StudyRequest
from ablations.engine.submission.planning.cost_and_power import CostEstimate
from ablations.engine.submission.planning.seed_forecast import SeedForecast, forecast_seeds
from ablations.engine.submission.planning.view import plan_view
from ablations.engine.tracking.run_queries import RunRecord
from resnet_core import ModelConfig, measure_cost
from tests.helpers.training_runs import paper_network

STUDY = Study(
    name="blocks",
    question="Which blocks?",
    factors={"block": ("basic", "bottleneck"), "depth": (14, 20)},
    baseline={"block": "basic"},
    preset="smoke",
)
NOTHING = CostEstimate(seconds={}, source="", at_once=None, hours=None, gpu_hours=0)


@dataclass(frozen=True)
class Steps:
    epochs: int = 1


def walk(config: Steps, context: Context) -> Iterator[Epoch]:
    yield Epoch(metrics={"loss": 1.0})


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return make_plan(STUDY, StudyRequest(), cache=tmp_path)


def shown(plan: Plan, done: dict[str, RunRecord], estimate: CostEstimate, width: int = 120) -> list[str]:
    """Return the lines of a log."""
    text = io.StringIO()
    Console(file=text, width=width).print(plan_view(plan, Design.from_plan(plan, {}), done, estimate))
    return [line.rstrip() for line in text.getvalue().splitlines()]


def entry(error: float, seconds: float = 7.0, outcome: str = "completed") -> RunRecord:
    metrics = {"test/error": error} | ({"train_seconds": seconds} if outcome == "completed" else {})
    return RunRecord("id", "1", "FINISHED", {"outcome": outcome}, {}, metrics)


def test_a_plan_with_a_price_says_what_its_gpus_cost(plan: Plan) -> None:
    seconds = {run.fingerprint: 3600.0 for run in plan.runs}
    estimate = CostEstimate(seconds=seconds, source="steps", at_once=2, hours=2.0, gpu_hours=4.5)
    assert "4.5 GPU-hours;" in " ".join(shown(plan, {}, estimate))
    priced = " ".join(shown(plan, {}, replace(estimate, usd_per_gpu_hour=3.0)))
    assert "4.5 GPU-hours, $13.50 at $3 per GPU-hour" in priced


def test_a_plan_shows_every_cell_with_its_cost_and_time_and_what_is_skipped(plan: Plan) -> None:
    seconds = {run.fingerprint: 100.0 * run.spec.depth + run.seed for run in plan.runs if paper_network(run.spec).block == "basic"}
    estimate = CostEstimate(seconds=seconds, source="steps", at_once=2, hours=2.0, gpu_hours=0.25)
    title, data, header, *lines = shown(plan, {}, estimate)
    assert title == "blocks on synthetic: Which blocks?"
    assert data == "Data: 128 images to train, 50 images to score (generated), 10 classes, 8×8 pixels, RGB"
    assert header.split("  ")[-1].strip() == "time / run"
    assert [line.split()[:5] for line in lines[:3]] == [
        ["basic", "14", "3", "0", "2"],
        ["basic", "20", "3", "0", "2"],
        ["bottleneck", "20", "3", "0", "2"],
    ]
    assert [line.split("  ")[-1].strip() for line in lines[:3]] == ["23 min 21 s", "33 min 21 s", "–"]
    assert lines[3].startswith("skipped block=bottleneck depth=14: model.depth=14: cifar with bottleneck blocks has depths 9n+2")
    rest = " ".join(lines[4:])
    assert "9 runs, 9 to train, 0 done already: " in rest
    times = "About 2 h 0 min with 2 at a time, 2 h 50 min one after another, 0.25 GPU-hours for 6 of 9 runs; estimated from steps."
    assert times in rest


def test_where_cells_have_other_training_images_a_plan_says_how_many_each_has(tmp_path: Path) -> None:
    study = replace(
        STUDY, factors={"train_examples": (300, 5000), "probes": ([], ["responses"])}, baseline={}, settings={"depth": 8}
    )
    lines = shown(make_plan(study, StudyRequest(preset="digits"), cache=tmp_path), {}, NOTHING)
    assert lines[1].startswith("Data: 300 or 1,437 images to train, 360 images to score (")
    assert lines[2].split()[:6] == ["train_examples", "probes", "images", "seeds", "done", "epochs"]
    assert [line.split()[:6] for line in lines[3:7]] == [
        ["300", "[]", "300", "3", "0", "10"],
        ["300", "[responses]", "300", "3", "0", "10"],
        ["5000", "[]", "1,437", "3", "0", "10"],
        ["5000", "[responses]", "1,437", "3", "0", "10"],
    ]
    cost = measure_cost(ModelConfig(depth=8, in_channels=1), 8).flops
    assert any(line.endswith(f"{6 * 3 * cost * 64 * (40 + 220):.2e} multiply-adds") for line in lines)


def test_a_plan_in_a_narrow_terminal_names_its_cells(plan: Plan) -> None:
    printed = shown(plan, {}, NOTHING, width=60)
    header, *lines = printed[next(i for i, line in enumerate(printed) if line.startswith("block ")) :]
    assert header.split() == ["block", "depth", "seeds", "done", "multiply-adds", "time", "/", "run"]
    assert lines[2].split()[:2] == ["bottleneck", "20"]
    assert lines[3] == "Not shown in 60 columns: epochs, parameters, MB / image (see"


def test_done_runs_are_reused_and_their_cell_shows_what_they_took(plan: Plan) -> None:
    done = {run.fingerprint: entry(10, 6 + run.seed) for run in plan.runs if str(run.cell) == "block=basic depth=14"}
    lines = shown(plan, done, NOTHING)
    assert lines[3].split()[2:5] == ["3", "3", "2"]
    assert lines[3].endswith(" 7 s")
    assert any(line.startswith("9 runs, 6 to train, 3 done already: ") for line in lines)


def test_a_plan_with_nothing_to_train_gives_no_time(plan: Plan) -> None:
    lines = shown(plan, {run.fingerprint: entry(10) for run in plan.runs}, NOTHING)
    assert any(line.startswith("9 runs, 0 to train, 9 done already: 0.00e+00") for line in lines)
    assert not any("About" in line or "--calibrate" in line for line in lines)


def test_where_nothing_is_known_the_plan_says_how_to_find_out(plan: Plan) -> None:
    text = " ".join(shown(plan, {}, NOTHING))
    assert "not known, since no such run has finished; --calibrate times a few steps" in text
    assert "The smallest detectable difference is not known before two seeds of a cell have finished." in text


def test_a_task_has_neither_columns_nor_advice_that_only_images_have(tmp_path: Path) -> None:
    task = Task(name="walk", config=Steps, train=walk, metric=Metric("loss"))
    study = Study(name="walks", question="How many?", task=task, factors={"epochs": (1, 2)})
    title, header, *lines = shown(make_plan(study, StudyRequest(), cache=tmp_path), {}, NOTHING)
    assert title == "walks on walk: How many?"
    assert header.split() == ["epochs", "seeds", "done", "epochs", "time", "/", "run"]
    assert "not known, since no such run has finished; the first run of a study shows it." in " ".join(lines)


def test_runs_at_a_time_are_not_named_where_they_are_not_known_or_one(plan: Plan) -> None:
    for at_once, hours in ((None, None), (1, 0.25)):
        estimate = CostEstimate(seconds={plan.runs[0].fingerprint: 900}, source="steps", at_once=at_once, hours=hours, gpu_hours=0)
        assert any(line.startswith("About 15 min 0 s one after another for 1 of 9 runs") for line in shown(plan, {}, estimate))


def test_what_the_seeds_can_show_is_said_with_where_it_comes_from(plan: Plan) -> None:
    done = {run.fingerprint: entry(10 + run.seed**2) for run in plan.runs if str(run.cell) == "block=basic depth=14"}
    text = " ".join(shown(plan, done, NOTHING))
    assert "3 seeds find a true difference of 15 points; 0.5 points take more than 100 seeds." in text
    assert "To find a difference means that it is significant at 5 % in 80 % of such studies (power)." in text
    assert (
        "It is estimated as 2.9 points, √2 × the standard deviation of 1 cell so far, and lies between 1.9 points and 9.1 points "
        "with 80 % probability; the power is an average over its possible values." in text
    )


def test_the_number_of_comparisons_is_considered(tmp_path: Path) -> None:
    study = replace(STUDY, baseline={"depth": 14})
    plan = make_plan(study, StudyRequest(seeds=5, levels={"block": ("basic",), "depth": ("8", "14", "20")}), cache=tmp_path)
    done = {run.fingerprint: entry(10 + run.seed) for run in plan.runs if str(run.cell) == "block=basic depth=14"}
    text = " ".join(shown(plan, done, NOTHING))
    assert "5 seeds find a true difference of 4.7 points if it is the only one tested, and one of 5.8 points if all 2 " in text
    assert "comparisons are tested; 0.5 points take" in text
    assert "seeds if all are tested." in text


def test_errors_of_diverged_runs_say_nothing_of_the_spread(plan: Plan) -> None:
    done = {run.fingerprint: entry(10 + run.seed, outcome="diverged") for run in plan.runs}
    assert "is not known before two seeds" in " ".join(shown(plan, done, NOTHING))


def test_one_of_anything_is_in_the_singular(tmp_path: Path) -> None:
    plan = make_plan(STUDY, StudyRequest(seeds=1, levels={"block": ("basic",), "depth": ("14",)}), cache=tmp_path)
    lines = shown(plan, {}, NOTHING)
    assert any(line.startswith("1 run, 1 to train, 0 done already: ") for line in lines)


def test_two_seeds_are_told_to_be_too_few(tmp_path: Path) -> None:
    plan = make_plan(STUDY, StudyRequest(seeds=2), cache=tmp_path)
    done = {run.fingerprint: entry(10 + run.seed / 5) for run in plan.runs if str(run.cell) == "block=basic depth=14"}
    text = " ".join(shown(plan, done, NOTHING))
    assert "2 seeds are too few for a test; 0.5 points take 12 seeds" in text


def adaptive_lines(plan: Plan, done: dict[str, RunRecord]) -> tuple[SeedForecast, str]:
    """Return the forecast of an adaptive study, and the lines of its plan as one text."""
    missing = [run for run in plan.runs if run.fingerprint not in done]
    seconds = dict.fromkeys((run.fingerprint for run in missing), 3600.0)
    estimate = CostEstimate(seconds=seconds, source="steps", at_once=2, hours=len(missing) / 2, gpu_hours=0)
    results = {name: (record.outcome, record.metrics["test/error"]) for name, record in done.items()}
    found = forecast_seeds(Design.from_plan(plan, {}), results, estimate)
    text = io.StringIO()
    Console(file=text, width=1000).print(plan_view(plan, Design.from_plan(plan, {}), done, estimate, seeds=found))
    return found, text.getvalue()


@pytest.mark.slow
def test_adaptive_seeds_have_a_best_an_expected_and_a_worst_cost(tmp_path: Path) -> None:
    plan = make_plan(STUDY, StudyRequest(seeds=(3, 5, 8), levels={"depth": ("20",)}), cache=tmp_path)
    nothing, text = adaptive_lines(plan, {})
    assert (nothing.best.runs, nothing.worst.runs, nothing.expected) == (6, 16, None)
    assert "At most 16 runs, 16 to train" in text
    assert "looks at 3, 5 and 8: 6 to train of 6 runs (3 h 0 min) if every comparison is decided at the next look; 16 to" in text

    first = [run for run in plan.runs if run.seed < 3]
    errors = {"basic": (10.0, 12.0, 16.0), "bottleneck": (18.0, 10.0, 32.0)}
    done = {run.fingerprint: entry(errors[str(dict(run.cell.levels)["block"])][run.seed]) for run in first}
    some, text = adaptive_lines(plan, done)
    assert some.expected
    assert some.best.missing <= some.expected.missing <= some.worst.missing == 10
    assert "expected" in text

    errors = {"basic": (80.0, 80.0, 82.0), "bottleneck": (10.0, 10.0, 10.0)}
    clear = {run.fingerprint: entry(errors[str(dict(run.cell.levels)["block"])][run.seed]) for run in first}
    ended, text = adaptive_lines(plan, clear)
    assert (ended.best.missing, ended.worst.missing, ended.expected) == (0, 0, None)
    assert "Adaptive seeds: no comparison is open" in text
