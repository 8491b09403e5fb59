"""Kills of a study's processes: by what means, and at which moment."""

import random
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

LOOK_SECONDS = 0.0005
"""Interval between two looks at files, in seconds. A checkpoint is half written for about a millisecond."""
LIST_SECONDS = 0.2
"""Interval between two listings of trial processes, in seconds. A listing takes milliseconds itself."""

SIGNALS = {"driver, SIGKILL": signal.SIGKILL, "driver, SIGTERM": signal.SIGTERM, "driver, SIGINT": signal.SIGINT}
TRIAL = "trial process, SIGKILL"
MEANS = (*SIGNALS, TRIAL)

ANY = "any"
MOMENTS: dict[str, Callable[[Path, int], set[Path]]] = {
    "a checkpoint is half written": lambda home, _: set(home.glob("checkpoints/*/*.partial")),
    "the last epoch is saved": lambda home, epochs: set(home.glob(f"checkpoints/*/epoch-{epochs:06d}-*.pt")),
    "MLflow's database is written": lambda home, _: set(home.glob("mlflow.db-journal")),
}
"""Files that are new at a moment."""


@dataclass(frozen=True)
class Kill:
    """One kill, to come or done."""

    means: str
    moment: str
    after_seconds: float
    """From the start of the submission, or from the kill before; the first such moment then."""

    @classmethod
    def draw(cls, draw: random.Random, seconds: float) -> "Kill":
        """Any means; every other one at any moment of the `seconds` that an undisturbed submission takes."""
        moment = ANY if draw.random() < 0.5 else draw.choice(list(MOMENTS))
        return cls(draw.choice(MEANS), moment, draw.uniform(0, seconds if moment == ANY else seconds / 2))

    @property
    def of_driver(self) -> bool:
        return self.means in SIGNALS

    @property
    def asks(self) -> bool:
        """True if the driver has a say in it."""
        return SIGNALS.get(self.means, signal.SIGKILL) is not signal.SIGKILL

    def strike(self, study: "subprocess.Popen[bytes]", home: Path, epochs: int) -> bool:
        """Waits for the moment and kills; returns False if the submission ended before.

        Args:
            study: a submission's driver.
            home: its local state.
            epochs: of each run.
        """
        with suppress(subprocess.TimeoutExpired):
            study.wait(self.after_seconds)
        before = self._files(home, epochs) if self.moment != ANY else set()
        trials, listed = list[psutil.Process](), 0.0
        while study.poll() is None:
            if self.means == TRIAL and time.monotonic() > listed + LIST_SECONDS:
                trials, listed = trial_processes(), time.monotonic()
            files = self._files(home, epochs)
            if (self.of_driver or trials) and files - before:
                return self._send(study, trials)
            before &= files  # one that is gone may come again, such as a database's journal
            time.sleep(LOOK_SECONDS)
        return False

    def _files(self, home: Path, epochs: int) -> set[Path]:
        return {home} if self.moment == ANY else MOMENTS[self.moment](home, epochs)

    def _send(self, study: "subprocess.Popen[bytes]", trials: list[psutil.Process]) -> bool:
        try:
            study.send_signal(SIGNALS[self.means]) if self.of_driver else trials[0].kill()
        except psutil.NoSuchProcess:
            return False
        return True


def trial_processes(title: str = "ray::RunTrainable") -> list[psutil.Process]:
    """Those of the cluster that this process has started."""
    return [process for process in psutil.Process().children(recursive=True) if _title(process).startswith(title)]


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:  # gone, or a zombie
        return ""
