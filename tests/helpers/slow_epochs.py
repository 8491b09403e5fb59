"""Runs whose epochs take their time: a test can act on them without the CPU time of hundreds of epochs."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ablations.engine.scheduling import tune_runner
from ablations.engine.trial import trainable
from ablations.engine.trial.job import Report
from tests.helpers.project import PROJECT

PROGRAM = """
import sys

from ablations import main
from ablations.{study} import STUDY

sys.path.append({project!r})
from tests.helpers.slow_epochs import slow_epochs

with slow_epochs({seconds}):
    main(STUDY)
"""


@contextmanager
def slow_epochs(seconds: float, *, until: Path | None = None) -> Iterator[None]:
    """Context in which every epoch of the runs that this process starts takes `seconds` more, without using the CPU.

    Args:
        seconds: the time.
        until: file whose existence makes all further epochs fast.
    """

    class Slow(trainable.RunTrainable):
        def step(self) -> Report:
            deadline = time.monotonic() + seconds
            while time.monotonic() < deadline and not (until and until.exists()):
                time.sleep(0.05)
            return super().step()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tune_runner, "RunTrainable", Slow)
        yield


def slow_study(folder: Path, study: str, seconds: float) -> Path:
    """Write a program that is one of the project's studies with `slow_epochs`, and return its path."""
    path = folder / f"slow_{study}.py"
    path.write_text(PROGRAM.format(study=study, seconds=seconds, project=str(PROJECT)))
    return path
