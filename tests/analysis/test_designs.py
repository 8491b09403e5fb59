"""Effects of designs other than factorial: what each compares, and that a screening finds what the whole grid finds."""

import re
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from ablations.engine.analysis.findings import Findings
from ablations.engine.analysis.statistics.inference import Scale, estimate_average
from ablations.engine.analysis.study_analysis import analyze_study
from ablations.engine.analysis.verdicts.expectations import NOT_SHOWN, assess
from ablations.engine.study.expectations import parse_expectations
from tests.helpers.synthetic_study import design, evidence, without

LEVELS = ("False", "True")
TRICKS = dict.fromkeys("abcdefgh", LEVELS)
TRUE_EFFECTS = {"a": -2.0, "b": 1.0, "c": -0.5, "e": 0.3}


def response(levels: Mapping[str, str], seed: int) -> float:
    """Return an error with four main effects, one interaction, and noise between runs."""
    on = {name for name, level in levels.items() if level == "True"}
    noise = np.random.default_rng([seed, *(ord(name) for name in sorted(on))]).normal(0, 0.15)
    return 20 + sum(size for name, size in TRUE_EFFECTS.items() if name in on) + 0.6 * ({"f", "g"} <= on) + noise + 0.2 * seed


def found(kind: str, seeds: int = 5, **more: object) -> Findings:
    return analyze_study(evidence(design(TRICKS, seeds=seeds, kind=kind, **more), response, epochs=1))  # type: ignore[arg-type]


@pytest.mark.slow
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
    given = evidence(design(factors, seeds=5, kind="screening-iii"), response, epochs=1)
    few = analyze_study(given)
    assert len(few.cells) == 8
    text = few.answers[0].text
    assert text.startswith("a may matter: averaged over the other 6 factors, True instead of False lowers the test error by ")
    assert re.search(
        "This is the effect of a ((plus|minus) that of [b-g] × [b-g] ?){3}, which the design does not tell apart", text
    )
    expected = assess(parse_expectations(["a=True better than False"], factors), given, few)
    assert expected[0].verdict == NOT_SHOWN
    assert "a screening of resolution III estimates it together with " in expected[0].text


def test_a_sum_that_is_small_does_not_say_that_its_effects_are() -> None:
    made = replace(design(dict.fromkeys("abcdefg", LEVELS), seeds=5, kind="screening-iii"), margin=5.0)
    findings = analyze_study(evidence(made, lambda levels, seed: 8 + 0.1 * seed, epochs=1))
    assert {each.verdict for each in findings.answers} == {"no difference shown"}


def test_a_screening_without_one_of_its_cells_has_no_effects() -> None:
    made = design(TRICKS, seeds=3, kind="screening")
    given = evidence(made, response, epochs=1)
    for run in made.cells[5].fingerprints:
        given = without(given, run, "diverged")
    findings = analyze_study(given)
    assert all(each.difference.n == 0 for each in findings.effects)
    assert {each.verdict for each in findings.answers} == {"cannot be said"}
    assert f"A screening needs two results of each of its cells, which {made.cells[5].label} lacks." in findings.answers[0].text


def test_a_screening_with_a_missing_run_keeps_its_effects() -> None:
    made = design(TRICKS, seeds=3, kind="screening")
    findings = analyze_study(without(evidence(made, response, epochs=1), made.cells[5].fingerprints[1]))
    assert all(each.difference.p is not None for each in findings.effects)
    assert findings.answers[0].verdict == "matters"


def test_means_of_halves_with_missing_runs_have_intervals_that_hold() -> None:
    rng, held, tests = np.random.default_rng(5), 0, 0
    for _ in range(600):
        values = rng.normal(0, 1, (16, 3)) + rng.normal(0, 0.5, (1, 3))
        values.ravel()[rng.choice(48, 2, replace=False)] = np.nan
        found, _ = estimate_average(values[:8] - values[8:], Scale(), whole=True)
        if found.low is not None and found.high is not None:
            tests, held = tests + 1, held + (found.low <= 0 <= found.high)
    assert tests > 500
    assert 0.92 < held / tests < 0.98


def test_a_part_of_a_screening_has_no_effects() -> None:
    made = design(TRICKS, seeds=5, kind="screening")
    part = analyze_study(evidence(made.restricted_to({"a": ("True",)}, None), response, epochs=1))
    assert part.effects == ()
    assert part.screening is None


def test_failures_in_a_screening_are_counted_over_all_cells() -> None:
    made = replace(design(TRICKS, seeds=3, kind="screening"), chance=90.0)
    given = evidence(made, response, epochs=1)
    for cell in made.cells:
        for run in cell.fingerprints if cell.levels["d"] == "True" else ():
            given = without(given, run, "diverged")
    answer = next(each for each in analyze_study(given).answers if each.factor == "d")
    assert answer.verdict == "may matter"  # three other factors together would give the same cells
    assert "True fails to train in 24 of 24 runs, False in 0 of 24" in answer.text
    assert "Runs fail to train in 8 cells, perhaps because of several levels at once." in answer.text


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
    assert climbed.ladder.text.startswith("The last rung instead of the first lowers the test error by ")


def test_a_ladder_whose_last_rung_fails_is_not_called_better() -> None:
    made = replace(design(TRICKS, seeds=5, kind="ladder"), chance=90.0)
    given = evidence(made, response, epochs=1)
    for run in made.cells[-1].fingerprints[:2]:
        given = without(given, run, "diverged")
    findings = analyze_study(given)
    assert findings.ladder is not None
    assert findings.ladder.text.startswith("The last rung fails to train in 2 of 5 runs, the first in 0 of 5")
    assert "lowers" not in findings.ladder.text


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
