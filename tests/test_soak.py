"""A few drawn kills; `python -m benchmarks.reliability` is the long version."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from benchmarks.reliability.soak import Soak

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def test_a_study_that_is_killed_again_and_again_ends_as_one_that_nobody_killed(tmp_path: Path) -> None:
    soak = Soak(tmp_path, seed=3, seeds=1)
    expected = soak.undisturbed()
    soak.disturbed(expected, 3)
    assert len(soak.kills) > 1
    assert soak.wrong == [0], f"kept in {tmp_path}"
