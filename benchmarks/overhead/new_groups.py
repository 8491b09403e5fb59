"""A study that starts new processes for each run: `python -m benchmarks.overhead.new_groups STUDY.py OPTIONS`."""

import runpy
import sys
from typing import Any

from ray import tune

import ablations.engine  # noqa: F401 - sets the environment in which Ray is imported

WARM = tune.TuneConfig


def cold(**settings: Any) -> tune.TuneConfig:
    """The engine's settings, but for the reuse of processes."""
    return WARM(**{**settings, "reuse_actors": False})


if __name__ == "__main__":
    tune.TuneConfig = cold
    del sys.argv[0]
    runpy.run_path(sys.argv[0], run_name="__main__")
