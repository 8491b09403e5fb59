"""A few randomly timed kills; `python -m benchmarks.reliability` is the long version."""

from pathlib import Path

import pytest

from benchmarks.reliability.soak import Soak

pytestmark = [pytest.mark.slow, pytest.mark.nightly, pytest.mark.usefixtures("cluster")]


def test_a_study_that_is_killed_again_and_again_ends_as_one_that_nobody_killed(tmp_path: Path) -> None:
    soak = Soak(tmp_path, seed=3, seeds=1)
    expected = soak.undisturbed()
    soak.disturbed(expected, 2)
    assert len(soak.kills) == 2
    assert soak.wrong == [0], f"kept in {tmp_path}"
