"""Effects of designs other than factorial: what each compares, and that a screening finds what the whole grid finds."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from ablations.engine.analysis.findings import Findings
from ablations.engine.analysis.study_analysis import analyze_study
from tests.helpers.synthetic_study import design, evidence, without

TRICKS = dict.fromkeys("abcdefgh", ("False", "True"))
TRUE_EFFECTS = {"a": -2.0, "b": 1.0, "c": -0.5, "e": 0.3}


def response(levels: Mapping[str, str], seed: int) -> float:
    """Return an error with four main effects, one interaction, and noise between runs."""
    on = {name for name, level in levels.items() if level == "True"}
    noise = np.random.default_rng([seed, *(ord(name) for name in sorted(on))]).normal(0, 0.15)
    return 20 + sum(size for name, size in TRUE_EFFECTS.items() if name in on) + 0.6 * ({"f", "g"} <= on) + noise + 0.2 * seed


def found(kind: str, seeds: int = 5, **more: object) -> Findings:
    return analyze_study(evidence(design(TRICKS, seeds=seeds, kind=kind, **more), response, epochs=1))  # type: ignore[arg-type]


def test_a_screening_has_the_main_effects_of_the_factorial_design() -> None:
    screened, whole = found("screening", seeds=10), found("factorial", seeds=2)
    assert len(screened.cells) == 16
    assert len(whole.cells) == 256
    off = []
    for part, full in zip(screened.effects, whole.effects, strict=True):
        assert part.difference.mean is not None
        assert part.difference.se
        assert full.difference.mean is not None
        off.append(abs(part.difference.mean - full.difference.mean) / part.difference.se)
    assert max(off) < stats.t.isf(0.05 / 8 / 2, 9)  # the 95 % intervals of all eight together hold the whole grid's effects
    verdicts = {each.factor: each.verdict for each in screened.answers}
    assert {name for name, verdict in verdicts.items() if verdict == "matters"} == {"a", "b", "c", "e", "f", "g"}


def test_a_screening_says_which_interactions_it_adds_up() -> None:
    screened = found("screening")
    assert screened.screening is not None
    assert (screened.screening.resolution, screened.screening.full_cells) == (4, 256)
    sums = [each for each in screened.screening.contrasts if len(each.terms) > 1]
    (largest,) = (each for each in sums if any(term.removeprefix("−") == "f × g" for term in each.terms))
    assert largest is max(sums, key=lambda each: abs(each.difference.mean or 0))
    assert abs(largest.difference.mean or 0) == pytest.approx(0.3, abs=0.1)
    assert all(each.difference.p is None for each in sums)
    assert not screened.comparisons
    assert screened.no_anova == "the design is screening, and only a factorial one separates all interactions"


def test_a_screening_of_resolution_iii_names_the_aliases_of_each_effect() -> None:
    factors = dict.fromkeys("abcdefg", ("False", "True"))
    few = analyze_study(evidence(design(factors, seeds=5, kind="screening-iii"), response, epochs=1))
    assert len(few.cells) == 8
    text = few.answers[0].text
    assert text.startswith("a matters: averaged over the other 6 factors, True instead of False lowers the test error by ")
    assert "This is the effect of a plus those of " in text
    assert text.count(" × ") == 3


def test_a_screening_without_one_of_its_cells_has_no_effects() -> None:
    made = design(TRICKS, seeds=3, kind="screening")
    given = evidence(made, response, epochs=1)
    for run in made.cells[5].fingerprints:
        given = without(given, run, "diverged")
    findings = analyze_study(given)
    assert all(each.difference.n == 0 for each in findings.effects)
    assert {each.verdict for each in findings.answers} == {"cannot be said"}


def test_failures_in_a_screening_are_counted_over_all_cells() -> None:
    made = replace(design(TRICKS, seeds=3, kind="screening"), chance=90.0)
    given = evidence(made, lambda levels, seed: 90.0 if levels["d"] == "True" else response(levels, seed), epochs=1)
    answer = next(each for each in analyze_study(given).answers if each.factor == "d")
    assert answer.verdict == "matters"
    assert "True fails to train in 24 of 24 runs, False in 0 of 24" in answer.text


def test_one_factor_at_a_time_is_compared_with_the_baseline() -> None:
    single = found("one-at-a-time", baseline=dict.fromkeys(TRICKS, "True"))
    assert len(single.cells) == 9
    assert [each.combinations for each in single.effects] == [1] * 8
    text = single.answers[0].text
    assert text.startswith("a matters: with all other factors at the baseline, False instead of True raises the test error by 2")
    assert {each.baseline for each in single.comparisons} == {" ".join(f"{name}=True" for name in TRICKS)}
    assert single.interactions == ()
    assert single.tests == 8


def test_a_ladder_compares_each_rung_with_the_one_below_and_the_last_with_the_first() -> None:
    climbed = found("ladder", baseline=dict.fromkeys(TRICKS, "False"))
    assert climbed.ladder is not None
    assert [each.change for each in climbed.ladder.rungs] == ["", *(f"{name}=True" for name in TRICKS)]
    assert climbed.ladder.rungs[0].step is None
    steps = [each.step.mean or 0 for each in climbed.ladder.rungs if each.step]
    assert climbed.ladder.total.mean == pytest.approx(sum(steps))
    assert [each.difference.mean for each in climbed.effects] == pytest.approx(steps)
    assert climbed.tests == 9
    assert climbed.answers[0].text.startswith("a matters: added to the rung below, True instead of False lowers")
    assert climbed.ladder.text.startswith("All 8 changes together lower the test error by ")


def test_a_part_of_a_ladder_compares_only_neighbors() -> None:
    made = design(TRICKS, seeds=4, kind="ladder", baseline=dict.fromkeys(TRICKS, "False"))
    part = replace(made, cells=(*made.cells[:3], *made.cells[4:]))
    climbed = analyze_study(evidence(part, response, epochs=1))
    assert climbed.ladder is None
    assert [each.factor for each in climbed.effects] == list("abefgh")


def test_a_ladder_of_three_levels_steps_from_level_to_level() -> None:
    factors = {"depth": ("20", "32", "56"), "shortcut": ("A", "B")}
    climbed = analyze_study(evidence(design(factors, seeds=4, kind="ladder"), epochs=1))
    assert [(each.reference, each.level) for each in climbed.effects] == [("20", "32"), ("32", "56"), ("A", "B")]
