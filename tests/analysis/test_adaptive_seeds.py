"""Adaptive seeds: the path, its tests, and its rates in simulation."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pytest

from ablations.engine.analysis.seed_path import cut_to
from ablations.engine.analysis.statistics.adaptive import Path, follow_looks
from ablations.engine.analysis.statistics.failures import find_failures
from ablations.engine.analysis.statistics.family import Family
from ablations.engine.analysis.statistics.inference import Array, Scale, paired_tests
from ablations.engine.analysis.statistics.looks import declared_shares
from ablations.engine.analysis.statistics.sequential import LookScale, estimate_over_looks
from ablations.engine.study.design import Design
from tests.helpers.synthetic_study import TEST_ERROR, design

LOOKS = (3, 5, 8, 12)


def adaptive(levels: int, looks: Sequence[int] = LOOKS, **more: object) -> Design:
    """Return an adaptive study of one factor `a`, whose level 0 is the reference."""
    made = design({"a": tuple(map(str, range(levels)))}, {"a": "0"}, seeds=looks[-1])
    return replace(made, seed_looks=tuple(looks), planned_seeds=looks[-1], **more)  # type: ignore[arg-type]


def completed(values: Array) -> list[list[str]]:
    return [["completed"] * values.shape[1]] * len(values)


def path_of(made: Design, values: Array, outcomes: Sequence[Sequence[str]] | None = None) -> Path:
    return follow_looks(made, values, outcomes or completed(values), declared_shares(made, ()))


def family_on(made: Design, values: Array, path: Path) -> Family:
    """Return the family of tests with the runs of a path."""
    within = np.arange(values.shape[1]) < np.array(path.seeds)[:, None]
    kept, outcomes = np.where(within, values, np.nan), np.where(within, "completed", "").tolist()
    failures, scale = find_failures(kept, outcomes, TEST_ERROR, made.chance), Scale(step=made.step)
    return Family(design=cut_to(made, path.seeds), values=kept, failures=failures, scale=scale, looks=declared_shares(made, ()))


def decisions(path: Path) -> dict[str, tuple[int, str]]:
    """Return the look and the kind of each decision, by level."""
    return {contrast.levels[0]: (look.seeds, how) for look in path.looks for contrast, how in look.decided}


def clear_null_and_close() -> Array:
    """Return values of four levels: the reference, one that is clearly worse, an equal one, and one that is slightly worse."""
    values = 8 + np.random.default_rng(4).normal(0, 0.1, (4, 12))
    values[1] += 3
    values[3] += 0.15
    return values


def test_cells_of_decided_comparisons_get_no_more_seeds() -> None:
    path = path_of(adaptive(4), clear_null_and_close())
    found = decisions(path)
    assert found["1"] == (5, "effect")
    assert found["2"][1] == "hopeless"
    assert path.finished
    assert path.seeds[1] == 5
    assert path.seeds[2] == found["2"][0] < 12
    assert path.seeds[0] == path.seeds[3] == max(path.seeds)  # the baseline goes on with the last comparison
    assert [look.cells for look in path.looks] == [sum(n >= look.seeds for n in path.seeds) for look in path.looks]


def test_a_margin_ends_comparisons_that_are_within_it() -> None:
    values = 8 + np.random.default_rng(0).normal(0, 0.1, (2, 12))
    assert decisions(path_of(adaptive(2, margin=1.0), values)) == {"1": (5, "within margin")}
    assert path_of(adaptive(2), values).seeds[1] > 5


@pytest.mark.slow
def test_the_path_waits_for_results_and_needs_no_run_that_the_whole_path_does_not() -> None:
    """With any part of the results, the needed seeds are at most those of the whole path, and it is never stuck."""
    draw = np.random.default_rng(7)
    for _ in range(6):
        made = adaptive(4, margin=0.4 if draw.random() < 0.5 else None)
        values = 8 + draw.normal(0, 0.3, (4, 12)) + draw.choice([0.0, 0.3, 2.0], 4)[:, None]
        whole = path_of(made, values)
        there = np.zeros(values.shape, bool)
        while not (path := path_of(made, np.where(there, values, np.nan), np.where(there, "completed", "").tolist())).finished:
            assert all(n <= most for n, most in zip(path.seeds, whole.seeds, strict=True))
            assert all(n <= most for n, most in zip(whole.seeds, path.most_seeds, strict=True))
            missing = np.argwhere((np.arange(12) < np.array(path.seeds)[:, None]) & ~there)
            assert len(missing), "nothing to wait for, and not finished"
            there[tuple(draw.permutation(missing)[: draw.integers(1, 5)].T)] = True
        assert path == whole


def test_a_comparison_that_no_other_can_decide_goes_on_at_once() -> None:
    values, there = clear_null_and_close(), np.zeros((4, 12), bool)
    there[[0, 3], :3] = True  # level 1 and 2 have no results yet
    path = path_of(adaptive(4), np.where(there, values, np.nan), np.where(there, "completed", "").tolist())
    assert path.seeds == (5, 3, 3, 5)
    assert not path.looks
    assert math.isfinite(path.distances[3])
    assert math.isinf(path.distances[2])


def test_runs_without_a_value_are_results_and_missing_ones_are_not() -> None:
    values = clear_null_and_close()
    values[1] = np.nan
    outcomes = completed(values)
    for outcome in ("oom", "failed"):
        outcomes[1] = [outcome] * 12
        path = path_of(adaptive(4), values, outcomes)
        assert path.finished
        assert decisions(path)["1"] == (3, "hopeless")  # no value, no failure to train: nothing to learn
    outcomes[1] = ["diverged"] * 12
    assert decisions(path_of(adaptive(4, chance=90.0), values, outcomes))["1"] == (8, "effect")
    outcomes[1] = ["", *["diverged"] * 11]
    assert not path_of(adaptive(4), values, outcomes).finished


def test_the_sequential_p_value_is_the_least_of_p_over_share_and_agrees_with_the_interval() -> None:
    made, draw = adaptive(2), np.random.default_rng(2)
    shares = declared_shares(made, ())
    assert sum(shares.values()) == pytest.approx(1)
    for _ in range(20):
        values = 8 + draw.normal(0, 0.3, (2, 12)) + np.array([[0], [0.3]])
        path = path_of(made, values)
        (effect,) = family_on(made, values, path).effects
        difference = effect.difference
        looks = {n: paired_tests([values[1, :n] - values[0, :n]])[0] for n in LOOKS if n <= path.seeds[1]}
        expected = min(1.0, *((each.p or 1.0) / shares[n] for n, each in looks.items()))
        assert difference.p == pytest.approx(expected)
        assert difference.low is not None
        assert difference.high is not None
        assert difference.p is not None
        assert (difference.p < 0.05) == (difference.low * difference.high > 0)
        assert difference.mean == pytest.approx(looks[difference.n].mean)
        assert difference.p < 0.05 or difference.n == path.seeds[1]


def test_a_difference_that_fades_is_shown_at_the_look_that_found_it() -> None:
    """Its cells may have had more seeds because of other comparisons; what was found then stays found."""
    looks = [LookScale(seeds=n, scale=Scale(share=share)) for n, share in declared_shares(adaptive(2), ()).items()]
    differences = np.array([1.0, 1.1, 0.9, 1.0, 1.05, -3, 2.0, -2.5, 1, -4, 3, -1])
    found = estimate_over_looks([differences], looks, None)
    assert (found.shown.seeds, found.last.seeds, found.estimate.n) == (5, 12, 5)
    assert found.latest.p == 1
    early, late = (paired_tests([differences[:n]])[0] for n in (5, 12))
    assert found.estimate.p == pytest.approx((early.p or 0) / looks[1].scale.share)
    assert late.p is not None
    assert late.p > 0.5
    faint = estimate_over_looks([differences * np.where(np.arange(12) % 2, -1, 1)], looks, None)
    assert (faint.shown.seeds, faint.estimate.n) == (12, 12), "nothing was found, so the last look is shown"


def test_a_look_that_was_not_declared_has_its_share_as_well() -> None:
    made = adaptive(2)
    assert declared_shares(made, (4,))[5] == pytest.approx((5**2 - 4**2) / 144)
    assert declared_shares(replace(made, planned_seeds=3), (3,))[5] < 0.1  # the plan was spent at 3 seeds


class Rates(NamedTuple):
    """Findings of simulated studies."""

    anything: float
    """Share of studies that claim any difference."""
    effects: Array
    """Share of studies in which each level has an effect."""
    within: Array
    """Share of studies in which each level is within the margin."""
    runs: float
    """Number of runs, as a fraction of those with 12 seeds in all cells."""


def simulate(made: Design, draw: Callable[[np.random.Generator], Array], studies: int, seed: int = 0) -> Rates:
    """Return the rates over the whole procedure. `draw` returns the values of a study."""
    generator, anything, found, within, runs = np.random.default_rng(seed), 0, [], [], 0
    for _ in range(studies):
        values = draw(generator)
        path = path_of(made, values)
        family = family_on(made, values, path)
        every = [each.difference for each in family.effects] + [each.difference for each in family.interactions]
        every += [each.difference for factor in made.factors for each in family.simple_effects(factor)]
        anything += any(each.significant for each in every)
        found.append([each.difference.significant for each in family.effects])
        within.append([(each.p_within_margin or 1.0) < 0.05 for each in family.effects])
        runs += sum(path.seeds)
    return Rates(anything / studies, np.mean(found, axis=0), np.mean(within, axis=0), runs / studies / (12 * len(made.cells)))


def normal(*means: float, std: float | Sequence[float] = 0.3, seeds: int = 12) -> Callable[[np.random.Generator], Array]:
    """Return a function that draws values of cells with these means above 8."""
    spreads = np.broadcast_to(np.asarray(std, float), (len(means),))
    return lambda draw: 8 + np.array(means)[:, None] + spreads[:, None] * draw.normal(size=(len(means), seeds))


def errors_on_images(draw: np.random.Generator) -> Array:
    return draw.binomial(360, 0.016, (4, 12)) / 3.6


NULL_STUDIES = {
    "1 comparison": (adaptive(2), normal(0, 0)),
    "3 comparisons": (adaptive(4), normal(0, 0, 0, 0)),
    "6 comparisons": (adaptive(7), normal(*[0.0] * 7)),
    "3 comparisons, margin 0.5": (adaptive(4, margin=0.5), normal(0, 0, 0, 0)),
    "3 comparisons, spread 1 to 10": (adaptive(4), normal(0, 0, 0, 0, std=(0.3, 0.3, 1.0, 3.0))),
    "3 comparisons, 360 images": (adaptive(4, test_examples=360), errors_on_images),
    "2 × 2": (
        replace(design({"a": "01", "b": "01"}, {"a": "0", "b": "0"}, seeds=12), seed_looks=LOOKS, planned_seeds=12),
        normal(0, 0, 0, 0),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["1 comparison", "3 comparisons, margin 0.5", "2 × 2"])
def test_of_null_studies_few_claim_anything(name: str) -> None:
    """Over the whole procedure; of 2,000 each, see docs/evidence.md."""
    studies = 20
    assert simulate(*NULL_STUDIES[name], studies).anything <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / studies)


@pytest.mark.nightly
@pytest.mark.parametrize("name", NULL_STUDIES)
def test_of_null_studies_at_most_five_percent_claim_anything(name: str) -> None:
    studies = 600
    assert simulate(*NULL_STUDIES[name], studies).anything <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / studies)


def within_margin_at_the_margin(studies: int) -> Array:
    """Return how often levels whose effect is exactly the margin are said to be within it."""
    return simulate(adaptive(4, margin=0.5), normal(0, 0.5, 0.5, 0.5, std=0.15), studies).within


@pytest.mark.slow
def test_a_level_at_the_margin_is_seldom_said_to_be_within_it() -> None:
    assert within_margin_at_the_margin(20).max() <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 20)


@pytest.mark.nightly
def test_a_level_at_the_margin_is_said_to_be_within_it_in_at_most_five_percent() -> None:
    assert within_margin_at_the_margin(600).max() <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / 600)


CLEAR, CLOSE = 3.0, 0.9
"""Effects in standard deviations of the paired differences."""
MIX = tuple(effect * 0.3 * math.sqrt(2) for effect in (0, CLEAR, CLEAR, 0, 0, CLOSE, CLOSE))
"""Means of the cells of a study with two clear, two null and two close effects."""


def mixed(looks: Sequence[int], studies: int) -> Rates:
    """Return the rates of studies with clear, null and close effects."""
    return simulate(adaptive(7, looks), normal(*MIX, seeds=looks[-1]), studies)


@pytest.mark.slow
def test_adaptive_seeds_find_clear_effects_with_fewer_runs() -> None:
    found = mixed(LOOKS, 20)
    assert found.effects[:2].min() >= 0.9
    assert found.runs < 0.75


@pytest.mark.nightly
def test_adaptive_seeds_save_a_quarter_of_the_runs_at_equal_power() -> None:
    """3..16 finds nearly as many close effects as 12 fixed seeds, 58 and 60 %, and takes three quarters of their runs."""
    fixed, found = mixed((12,), 400), mixed((3, 5, 8, 12, 16), 400)
    assert found.effects[:2].min() >= 0.99
    assert found.effects[4:].mean() >= fixed.effects[4:].mean() - 0.08
    assert found.runs <= 0.78
