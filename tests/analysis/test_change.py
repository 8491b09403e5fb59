"""A change is kept or discarded only if paired runs show it."""

from collections.abc import Sequence

import numpy as np
import pytest

from ablations.engine.analysis.verdicts.change import ChangeFinding, judge_change
from ablations.engine.task.metric import Metric

ERROR = Metric("test/error", "%", "lower")
ACCURACY = Metric("test/accuracy", "%", "higher")
BASE = (10.0, 11.0, 9.5, 10.2, 10.7, 9.9)


def judged(gains: Sequence[float | None], metric: Metric = ERROR, by: float = 0.0, looks: int = 1) -> ChangeFinding:
    """Return the verdict on a change with these gains; None is a run that failed."""
    sign = 1 if metric is ACCURACY else -1
    base = {seed: [BASE[seed]] for seed in range(len(gains))}
    changed = {seed: [None if gain is None else BASE[seed] + sign * gain] for seed, gain in enumerate(gains)}
    found = judge_change(base, changed, metric, by=by, looks=looks)
    assert found.text.startswith(f"{found.verdict}: ")
    assert "\n" not in found.text
    return found


@pytest.mark.parametrize("metric", [ERROR, ACCURACY])
@pytest.mark.parametrize(
    ("gains", "by", "verdict"),
    [
        ([1.0, 1.2, 0.9], 0, "keep"),
        ([-1.0, -1.2, -0.9], 0, "discard"),
        ([1.0, -1.2, 0.9], 0, "undecided"),
        ([1.0, 1.2, 0.9, 1.1], 0.5, "keep"),
        ([0.1, 0.12, 0.09, 0.11], 0.5, "discard"),  # better, but not worth it
        ([0.4, 0.7, 0.5, 0.6], 0.5, "undecided"),
    ],
)
def test_the_verdict_follows_the_gain_and_its_uncertainty(metric: Metric, gains: list[float], by: float, verdict: str) -> None:
    assert judged(gains, metric, by).verdict == verdict


def test_the_interval_has_the_digits_and_the_minus_sign_of_all_others() -> None:
    assert "is 1.03 points better (95 % CI of the gain +0.65 to +1.41) over 3 seeds" in judged([1.0, 1.2, 0.9]).text
    assert "is 1.03 points worse (95 % CI of the gain −1.41 to −0.65) over 3 seeds" in judged([-1.0, -1.2, -0.9]).text


@pytest.mark.parametrize("gains", [[5.0], [5.0, 5.1]])
def test_one_or_two_pairs_are_never_enough(gains: list[float]) -> None:
    found = judged(gains)
    assert (found.verdict, found.p, found.more_seeds) == ("undecided", None, 3 - len(gains))


def test_runs_that_fail_after_the_change_prevent_a_keep() -> None:
    kept = judged([1.0, 1.2, 0.9, 1.1, 1.0])
    failing = judged([1.0, 1.2, 0.9, 1.1, None])
    assert (kept.verdict, failing.verdict, failing.failures, failing.n) == ("keep", "undecided", 1, 4)
    assert failing.p is not None
    assert failing.p < 0.05
    assert judged([None] * 6).verdict == "discard"
    assert judged([None] * 5).verdict == "undecided"  # p = 0.0625


def test_several_looks_and_equal_differences_are_no_reason_to_keep() -> None:
    gains = [1.0, 0.4, 1.3, 0.8]
    once = judged(gains)
    assert once.p is not None
    assert (once.verdict, judged(gains, looks=5).verdict) == ("keep", "undecided")
    assert judged(gains, looks=5).p == pytest.approx(5 * once.p)
    assert judged([0.0] * 5).verdict == "undecided"


@pytest.mark.slow
def test_the_number_of_further_seeds_gives_the_power_that_it_promises_to_the_next_look() -> None:
    gains = [0.5, -0.3, 0.6, 0.1]
    found = judged(gains)
    assert found.verdict == "undecided"
    assert found.more_seeds is not None
    assert found.gain is not None
    random, std = np.random.default_rng(0), float(np.std(gains, ddof=1))
    kept = 0
    for _ in range(400):
        drawn = random.normal(found.gain, std, found.n + found.more_seeds)
        base = {seed: [0.0] for seed in range(len(drawn))}
        kept += judge_change(base, {seed: [-gain] for seed, gain in enumerate(drawn)}, ERROR, looks=2).verdict == "keep"
    assert 0.74 < kept / 400 < 0.86


def test_cells_are_averaged_within_each_seed() -> None:
    base = {seed: [10.0, 20.0] for seed in range(3)}
    changed = {seed: [9.0 - 0.1 * seed, 18.0 + 0.2 * seed] for seed in range(3)}
    assert judge_change(base, changed, ERROR).gain == pytest.approx((1.5 + 1.45 + 1.4) / 3)
