"""The verdict on a factor in each case, and that its sentences never claim more than the numbers."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ablations.engine.analysis.findings import Answer, CellFinding, Comparison, Effect, Interaction, SimpleEffect
from ablations.engine.analysis.statistics.contrasts import reference_levels
from ablations.engine.analysis.statistics.estimate import Estimate, FailureTest
from ablations.engine.analysis.statistics.failures import find_failures
from ablations.engine.analysis.statistics.family import Family
from ablations.engine.analysis.statistics.inference import Array, Scale, zero_tolerance
from ablations.engine.analysis.study_analysis import analyze_study
from ablations.engine.analysis.verdicts.conclusions import FactorEvidence, conclude_factor
from ablations.engine.study.design import Design
from tests.helpers.synthetic_study import FORMATS, TEST_ERROR, design, evidence

ESTIMATE = Estimate(n=5, mean=0.28, std=0.6, low=-0.57, high=1.12, p=0.41, p_adjusted=0.82)
NUMBER = re.compile(r"[+−]?\d+\.\d+")


def significant(mean: float, half: float) -> Estimate:
    return Estimate(n=5, mean=mean, std=1, low=mean - half, high=mean + half, p=0.001, p_adjusted=0.002)


def effect(
    difference: Estimate, level: str = "none", reference: str = "A", factor: str = "shortcut", combinations: int = 2
) -> Effect:
    return Effect(factor=factor, level=level, reference=reference, difference=difference, combinations=combinations)


def simple(difference: Estimate, at: str, level: str = "none") -> SimpleEffect:
    return SimpleEffect(factor="shortcut", level=level, reference="A", at=at, difference=difference)


def interaction(difference: Estimate, level: str = "none") -> Interaction:
    return Interaction(factors=("shortcut", "depth"), levels=(level, "56"), references=("A", "20"), difference=difference)


def cell(label: str = "shortcut=none depth=56", planned: int = 5, **problems: int) -> CellFinding:
    completed = Estimate(n=planned - sum(problems.values()))
    return CellFinding(
        label=label,
        levels={},
        planned=planned,
        value=completed,
        train_value=completed,
        problems=problems,
        reasons=(),
        parameters=None,
        flops=None,
        images_per_second=None,
        peak_memory_mb=None,
        seconds=None,
        gpu_hours=None,
    )


def answered(
    own: Sequence[Effect],
    depends: Sequence[Interaction] = (),
    apart: Sequence[SimpleEffect] = (),
    cells: Sequence[CellFinding] = (),
    factor: str = "shortcut",
    margin: float | None = None,
) -> Answer:
    found = FactorEvidence(
        effects=own, interactions=depends, simple=apart, others=["depth"], cells=cells or [cell()], tests=17, margin=margin
    )
    return conclude_factor(factor, found, FORMATS)


def numbers(text: str) -> list[str]:
    """Return the decimal numbers of a text, with their signs."""
    return NUMBER.findall(text)


def failures(
    failed: int, reference_failed: int = 0, p_adjusted: float | None = None, without_value: int | None = None
) -> FailureTest:
    counts = {"failed": failed, "runs": 5, "reference_failed": reference_failed, "reference_runs": 5}
    lost = failed + reference_failed if without_value is None else without_value
    return FailureTest(**counts, without_value=lost, p=0.01, least_p=0.01, p_adjusted=p_adjusted)


def test_a_certain_effect_matters() -> None:
    found = answered([effect(significant(46.51, 7.1))])
    assert found.verdict == "matters"
    assert numbers(found.text) == ["46.51", "+39.41", "+53.61"]
    assert numbers(answered([effect(significant(-1.2, 0.7))]).text) == ["1.20", "−1.90", "−0.50"]


def test_the_interval_of_a_claim_is_that_of_a_selected_difference() -> None:
    chosen = replace(significant(2, 0.5), selected_low=1.1, selected_high=2.9)
    assert numbers(answered([effect(chosen)]).text) == ["2.00", "+1.10", "+2.90"]


def test_a_sentence_says_that_an_interval_is_adjusted_if_that_of_the_table_differs() -> None:
    ordinary = significant(2, 0.5)
    widened = replace(ordinary, selected_low=1.1, selected_high=2.9)
    all_claimed = replace(ordinary, selected_low=ordinary.low, selected_high=ordinary.high)
    assert "(adjusted 95 % CI +1.10 to +2.90)" in answered([effect(widened)]).text
    assert "(adjusted 95 % CI +1.10 to +2.90)" in answered([effect(ordinary)], [interaction(widened)]).text
    for difference in (ordinary, all_claimed, ESTIMATE):
        assert "(95 % CI" in (text := answered([effect(difference)]).text)
        assert "adjusted 95 %" not in text


def test_a_reader_finds_in_the_tables_no_interval_that_is_called_adjusted() -> None:
    findings = analyze_study(evidence())
    tested: list[Effect | Interaction | Comparison] = [*findings.effects, *findings.interactions, *findings.comparisons]
    in_tables = {f"{FORMATS.signed(each.difference.low)} to {FORMATS.signed(each.difference.high)}" for each in tested}
    adjusted = [each for answer in findings.answers for each in re.findall(r"adjusted 95 % CI (\S+ to [^\s)]+)", answer.text)]
    assert adjusted
    assert not in_tables & {*adjusted}


def test_an_effect_that_depends_on_a_factor_but_is_shown_at_no_level_of_it_says_so_first() -> None:
    apart = [simple(replace(ESTIMATE, mean=-0.4, low=-1.1, high=0.3), "depth=20"), simple(ESTIMATE, "depth=56")]
    found = answered([effect(ESTIMATE)], [interaction(significant(0.68, 0.3))], apart)
    assert found.verdict == "matters"
    assert "the effect depends on depth, although no level of depth shows one by itself: the difference between" in found.text
    shown = [simple(significant(2, 0.5), "depth=20"), *apart[1:]]
    assert "although" not in answered([effect(ESTIMATE)], [interaction(significant(0.68, 0.3))], shown).text


def test_an_effect_that_chance_can_give_among_so_many_tests_only_may() -> None:
    possible = Estimate(n=5, mean=0.8, std=0.5, low=0.1, high=1.5, p=0.02, p_adjusted=0.12)
    found = answered([effect(possible), effect(ESTIMATE, "B")])
    assert found.verdict == "may matter"
    assert numbers(found.text)[:4] == ["+0.80", "+0.10", "+1.50", "0.12"]
    assert "17 tests" in found.text
    assert "raises" not in found.text


def test_an_interval_with_zero_shows_no_difference_and_says_which_are_compatible() -> None:
    found = answered([effect(ESTIMATE, "B", combinations=1)])
    assert found.verdict == "no difference shown"
    assert numbers(found.text) == ["+0.28", "−0.57", "+1.12", "−0.57", "+1.12"]
    assert "no effect" not in found.text


@pytest.mark.parametrize(
    ("difference", "shown"),
    [
        (Estimate(n=0), []),
        (Estimate(n=1, mean=0.3), ["+0.30"]),
        (Estimate(n=2, mean=0.3, std=0.1, low=-0.6, high=1.2), ["+0.30", "−0.60", "+1.20"]),
        (Estimate(n=2, mean=0.3, std=0.0), ["+0.30"]),
    ],
)
def test_a_difference_without_a_test_cannot_be_said_yet(difference: Estimate, shown: list[str]) -> None:
    found = answered([effect(difference)], cells=[cell(planned=difference.n)])
    assert found.verdict == "cannot be said"
    assert numbers(found.text) == shown
    assert difference.n == 0 or re.search(rf"\b{difference.n} seeds?\b", found.text)


def test_one_level_that_cannot_be_told_keeps_the_answer_open() -> None:
    assert answered([effect(ESTIMATE, "B"), effect(Estimate(n=1, mean=0.1))]).verdict == "cannot be said"
    assert answered([effect(significant(2, 1), "B"), effect(Estimate(n=1, mean=0.1))]).verdict == "matters"


def test_errors_that_are_the_same_in_all_seeds_show_no_difference() -> None:
    found = answered([effect(Estimate(n=3, mean=0.0, std=0.0), combinations=1)], cells=[cell(planned=3)])
    assert found.verdict == "no difference shown"
    assert "3 seeds" in found.text
    assert numbers(found.text) == []


def test_no_effect_is_said_only_within_a_margin_and_of_all_levels() -> None:
    small = Estimate(n=8, mean=0.05, std=0.2, low=-0.1, high=0.2, p=0.5, p_adjusted=1.0)
    within, not_within = (effect(small, "B"), effect(small, "C"))
    within, also = replace(within, p_within_margin=0.01), replace(not_within, p_within_margin=0.03)
    found = answered([within, also], margin=0.5)
    assert found.verdict == "no effect within margin"
    assert found.text.startswith("On average over depth, shortcut has no effect larger than 0.50 points: ")
    assert "two one-sided tests" in found.text
    for open_ in (replace(also, p_within_margin=0.2), replace(also, p_within_margin=None)):
        other = answered([within, open_], margin=0.5)
        assert other.verdict == "no difference shown"
        assert "within ±0.50 points is not shown" in other.text


def test_an_effect_that_depends_on_another_factor_is_told_at_its_levels() -> None:
    found = answered(
        [effect(significant(23.4, 3.5))],
        [interaction(significant(46.2, 7))],
        [simple(ESTIMATE, "depth=20"), simple(significant(46.5, 7.1), "depth=56")],
    )
    average, by_depth = found.text.split(". ")
    assert numbers(average) == ["23.40", "+19.90", "+26.90"]
    assert numbers(by_depth) == ["+46.20", "+39.20", "+53.20", "46.50", "+39.40", "+53.60", "+0.28", "−0.57", "+1.12"]
    assert by_depth.index("at depth=56") < by_depth.index("at depth=20")


def test_opposite_effects_that_cancel_on_average_matter_where_they_are_certain() -> None:
    found = answered(
        [effect(ESTIMATE)],
        [interaction(significant(4, 1))],
        [simple(significant(-2, 0.5), "depth=20"), simple(significant(2.1, 0.5), "depth=56")],
    )
    assert found.verdict == "matters"
    by_depth, average = found.text.split(". ")
    assert re.search(r"depth=56.*raises.*2\.10.*depth=20.*lowers.*2\.00", by_depth)
    assert "no difference shown" in average


def test_a_certain_interaction_alone_matters_since_an_effect_somewhere_must() -> None:
    found = answered(
        [effect(ESTIMATE)], [interaction(significant(4, 1))], [simple(ESTIMATE, "depth=20"), simple(ESTIMATE, "depth=56")]
    )
    assert found.verdict == "matters"
    assert "raises" not in found.text
    assert "changes by +4.00 points" in found.text


def test_one_combination_that_is_not_certain_in_the_whole_family_may_matter() -> None:
    barely = Estimate(n=5, mean=-0.52, std=0.3, low=-0.9, high=-0.1, p=0.006, p_adjusted=1.0)
    apart = [simple(barely, "depth=56"), *(simple(ESTIMATE, f"depth={i}") for i in (20, 32, 44, 50, 62))]
    found = answered([effect(ESTIMATE)], apart=apart)
    assert found.verdict == "may matter"
    assert "one of 6 combinations" in found.text
    assert "may lower the test error" in found.text
    assert "lowers" not in found.text


def test_effects_whose_intervals_have_nothing_in_common_are_told_apart_from_their_average() -> None:
    apart = [simple(significant(4, 1), "depth=20"), simple(significant(9, 1), "depth=56")]
    assert "At depth=56" in answered([effect(significant(6.5, 1))], apart=apart).text
    apart = [simple(significant(6, 1), "depth=20"), simple(significant(7, 1), "depth=56")]
    assert "At depth" not in answered([effect(significant(6.5, 1))], apart=apart).text


def test_failing_more_often_matters_and_is_said_before_the_difference() -> None:
    found = answered([replace(effect(Estimate(n=0)), failures=failures(5, p_adjusted=0.02))])
    assert found.verdict == "matters"
    assert "none fails to train in 5 of 5 runs, A in 0 of 5" in found.text
    some = replace(effect(significant(2, 1)), failures=failures(2), at_chance=37.0)
    found = answered([some])
    assert found.verdict == "matters"
    assert re.search(r"2 of 5 runs.*of the seeds in which both trained, none instead of A raises.*\+37\.00 points", found.text)


def test_survivors_of_a_level_that_fails_more_often_are_not_better() -> None:
    found = answered([replace(effect(significant(-0.65, 0.2)), failures=failures(2), at_chance=34.7)])
    assert found.verdict == "may matter"
    assert "lowers" not in found.text
    assert "of the seeds in which both trained, none instead of A gives −0.65 points" in found.text
    assert "+34.70 points" in found.text
    # Where the other level fails more often, the difference stands.
    assert answered([replace(effect(significant(-0.65, 0.2)), failures=failures(0, 2))]).verdict == "matters"


def test_a_completed_run_that_failed_to_train_is_in_the_mean_and_the_median_stands_beside_it() -> None:
    found = answered([replace(effect(ESTIMATE), failures=failures(1, without_value=0), median=0.05)])
    assert "in which both trained" not in found.text
    assert "the median difference is +0.05 points" in found.text


def test_runs_without_a_value_are_named() -> None:
    cells = [cell(f"depth={i}", diverged=1, missing=2) for i in range(5)]
    found = answered([effect(significant(2, 1)), effect(ESTIMATE, "B")], cells=cells)
    assert "depth=0 (1 of 5 diverged, 2 of 5 missing), depth=1" in found.text
    assert "2 more cells" in found.text


def test_an_average_over_fewer_combinations_says_so() -> None:
    found = answered([replace(effect(significant(2, 1)), combinations=1, of_combinations=3, place="depth=20")])
    assert "none instead of A (only at depth=20)" in found.text


def test_numbers_go_from_one_to_the_other() -> None:
    found = answered([effect(significant(9.2, 1), "56", "20", "depth", 1)], factor="depth")
    assert "from 20 to 56" in found.text
    assert numbers(found.text) == ["9.20", "+8.20", "+10.20"]


def test_of_many_levels_the_strongest_are_named_and_the_others_counted() -> None:
    own = [effect(significant(i, 0.1), f"L{i}", combinations=1) for i in range(1, 8)]
    own += [effect(ESTIMATE, f"M{i}") for i in range(4)] + [effect(Estimate(n=0), "missing")]
    text = answered(own).text
    assert re.findall(r"\bL\d", text) == ["L7", "L6", "L5"]
    assert "9 more levels: 4 with an effect, 4 with no difference shown, 1 with no test" in text
    none = answered([effect(Estimate(n=5, mean=i / 10, std=1, low=-1.0, high=2.0, p=0.5, p_adjusted=1), f"L{i}") for i in range(9)])
    assert "6 more levels" in none.text
    assert numbers(none.text)[-2:] == ["−1.00", "+2.00"]


def test_a_level_that_never_meets_its_reference_cannot_be_said() -> None:
    assert answered([]).verdict == "cannot be said"


def test_a_difference_that_is_not_zero_is_never_shown_as_zero() -> None:
    text = answered([effect(Estimate(n=5, mean=0.02, std=0.01, low=0.0012, high=0.04, p=0.01, p_adjusted=0.02))]).text
    assert numbers(text) == ["0.02", "+0.001", "+0.04"]


def of(made: Design, errors: Array) -> tuple[dict[str, Answer], Family]:
    """Answers of the real path from errors on; every cell is complete."""
    failed = find_failures(errors, [["completed"] * errors.shape[1]] * len(errors), TEST_ERROR, None)
    family = Family(design=made, values=errors, failures=failed, scale=Scale(tolerance=zero_tolerance(errors)))
    cells = [cell(each.label, errors.shape[1]) for each in made.cells]
    answers = {}
    for factor in reference_levels(made):
        found = FactorEvidence(
            effects=[each for each in family.effects if each.factor == factor],
            interactions=[each for each in family.interactions if factor in each.factors],
            simple=family.simple_effects(factor),
            others=[name for name in reference_levels(made) if name != factor],
            cells=cells,
            tests=family.tests,
        )
        answers[factor] = conclude_factor(factor, found, FORMATS)
    return answers, family


def errors_of(values: Mapping[tuple[str, str], float], noise: float, seed: int) -> tuple[Design, Array]:
    made = design(seeds=5)
    draw = np.random.default_rng(seed)
    means = [values.get((each.levels["shortcut"], each.levels["depth"]), 0.0) for each in made.cells]
    return made, np.array(means)[:, None] + 8 + draw.normal(0, 1, 5) + draw.normal(0, noise, (len(means), 5))


@pytest.mark.slow
@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    effect_=st.sampled_from([0.0, 0.2, 0.5, 1.0, 5.0]),
    twist=st.sampled_from([-1.0, 0.0, 1.0]),
    noise=st.sampled_from([0.0, 0.1, 0.5, 3.0]),
    lost=st.sampled_from([0, 1, 3, 12]),
    seed=st.integers(0, 10_000),
)
def test_no_answer_says_more_than_its_numbers(effect_: float, twist: float, noise: float, lost: int, seed: int) -> None:
    made, errors = errors_of({("none", "20"): effect_ * twist, ("none", "56"): effect_}, noise, seed)
    errors.flat[np.random.default_rng(seed).choice(errors.size, lost, replace=False)] = math.nan
    answers, family = of(made, errors)
    for factor, found in answers.items():
        apart = family.simple_effects(factor)
        own: list[Effect | SimpleEffect] = [each for each in family.effects if each.factor == factor]
        crossed = [each for each in family.interactions if factor in each.factors]
        sure = [each.difference.mean or 0 for each in [*own, *apart] if each.difference.significant]
        assert ("raises" in found.text) <= any(mean > 0 for mean in sure)
        assert ("lowers" in found.text) <= any(mean < 0 for mean in sure)
        assert ("matters" in found.text) == (found.verdict == "matters")
        assert (found.verdict == "matters") <= (bool(sure) or any(each.difference.significant for each in crossed))
        assert (found.verdict == "no difference shown") <= all(
            each.difference.n >= 3 and not each.difference.significant for each in own
        )
        assert ("depends on" in found.text) <= any(each.difference.significant for each in crossed)
        known = [each.difference for each in [*own, *apart, *crossed]]
        numbers = [
            abs(x)
            for each in known
            for x in (each.mean, each.low, each.high, each.p_adjusted, each.selected_low, each.selected_high)
            if x is not None
        ]
        numbers += [abs(each.median) for each in family.effects if each.median is not None]
        text = re.sub(r"p [=<] [\d.e-]+", "", found.text)
        for shown in NUMBER.findall(text):
            value = float(shown.lstrip("+−"))
            assert any(value == pytest.approx(number, abs=0.0051) for number in numbers), shown


@pytest.mark.slow
def test_of_studies_without_effect_few_say_that_something_matters() -> None:
    """At most 5 % by the bound of the family, with cells that vary differently."""
    made = design(seeds=5)
    draw = np.random.default_rng(0)
    spread = np.array([5.0 if each.levels["shortcut"] == "none" else 0.3 for each in made.cells])[:, None]
    studies = 600
    false_claims = 0
    for _ in range(studies):
        errors = 8 + draw.normal(0, 1, 5) + spread * draw.normal(size=(len(made.cells), 5))
        false_claims += any(found.verdict == "matters" for found in of(made, errors)[0].values())
    assert 0.01 < false_claims / studies < 0.05 + 3 * math.sqrt(0.05 * 0.95 / studies)


@pytest.mark.slow
def test_of_studies_with_a_large_effect_all_say_that_it_matters_and_few_that_another_does() -> None:
    truth = {("none", "20"): 3.0, ("none", "56"): 3.0}
    found = [of(*errors_of(truth, 0.3, seed))[0] for seed in range(200)]
    assert all(each["shortcut"].verdict == "matters" for each in found)
    assert np.mean([each["depth"].verdict == "matters" for each in found]) < 0.06 + 3 * math.sqrt(0.06 * 0.94 / 200)
