"""A few randomly timed kills; `python -m benchmarks.reliability` is the long version."""

from pathlib import Path

import pytest

from benchmarks.groups import __main__ as groups
from benchmarks.reliability.soak import Soak

pytestmark = [pytest.mark.slow, pytest.mark.nightly, pytest.mark.usefixtures("cluster")]


def test_a_study_that_is_killed_again_and_again_ends_as_one_that_nobody_killed(tmp_path: Path) -> None:
    soak = Soak(tmp_path, seed=3, seeds=1)
    expected = soak.undisturbed()
    soak.disturbed(expected, 2)
    assert len(soak.kills) == 2
    assert soak.wrong == [0], f"kept in {tmp_path}"


def test_a_study_whose_groups_are_killed_ends_as_one_that_nobody_disturbed(tmp_path: Path) -> None:
    soak = groups.Soak(tmp_path, seed=3)
    soak.study(soak.study(None, 0), 2)
    assert soak.kills.total() == 2
    assert soak.wrong == [0], f"kept in {tmp_path}"
