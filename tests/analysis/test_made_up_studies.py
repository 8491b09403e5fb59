"""Made-up studies on 360 test images, with the verdict and the words that are right for each."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from ablations.engine.analysis.findings import Findings
from ablations.engine.analysis.study_analysis import analyze_study
from tests.helpers.synthetic_study import design, evidence, without

IMAGE = 100 / 360
SHORTCUTS = {"shortcut": ("none", "A")}


def scatter(levels: Mapping[str, str], seed: int) -> float:
    """Return an error of about 2 %, with a standard deviation of one image."""
    numbers = [sum(map(ord, level)) for level in levels.values()]
    return IMAGE * round(float(np.random.default_rng([seed, *numbers]).normal(7, 1)))


def study(
    factors: Mapping[str, Sequence[str]],
    truth: Callable[[Mapping[str, str], int], float],
    seeds: int = 5,
    diverged: Sequence[str] = (),
    missing: Sequence[str] = (),
    **more: Any,
) -> Findings:
    """Return the findings of a study with A as baseline, in which runs with these fingerprints diverged or are missing."""
    made = replace(design(factors, seeds=seeds), **({"test_examples": 360, "chance": 90.0} | more))
    given = evidence(made, truth, epochs=1)
    for outcome, runs in (("diverged", diverged), ("missing", missing)):
        for run in runs:
            given = without(given, run, outcome)
    return analyze_study(given)


def answer(found: Findings, factor: str = "shortcut") -> tuple[str, str]:
    return next((each.verdict, each.text) for each in found.answers if each.factor == factor)


def test_levels_that_both_never_train_are_said_to_in_one_clause() -> None:
    _, text = answer(study(SHORTCUTS, lambda levels, seed: 90.0 + 2 * (seed % 2), seeds=3))
    assert "all 6 runs of both levels fail to train; none instead of A gives" in text
    assert "exact test" not in text


def test_a_level_that_always_diverges_matters() -> None:
    verdict, text = answer(study(SHORTCUTS, scatter, diverged=[f"shortcut=none/{seed}" for seed in range(5)]))
    assert verdict == "matters"
    assert "none fails to train in 5 of 5 runs, A in 0 of 5 (exact test, adjusted p = 0.0079)" in text


def test_better_survivors_of_a_level_that_fails_are_no_improvement() -> None:
    def truth(levels: Mapping[str, str], seed: int) -> float:
        return scatter({"shortcut": "A"}, seed) - (levels["shortcut"] == "none") * (0.6 + 0.3 * seed)

    verdict, text = answer(study(SHORTCUTS, truth, diverged=["shortcut=none/0", "shortcut=none/2"]))
    assert verdict in ("may matter", "no difference shown")
    assert "lowers" not in text
    assert re.search(r"none fails to train in 2 of 5 runs.*of the seeds in which both trained, none instead of A", text)
    assert re.search(r"with failed runs counted as guessing it would be \+3\d\.\d\d points", text)


def test_failures_at_one_combination_matter_and_are_located() -> None:
    factors = {"shortcut": ("none", "A", "B"), "depth": ("20", "56")}
    found = study(factors, scatter, diverged=[f"shortcut=none depth=56/{seed}" for seed in range(5)])
    verdict, text = answer(found)
    assert verdict == "matters"
    assert "none fails to train in 5 of 10 runs, A in 0 of 10" in text
    assert "ll failures of none and A are at depth=56" in text


def test_a_baseline_that_never_trains_is_an_answer() -> None:
    verdict, text = answer(study({"shortcut": ("none", "A", "B")}, scatter, diverged=[f"shortcut=A/{seed}" for seed in range(5)]))
    assert verdict == "matters"
    assert text.count("A in 5 of 5") == 2


def test_one_seed_that_failed_to_train_is_named() -> None:
    found = study(SHORTCUTS, lambda levels, seed: 60.0 if (levels["shortcut"], seed) == ("none", 2) else scatter(levels, seed))
    verdict, text = answer(found)
    assert verdict == "no difference shown"
    assert "none fails to train in 1 of 5 runs" in text
    assert "the median difference is" in text
    assert [(each.seed, each.value) for each in found.cells[0].failed_to_train] == [(2, 60.0)]


@pytest.mark.parametrize("still", ["none", "A"])
def test_the_interval_of_a_difference_is_that_of_the_t_distribution(still: str) -> None:
    """It may leave a level outside of what the metric can be: the reference's true mean is not known either."""
    spread = (14.0, 34.0, 54.0)
    found = study(SHORTCUTS, lambda levels, seed: 1.5 if levels["shortcut"] == still else spread[seed], seeds=3)
    difference = found.comparisons[0].difference
    half = 4.302653 * 20 / 3**0.5
    assert (difference.mean, difference.low, difference.high) == pytest.approx(
        (mean := 32.5 if still == "A" else -32.5, mean - half, mean + half), rel=1e-5
    )


def test_the_interval_of_a_difference_ends_where_no_two_values_differ_by_more() -> None:
    found = study(SHORTCUTS, lambda levels, seed: (10.0, 50.0, 95.0)[seed] if levels["shortcut"] == "none" else 1.5, seeds=3)
    assert found.comparisons[0].difference.high == 100


def test_one_image_in_ten_of_ten_seeds_matters_and_one_to_two_in_five_do_not() -> None:
    def one_more(levels: Mapping[str, str], seed: int) -> float:
        return scatter({"shortcut": "A"}, seed) + IMAGE * (levels["shortcut"] == "none")

    assert answer(study(SHORTCUTS, one_more, seeds=10))[0] == "matters"
    few = study(SHORTCUTS, lambda levels, seed: one_more(levels, seed) + IMAGE * (levels["shortcut"] == "none") * (seed == 0))
    assert answer(few)[0] == "no difference shown"


def test_a_mean_difference_of_zero_has_no_sign() -> None:
    errors = {"none": (0, 7, 11), "A": (5, 6, 7)}
    _, text = answer(study(SHORTCUTS, lambda levels, seed: IMAGE * errors[levels["shortcut"]][seed], seeds=3))
    assert "gives 0.00 points" in text


def test_intervals_of_errors_are_within_what_an_error_can_be() -> None:
    found = study(SHORTCUTS, lambda levels, seed: IMAGE * (seed if levels["shortcut"] == "A" else 360 - seed), seeds=3)
    assert found.cells[1].value.low == 0
    assert found.cells[0].value.high == 100
    assert (found.comparisons[0].difference.high or 0) <= 100


def test_missing_runs_in_three_cells_leave_each_effect_the_seeds_that_its_combinations_have() -> None:
    factors = {"shortcut": ("none", "A", "B", "C"), "depth": ("20", "56")}
    missing = ["shortcut=none depth=20/0", "shortcut=B depth=56/1", "shortcut=A depth=56/3"]
    found = study(factors, scatter, missing=missing)
    assert {(each.level, each.difference.n) for each in found.effects} == {("none", 4), ("B", 3), ("C", 4), ("56", 4)}
    assert "runs without a value" in answer(found, "depth")[1].lower()


def test_an_interaction_of_cells_in_which_runs_diverged_is_no_claim() -> None:
    def truth(levels: Mapping[str, str], seed: int) -> float:
        return 8 + IMAGE * (seed % 3) - 2 * (levels == {"shortcut": "none", "depth": "56"})

    factors = {"shortcut": ("none", "A"), "depth": ("20", "56")}
    diverged = [f"shortcut=none depth=56/{seed}" for seed in (0, 1)]
    assert answer(study(factors, truth, seeds=6))[0] == "matters"
    verdict, text = answer(study(factors, truth, seeds=6, diverged=diverged))
    assert verdict == "may matter"
    assert "lowers" not in text
    assert "the effect depends on" not in text


def test_a_shown_effect_within_the_margin_is_said_to_be_within_it() -> None:
    def one_more(levels: Mapping[str, str], seed: int) -> float:
        return scatter({"shortcut": "A"}, seed) + IMAGE * (levels["shortcut"] == "none")

    verdict, text = answer(study(SHORTCUTS, one_more, seeds=10, margin=2.0))
    assert verdict == "matters"
    assert "the difference of none is within the margin of ±2.00 points" in text


def test_failures_are_those_of_the_looks_taken() -> None:
    found = study(SHORTCUTS, scatter, seeds=8, diverged=[f"shortcut=none/{seed}" for seed in range(6)], planned_seeds=80)
    assert found.effects[0].failures is not None
    assert found.effects[0].failures.p == pytest.approx(100 * 0.006993, rel=1e-3)
    assert answer(found)[0] != "matters"


def test_one_image_in_every_seed_has_the_exact_test_where_a_t_interval_would_hold_zero() -> None:
    levels = tuple("abcdefgh")

    def truth(chosen: Mapping[str, str], seed: int) -> float:
        return scatter({"shortcut": "A"}, seed) + IMAGE * (chosen["shortcut"] == "b")

    found = study({"shortcut": levels}, truth, seeds=12, baseline={"shortcut": "a"})
    verdict, text = answer(found)
    assert verdict == "matters"
    assert "b instead of a raises the test error by 0.28 points (" in text
    assert not re.search(r"by 0\.28 points \((?:adjusted )?95 % CI −", text)


def test_a_margin_earns_no_effect_and_its_absence_does_not() -> None:
    def truth(levels: Mapping[str, str], seed: int) -> float:
        return scatter({"shortcut": "A"}, seed) + IMAGE * round(float(np.random.default_rng([seed, 9]).normal(0, 0.5))) * (
            levels["shortcut"] == "none"
        )

    assert answer(study(SHORTCUTS, truth, seeds=12))[0] == "no difference shown"
    assert answer(study(SHORTCUTS, truth, seeds=12, margin=0.5))[0] == "no effect within margin"
    assert answer(study(SHORTCUTS, truth, seeds=3, margin=0.1))[0] == "no difference shown"


@pytest.mark.parametrize("dataset", ["synthetic", "digits"])
def test_generated_images_are_a_caveat(dataset: str) -> None:
    flags = study(SHORTCUTS, scatter, dataset=dataset).flags
    assert any(flag.startswith("The images are generated") for flag in flags) == (dataset == "synthetic")
