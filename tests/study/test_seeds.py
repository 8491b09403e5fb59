"""Numbers of seeds: fixed ones, ranges and looks."""

from pathlib import Path

import numpy as np
import pytest

from ablations.engine.cli import options
from ablations.engine.search.plan import draft_search
from ablations.engine.study.definition import Study
from ablations.engine.study.design import Design
from ablations.engine.study.expansion import make_draft, make_plan
from ablations.engine.study.request import SearchRequest, StudyRequest
from ablations.engine.study.seeds import format_seeds, read_seeds
from resnet_core.fields import ConfigError
from tests.helpers.submission import SEARCH, STUDY

RANGE = Study(**{**vars(STUDY), "seeds": (3, 12)})


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (5, 5),
        (np.int64(5), 5),
        ("5", 5),
        ("3..12", (3, 5, 8, 12)),
        ((3, 12), (3, 5, 8, 12)),
        ([3, 12], (3, 5, 8, 12)),
        ("3..14", (3, 5, 8, 14)),  # 12 is too near to 14
        ("3..10", (3, 5, 8, 10)),
        ("3..4", (3, 4)),
        ("1..12", (1, 2, 3, 5, 8, 12)),
        ("5 .. 30", (5, 8, 12, 18, 30)),
        ("3, 6,9", (3, 6, 9)),
        ("3,12", (3, 12)),  # looks, not a range
        ((3, 6, 9), (3, 6, 9)),
    ],
)
def test_seeds_are_a_number_a_range_or_looks(given: object, expected: object) -> None:
    assert read_seeds("--seeds", given) == expected


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("12..3", "--seeds=12..3: does not ascend"),
        ("3..3", "--seeds=3..3: does not ascend"),
        ("3,5,5", "--seeds=3,5,5: does not ascend"),
        ((12, 3), "does not ascend"),
        ("0..3", "--seeds=0..3: accepted: a number of replicates, 1 or more; a range, 3..12; or looks, 3,5,8,12"),
        ("-3", "--seeds=-3: accepted: a number"),
        ("3..", "accepted: a number"),
        ("3...12", "accepted: a number"),
        ("3..12.5", "accepted: a number"),
        ("few", "--seeds=few: accepted: a number"),
        ("1..1000000", "has 34 looks, which share the significance level; accepted: at most 10"),
        ((3,), "accepted: a number"),
        ((), "accepted: a number"),
        ((3, "12"), "accepted: a number"),
        ((3, 5.5), "accepted: a number"),
        (True, "accepted: a number"),
        (2.5, "accepted: a number"),
        (None, "accepted: a number"),
    ],
)
def test_wrong_seeds_are_one_line(given: object, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        read_seeds("--seeds", given)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_seeds_are_printed_as_the_command_line_accepts_them() -> None:
    for seeds in (5, (3, 12), (3, 6, 12)):
        assert read_seeds("--seeds", format_seeds(seeds)) == read_seeds("--seeds", seeds)


def test_a_range_plans_all_runs_up_to_the_last_look_and_the_design_has_the_looks(tmp_path: Path) -> None:
    plan = make_plan(RANGE, StudyRequest(), cache=tmp_path)
    assert plan.seed_looks == (3, 5, 8, 12)
    assert len(plan.runs) == 2 * 12
    made = Design.from_plan(plan, {})
    assert (made.seed_looks, made.planned_seeds, made.seeds) == ((3, 5, 8, 12), 12, 12)
    assert Design.from_json(made.to_json()) == made
    fixed = make_plan(RANGE, options.parse_options(RANGE, ["--seeds", "3"]).request, cache=tmp_path)
    assert not fixed.seed_looks
    assert {run.fingerprint for run in fixed.runs} < {run.fingerprint for run in plan.runs}
    assert fixed.base_id == plan.base_id
    assert Design.from_plan(fixed, {}).planned_seeds == 12


def test_the_command_line_sets_looks_and_too_many_runs_are_rejected() -> None:
    assert make_draft(STUDY, options.parse_options(STUDY, ["--seeds", "3,6"]).request).seed_looks == (3, 6)
    with pytest.raises(ConfigError, match=r"--seeds=6000: with 2 levels, accepted: at most 10,000 runs"):
        make_draft(STUDY, options.parse_options(STUDY, ["--seeds", "3000,6000"]).request)
    with pytest.raises(ConfigError, match="does not ascend"):
        options.parse_options(STUDY, ["--seeds", "12..3"])


def test_a_search_takes_one_number() -> None:
    for study, seeds in ((SEARCH, (3, 5, 8, 12)), (Study(**{**vars(SEARCH), "seeds": (3, 12)}), None)):
        with pytest.raises(ConfigError, match=r"--seeds=3,5,8,12: a search .* accepted: one number"):
            draft_search(study, StudyRequest(seeds=seeds), SearchRequest())
