"""Studies with two workers for each run, whose processes are killed and stopped at random: what is lost or doubled?"""

import argparse
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import ray
from rich.console import Console

from benchmarks import record
from benchmarks.reliability.evidence import Evidence
from benchmarks.reliability.kills import trial_processes
from benchmarks.reliability.soak import EPOCHS, LEFT_SECONDS, Submission

SEEDS = 5
"""Seeds of a study, which has twice as many runs."""
KILLS = 8
"""Maximum number of kills of a study."""
HANG_TIMEOUT_SECONDS = 12
GAP_EPOCHS = (6, 24)
"""Epochs that are saved between two kills. A run of 12 epochs must not be hit more than three times."""
STUDY_SECONDS = 1200.0
"""Timeout of a study, in seconds."""
ROLES = {"leader": "ray::RunTrainable", "worker": "ray::GroupWorker"}
SIGNALS = {"killed": signal.SIGKILL, "stopped": signal.SIGSTOP}


@dataclass
class Soak:
    """A soak: studies whose processes are killed, and what each has lost.

    Args:
        scratch: for homes; those of studies in which something went wrong stay there.
        seed: of what is drawn.
    """

    scratch: Path
    seed: int
    kills: Counter[tuple[str, str]] = field(default_factory=Counter)
    wrong: list[int] = field(default_factory=list)
    """Number of things that each study lost, duplicated or left."""
    recovery_seconds: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in SIGNALS})
    """From a kill to the next epoch that is saved, by signal."""

    def __post_init__(self) -> None:
        self._draw = random.Random(self.seed)
        self._console = Console(stderr=True, highlight=False)

    def study(self, expected: Evidence | None, kills: int) -> Evidence:
        """One study with at most so many kills; compared with what it must come to, if that is known."""
        home = self.scratch / f"study-{len(self.wrong)}-{kills}"
        submission = Submission(home, SEEDS, "--workers", "2", "--hang-timeout", str(HANG_TIMEOUT_SECONDS))
        done = sum(self.kills.values()) + kills
        while sum(self.kills.values()) < done and self._strike(submission, home):
            pass
        if expected:
            submission.process.wait(STUDY_SECONDS)  # a run without a result is missing in the evidence
        else:
            submission.finish(STUDY_SECONDS)
        evidence, left = Evidence.read(home, submission.log.read_text()), _left()
        if expected:
            lost, doubled = evidence.lost(expected), evidence.doubled(expected)
            self.wrong.append(lost.total() + doubled.total() + len(left))
            self._console.print(f"{home.name}: {self.wrong[-1]} lost, doubled or left; {dict(lost)} {dict(doubled)} {left}")
        if not expected or not self.wrong[-1]:
            shutil.rmtree(home)
        return evidence

    def _strike(self, submission: Submission, home: Path) -> bool:
        """Kills a process once some epochs have been saved, and waits for the next one; returns False if the study has ended."""
        if not _wait_for_epochs(submission, home, self._draw.randint(*GAP_EPOCHS)):
            return False
        time.sleep(self._draw.random())
        role, (name, number) = self._draw.choice(list(ROLES)), self._draw.choice(list(SIGNALS.items()))
        there = trial_processes(ROLES[role])
        if not there:
            return submission.process.poll() is None
        try:
            self._draw.choice(there).send_signal(number)
        except psutil.NoSuchProcess:
            return True
        self.kills[role, name] += 1
        struck = time.monotonic()
        goes_on = _wait_for_epochs(submission, home, 1)
        self.recovery_seconds[name].append(time.monotonic() - struck)
        self._console.print(f"  {role} {name}: {self.recovery_seconds[name][-1]:.1f} s")
        return goes_on


def _wait_for_epochs(submission: Submission, home: Path, number: int) -> bool:
    """Waits until so many more epochs have been saved; returns False if the study ends before."""
    before, seen = set(home.glob("checkpoints/*/epoch-*")), set[Path]()
    while submission.process.poll() is None:
        seen |= set(home.glob("checkpoints/*/epoch-*")) - before
        if len(seen) >= number:
            return True
        time.sleep(0.02)
    return False


def _left() -> list[str]:
    """Processes and resources of a study that do not go."""
    deadline = time.monotonic() + LEFT_SECONDS
    while True:
        left = [str(process) for title in ROLES.values() for process in trial_processes(title)]
        taken = ray.cluster_resources()["CPU"] - ray.available_resources().get("CPU", 0)
        left += [f"{taken:g} CPUs"] if taken else []
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(0.2)


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--kills", type=int, default=50, metavar="N", help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of what is drawn (default: %(default)s)")


def main() -> None:
    """Kills, prints and writes; exits 1 if anything was lost or doubled."""
    given = record.options(__file__, __doc__, rounds=1, extra=add_options)
    scratch = Path(tempfile.mkdtemp(prefix="groups-"))
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    soak = Soak(scratch, given.extra.seed)
    expected = soak.study(None, 0)
    while (left := given.extra.kills - sum(soak.kills.values())) > 0:
        soak.study(expected, min(left, KILLS))
    series = [
        record.Series("lost, doubled or left, per study", "", list(map(float, soak.wrong)), "0"),
        *(
            record.Series(f"process {name} to the next epoch saved", "s", seconds)
            for name, seconds in soak.recovery_seconds.items()
            if seconds
        ),
    ]
    rows = [[role, *(str(soak.kills[role, name]) for name in SIGNALS)] for role in ROLES]
    settings = {"seed": soak.seed, "kills": sum(soak.kills.values()), "runs": 2 * SEEDS, "epochs": EPOCHS}
    settings |= {"hang timeout in seconds": HANG_TIMEOUT_SECONDS}
    record.publish(record.Result("groups", settings, series, [record.Breakdown("Kills, by process", ["", *SIGNALS], rows)]), given)
    ray.shutdown()
    if any(soak.wrong):
        sys.exit(1)
    shutil.rmtree(scratch)


if __name__ == "__main__":
    main()
