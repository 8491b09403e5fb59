"""The verdict on a factor in each case, and that its sentences never claim more than the numbers."""

import math
import re
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ablations.engine.analysis.conclusions import conclude_factor
from ablations.engine.analysis.contrasts import SimpleEffect, estimate_effects, estimate_interactions, estimate_simple_effects
from ablations.engine.analysis.findings import Answer, CellFinding, Effect, Estimate, Interaction
from ablations.engine.analysis.inference import Array
from ablations.engine.study.design import Design
from tests.helpers.synthetic_study import FORMATS, design

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
    others: Sequence[Effect] = (),
    depends: Sequence[Interaction] = (),
    apart: Sequence[SimpleEffect] = (),
    cells: Sequence[CellFinding] = (),
) -> Answer:
    return conclude_factor("shortcut", [*own, *others], depends, apart, cells or [cell()], FORMATS)


def numbers(text: str) -> list[str]:
    """Return the decimal numbers of a text, with their signs."""
    return NUMBER.findall(text)


DEPTH = effect(ESTIMATE, "56", "20", "depth")


def test_a_certain_effect_matters() -> None:
    found = answered([effect(significant(46.51, 7.1))], [DEPTH])
    assert found.verdict == "matters"
    assert numbers(found.text) == ["46.51", "+39.41", "+53.61"]
    assert numbers(answered([effect(significant(-1.2, 0.7))]).text) == ["1.20", "−1.90", "−0.50"]


def test_an_effect_that_chance_can_give_among_so_many_comparisons_only_may() -> None:
    possible = Estimate(n=5, mean=0.8, std=0.5, low=0.1, high=1.5, p=0.03, p_adjusted=0.12)
    found = answered([effect(possible), effect(ESTIMATE, "B")], [DEPTH])
    assert found.verdict == "may matter"
    assert numbers(found.text)[:4] == ["+0.80", "+0.10", "+1.50", "0.12"]
    assert "3 comparisons" in found.text


def test_an_interval_with_zero_shows_no_effect_and_says_how_large_one_may_be() -> None:
    found = answered([effect(ESTIMATE, "B", combinations=1)])
    assert found.verdict == "no effect shown"
    assert numbers(found.text) == ["+0.28", "−0.57", "+1.12", "1.12"]


@pytest.mark.parametrize(
    ("difference", "shown"),
    [
        (Estimate(n=0), []),
        (Estimate(n=1, mean=0.3), ["+0.30"]),
        (Estimate(n=2, mean=0.3, std=0.1, low=-0.6, high=1.2), ["+0.30", "−0.60", "+1.20"]),
        (Estimate(n=3, mean=0.3, std=0.0), ["+0.30"]),
    ],
)
def test_a_difference_without_a_test_cannot_be_said_yet(difference: Estimate, shown: list[str]) -> None:
    found = answered([effect(difference)], [DEPTH], cells=[cell(planned=difference.n)])
    assert found.verdict == "cannot be said yet"
    assert numbers(found.text) == shown
    assert difference.n == 0 or re.search(rf"\b{difference.n} seeds?\b", found.text)


def test_one_level_that_cannot_be_told_keeps_the_answer_open() -> None:
    assert answered([effect(ESTIMATE, "B"), effect(Estimate(n=1, mean=0.1))]).verdict == "cannot be said yet"
    assert answered([effect(significant(2, 1), "B"), effect(Estimate(n=1, mean=0.1))]).verdict == "matters"


def test_errors_that_are_the_same_in_all_seeds_show_no_effect() -> None:
    found = answered([effect(Estimate(n=3, mean=0.0, std=0.0), combinations=1)], cells=[cell(planned=3)])
    assert found.verdict == "no effect shown"
    assert "3 seeds" in found.text
    assert numbers(found.text) == []


def test_an_effect_that_depends_on_another_factor_is_told_at_its_levels() -> None:
    found = answered(
        [effect(significant(23.4, 3.5))],
        [DEPTH],
        [interaction(significant(46.2, 7))],
        [simple(ESTIMATE, "depth=20"), simple(significant(46.5, 7.1), "depth=56")],
    )
    average, by_depth = found.text.split(". ")
    assert numbers(average) == ["23.40", "+19.90", "+26.90"]
    assert numbers(by_depth) == ["46.50", "+39.40", "+53.60", "+0.28", "−0.57", "+1.12"]
    assert by_depth.index("depth=56") < by_depth.index("depth=20")


def test_opposite_effects_that_cancel_on_average_matter_where_they_are_certain() -> None:
    found = answered(
        [effect(ESTIMATE)],
        [DEPTH],
        [interaction(significant(4, 1))],
        [simple(significant(-2, 0.5), "depth=20"), simple(significant(2.1, 0.5), "depth=56")],
    )
    assert found.verdict == "matters"
    by_depth, average = found.text.split(". ")
    assert re.search(r"depth=56.*raises.*2\.10.*depth=20.*lowers.*2\.00", by_depth)
    assert "no effect" in average


def test_one_combination_alone_only_may_matter() -> None:
    """Neither on average nor as an interaction: of many combinations one is likelier to be certain by chance."""
    found = answered([effect(ESTIMATE)], [DEPTH], apart=[simple(ESTIMATE, "depth=20"), simple(significant(1.5, 0.9), "depth=56")])
    assert found.verdict == "may matter"
    assert re.search(r"depth=56.*raises.*1\.50", found.text)


def test_effects_whose_intervals_have_nothing_in_common_are_told_apart_from_their_average() -> None:
    apart = [simple(significant(4, 1), "depth=20"), simple(significant(9, 1), "depth=56")]
    assert "At depth=56" in answered([effect(significant(6.5, 1))], [DEPTH], apart=apart).text
    apart = [simple(significant(6, 1), "depth=20"), simple(significant(7, 1), "depth=56")]
    assert "At depth" not in answered([effect(significant(6.5, 1))], [DEPTH], apart=apart).text


def test_a_level_whose_average_lacks_runs_is_judged_where_it_has_them() -> None:
    found = answered(
        [effect(Estimate(n=0))],
        [DEPTH],
        apart=[simple(significant(2, 0.5), "depth=20"), simple(Estimate(n=0), "depth=56")],
        cells=[cell(diverged=5)],
    )
    assert found.verdict == "matters"
    assert re.search(r"depth=20.*raises.*2\.00", found.text)
    assert "shortcut=none depth=56 (5 of 5 diverged)" in found.text


def test_what_is_left_out_is_named() -> None:
    cells = [cell(f"depth={i}", diverged=1, missing=2) for i in range(5)]
    found = answered(
        [effect(significant(2, 1)), effect(Estimate(n=4, mean=0.1, std=1, low=-1, high=1.2, p=0.8, p_adjusted=1), "B")], cells=cells
    )
    assert "depth=0 (1 of 5 diverged, 2 of 5 missing), depth=1" in found.text
    assert "2 more cells" in found.text


def test_numbers_go_from_one_to_the_other() -> None:
    found = conclude_factor("depth", [effect(significant(9.2, 1), "56", "20", "depth", 1)], [], [], [cell()], FORMATS)
    assert "from 20 to 56" in found.text
    assert numbers(found.text) == ["9.20", "+8.20", "+10.20"]


def test_of_many_levels_the_strongest_are_named_and_the_others_counted() -> None:
    own = [effect(significant(i, 0.1), f"L{i}", combinations=1) for i in range(1, 8)]
    own += [effect(ESTIMATE, f"M{i}") for i in range(4)] + [effect(Estimate(n=0), "missing")]
    text = answered(own).text
    assert re.findall(r"\bL\d", text) == ["L7", "L6", "L5"]
    assert re.search(r"9 more levels: 4 .*significant.*4 .*no.*1 .*untested", text)
    none = answered([effect(Estimate(n=5, mean=i / 10, std=1, low=-1.0, high=2.0, p=0.5, p_adjusted=1), f"L{i}") for i in range(9)])
    assert "6 more levels" in none.text
    assert numbers(none.text)[-1] == "2.00"


def test_a_level_that_never_meets_its_reference_cannot_be_said() -> None:
    assert answered([]).verdict == "cannot be said yet"


def test_a_difference_that_is_not_zero_is_never_shown_as_zero() -> None:
    text = answered([effect(Estimate(n=5, mean=0.02, std=0.01, low=0.0012, high=0.04, p=0.01, p_adjusted=0.02))]).text
    assert numbers(text) == ["0.02", "+0.001", "+0.04"]


def of(made: Design, errors: Array) -> dict[str, Answer]:
    """Answers of the real path from errors on; every cell is complete."""
    levels, pairs = estimate_effects(made, errors), estimate_interactions(made, errors)
    cells = [cell(each.label, errors.shape[1]) for each in made.cells]
    return {
        factor: conclude_factor(factor, levels, pairs, estimate_simple_effects(made, errors, factor), cells, FORMATS)
        for factor in made.factors
    }


def errors_of(values: Mapping[tuple[str, str], float], noise: float, seed: int) -> tuple[Design, Array]:
    made = design(seeds=5)
    draw = np.random.default_rng(seed)
    means = [values.get((each.levels["shortcut"], each.levels["depth"]), 0.0) for each in made.cells]
    return made, np.array(means)[:, None] + 8 + draw.normal(0, 1, 5) + draw.normal(0, noise, (len(means), 5))


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
    levels, pairs = estimate_effects(made, errors), estimate_interactions(made, errors)
    for factor, found in of(made, errors).items():
        apart = estimate_simple_effects(made, errors, factor)
        own: list[Effect | SimpleEffect] = [each for each in levels if each.factor == factor]
        sure = [each.difference.mean or 0 for each in [*own, *apart] if each.difference.significant]
        assert ("raises" in found.text) <= any(mean > 0 for mean in sure)
        assert ("lowers" in found.text) <= any(mean < 0 for mean in sure)
        assert ("matters" in found.text) == (found.verdict == "matters")
        assert (found.verdict == "matters") <= bool(sure)
        assert (found.verdict == "no effect shown") <= all(
            each.difference.n >= 3 and not each.difference.significant for each in own
        )
        assert ("depends on" in found.text) <= any(each.difference.significant for each in pairs)
        known = [each.difference for each in [*own, *apart]]
        numbers = [abs(x) for each in known for x in (each.mean, each.low, each.high, each.p_adjusted) if x is not None]
        for shown in NUMBER.findall(found.text):
            value = float(shown.lstrip("+−"))
            assert any(value == pytest.approx(number, abs=0.0051) for number in numbers), shown


def test_of_studies_without_effect_few_say_that_something_matters() -> None:
    """6 % of 2,000 did: 5 % by the averages, the others by combinations that also certainly depend on another factor."""
    made = design(seeds=5)
    draw = np.random.default_rng(0)
    spread = np.array([5.0 if each.levels["shortcut"] == "none" else 0.3 for each in made.cells])[:, None]
    studies = 600
    false_claims = 0
    for _ in range(studies):
        errors = 8 + draw.normal(0, 1, 5) + spread * draw.normal(size=(len(made.cells), 5))
        false_claims += any(found.verdict == "matters" for found in of(made, errors).values())
    assert 0.02 < false_claims / studies < 0.06 + 3 * math.sqrt(0.06 * 0.94 / studies)


def test_of_studies_with_a_large_effect_all_say_that_it_matters_and_few_that_another_does() -> None:
    truth = {("none", "20"): 3.0, ("none", "56"): 3.0}
    found = [of(*errors_of(truth, 0.3, seed)) for seed in range(200)]
    assert all(each["shortcut"].verdict == "matters" for each in found)
    assert np.mean([each["depth"].verdict == "matters" for each in found]) < 0.06 + 3 * math.sqrt(0.06 * 0.94 / 200)
