"""A study whose first runs all fail with the same error stops; any other start lets it go on."""

import pytest

from ablations.engine.submission.supervision.first_failures import FirstFailures

SAME = ("failed", "OSError: [Errno 2] /data/3f2a91bb01 is gone after 12.5 s")


def ended(limit: int, *runs: tuple[str, str]) -> str:
    watched = FirstFailures(limit)
    for run in runs:
        watched.ended(*run)
    return watched.reason


def test_the_same_error_with_other_numbers_and_fingerprints_is_the_same() -> None:
    other = ("failed", "OSError: [Errno 2] /data/99c0ffee77aa is gone after 8 s")
    assert ended(3, SAME, other) == ""
    assert ended(3, SAME, other, SAME) == SAME[1]


@pytest.mark.parametrize(
    "between",
    [("completed", ""), ("diverged", "loss is nan"), ("failed", "KeyError: 'a'"), ("oom", SAME[1])],
    ids=lambda run: run[0],
)
def test_a_run_that_ends_otherwise_ends_the_watch(between: tuple[str, str]) -> None:
    assert ended(3, SAME, between, *[SAME] * 5) == ""
    assert ended(3, between, *[SAME] * 5) == ""


def test_a_run_that_a_user_stops_counts_for_nothing() -> None:
    assert ended(2, SAME, ("stopped", "stopped on request"), SAME) == SAME[1]


def test_zero_never_stops_a_study() -> None:
    assert ended(0, *[SAME] * 5) == ""
