"""Expectations are checked against the study beforehand, and shown only by adjusted, paired tests."""

import re
from collections.abc import Mapping

import numpy as np
import pytest

from ablations.engine.analysis.evidence import Evidence
from ablations.engine.analysis.study_analysis import analyze_study
from ablations.engine.analysis.verdicts.expectations import CONTRADICTED, NOT_SHOWN, SHOWN, Assessment, assess
from ablations.engine.study.expectations import parse_expectations
from resnet_core import ConfigError
from tests.helpers.synthetic_study import FORMATS, design, evidence, without

FACTORS = {"shortcut": ("none", "A", "B"), "depth": (20, 56)}
OFFSETS = {"none": 2.0, "A": 0.0, "B": -0.5}


def shifted(levels: Mapping[str, str], seed: int) -> float:
    """Return errors in which A is 2 points better than none, B 0.5 points better than A, and depth is without effect."""
    noise = np.random.default_rng([seed, *map(ord, "".join(levels.values()))]).normal(0, 0.1)
    return float(10 + OFFSETS[levels["shortcut"]] + noise)


def verdict(text: str, given: Evidence | None = None) -> str:
    return assessment(text, given or evidence(design(seeds=5), truth=shifted)).verdict


def assessment(text: str, given: Evidence) -> Assessment:
    (found,) = assess(parse_expectations([text], FACTORS), given, analyze_study(given))
    assert "\n" not in found.text
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("shortcut=A better than none", SHOWN),
        ("shortcut=none better than A", CONTRADICTED),
        ("shortcut=B better than A", SHOWN),
        ("shortcut=B better than none by 2", SHOWN),  # neither level is the baseline
        ("shortcut=B better than none by 2.5", NOT_SHOWN),
        ("shortcut=B better than none by 3", CONTRADICTED),
        ("shortcut=A no worse than B by 1", SHOWN),
        ("shortcut=A no worse than B by 0.5", NOT_SHOWN),
        ("shortcut=A no worse than B by 0.1", CONTRADICTED),
        ("depth=56 better than 20", NOT_SHOWN),
        ("depth=56 no worse than 2e1 by 0.5", SHOWN),
        ("model.depth matters", NOT_SHOWN),
        ("shortcut matters", SHOWN),
        ("  shortcut   matters ", SHOWN),
    ],
)
def test_an_expectation_is_decided_by_the_difference_and_its_uncertainty(text: str, expected: str) -> None:
    assert verdict(text) == expected


def test_the_interval_of_a_gain_has_the_digits_and_signs_of_all_others() -> None:
    given = evidence(design(seeds=5), truth=shifted)
    (effect,) = (each for each in analyze_study(given).effects if each.level == "B")
    low, high = effect.difference.low, effect.difference.high
    assert low is not None
    assert high is not None
    assert high < 0, "the error of B is lower"
    shown = f"(95 % CI of the gain {FORMATS.signed(-high)} to {FORMATS.signed(-low)})"
    assert shown in assessment("shortcut=B better than A", given).text
    worse = f"(95 % CI of the gain {FORMATS.signed(low)} to {FORMATS.signed(high)})"
    assert worse in (text := assessment("shortcut=A better than B", given).text)
    assert re.search(r"CI of the gain −0\.\d\d to −0\.\d\d\)", text)


@pytest.mark.parametrize(
    ("kind", "text", "expected"),
    [
        ("one-at-a-time", "shortcut=B better than none by 2", SHOWN),  # at the baseline of the other factors
        ("ladder", "shortcut=A better than none", SHOWN),
        ("ladder", "shortcut=B better than A", SHOWN),
        ("ladder", "shortcut=none better than A", CONTRADICTED),  # the step down
        ("ladder", "shortcut=B better than none", NOT_SHOWN),  # no step of the ladder
    ],
)
def test_an_expectation_of_another_design_is_decided_by_what_it_compares(kind: str, text: str, expected: str) -> None:
    factors = {"shortcut": ("none", "A", "B"), "depth": ("20", "56")}
    assert verdict(text, evidence(design(factors, {"shortcut": "none"}, seeds=6, kind=kind), truth=shifted)) == expected


def test_two_seeds_show_nothing() -> None:
    given = evidence(design(seeds=2), truth=shifted)
    assert verdict("shortcut=A better than none", given) == NOT_SHOWN
    assert verdict("shortcut=none better than A", given) == NOT_SHOWN


def test_differences_that_do_not_vary_show_nothing() -> None:
    given = evidence(design(seeds=5), truth=lambda levels, seed: OFFSETS[levels["shortcut"]])
    assert verdict("shortcut=A better than none", given) == NOT_SHOWN


def test_a_level_whose_runs_fail_is_not_shown_to_be_better() -> None:
    given = evidence(design(seeds=6), truth=shifted)
    failing = without(given, "shortcut=A depth=56/1", "diverged", "loss is not finite")
    assert verdict("shortcut=A better than none", given) == SHOWN
    found = assessment("shortcut=A better than none", failing)
    assert (found.verdict, "1 run of A failed" in found.text) == (NOT_SHOWN, True)
    assert verdict("shortcut=none better than A", failing) == NOT_SHOWN
    assert verdict("shortcut=A better than none", without(given, "shortcut=none depth=56/1", "diverged")) == SHOWN


def test_several_comparisons_are_adjusted() -> None:
    """A difference that is due to chance, and that a single test would show, is not shown as one of several."""

    def noise(levels: Mapping[str, str], seed: int) -> float:
        return float(10 + np.random.default_rng([seed, *map(ord, "".join(levels.values()))]).normal(0, 0.3))

    given = evidence(design(seeds=5), truth=noise)
    (effect,) = (each for each in analyze_study(given).effects if each.level == "B")
    assert effect.difference.p is not None
    assert effect.difference.p < 0.05 < (effect.difference.p_adjusted or 0)
    assert verdict("shortcut=B better than A", given) == NOT_SHOWN


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "accepted: FACTOR=LEVEL better than LEVEL"),
        ("shortcut=A", "accepted: FACTOR=LEVEL better than LEVEL"),
        ("shortcut=A beats none", "accepted: FACTOR=LEVEL better than LEVEL"),
        ("width=8 better than 16", "width is no factor of this study; accepted: shortcut, depth"),
        ("shortcut=C better than A", "C is no level of shortcut; accepted: none, A, B"),
        ("shortcut=A better than A", "accepted: two different levels"),
        ("shortcut=A better than none by much", "a number of 0 or more"),
        ("shortcut=A better than none by -1", "a number of 0 or more"),
        ("shortcut=A better than none by nan", "a number of 0 or more"),
        ("shortcut=A no worse than none", "names no margin"),
        ("shortcut=A no worse than none by 0", "a number above 0"),
    ],
)
def test_an_expectation_that_the_study_cannot_decide_is_rejected(text: str, named: str) -> None:
    with pytest.raises(ConfigError, match=r"^--expect=") as error:
        parse_expectations([text], FACTORS)
    assert named in str(error.value)


def test_a_factor_with_one_level_decides_nothing() -> None:
    with pytest.raises(ConfigError, match="depth has one level"):
        parse_expectations(["depth matters"], {"depth": (20,)})
