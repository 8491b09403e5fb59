"""Studies on one cluster that stays up, submitted and killed again and again until each is done."""

import os
import random
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import ray
from rich.console import Console

from benchmarks import record
from benchmarks.reliability.evidence import Evidence
from benchmarks.reliability.kills import Kill, trial_processes

EPOCHS = 12
HUNG_SECONDS = 300.0
LEFT_SECONDS = 20.0
"""Time that the processes of an ended study have to exit, in seconds."""
STUDY = [
    sys.executable,
    str(record.ROOT / "ablations" / "shortcuts.py"),
    "--preset",
    "smoke",
    "--levels",
    "shortcut=none,A",
    "depth=8",
]


class Submission:
    """One submission of a study, in a home of its own."""

    def __init__(self, home: Path, seeds: int, *options: str) -> None:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
        environment |= {"RESNET_ABLATIONS_HOME": str(home), "PYTHONPATH": str(record.ROOT)}
        environment |= {"RAY_ADDRESS": ray.get_runtime_context().gcs_address}
        home.mkdir(exist_ok=True)
        self.log = home / f"submission-{len(list(home.glob('submission-*')))}.txt"
        self.kills: list[Kill] = []
        self.began = time.time()
        command = [*STUDY, "--seeds", str(seeds), "--set", f"optim.epochs={EPOCHS}", *options]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(command, cwd=home, env=environment, stdout=log, stderr=log)

    def finish(self, limit: float = HUNG_SECONDS) -> float:
        """Waits for the end; returns seconds since the start. Raises TimeoutExpired if it hangs."""
        self.process.wait(limit)
        if self.process.returncode and not self.kills:
            raise SystemExit(f"a submission that nobody killed exits {self.process.returncode}: {self.log}\n{self.log.read_text()}")
        return time.time() - self.began


@dataclass
class Soak:
    """A soak: studies whose processes are killed, and what each has lost.

    Args:
        scratch: for homes; those of studies in which something went wrong stay there.
        seed: of what is drawn.
        seeds: of the study: it has twice as many runs.
    """

    scratch: Path
    seed: int
    seeds: int = 3
    kills: list[Kill] = field(default_factory=list)
    submissions: int = 0
    wrong: list[int] = field(default_factory=list)
    """Number of things that each killed study lost, duplicated or left."""
    undisturbed_seconds: list[float] = field(default_factory=list)
    resumed_seconds: list[float] = field(default_factory=list)
    """From a resubmission to the first epoch that MLflow did not have."""
    stopped_seconds: list[float] = field(default_factory=list)
    """From a request to stop to the end of the process."""
    tracebacks: int = 0
    """Submissions that printed one."""

    def __post_init__(self) -> None:
        self._draw = random.Random(self.seed)
        self._console = Console(stderr=True, highlight=False)

    def undisturbed(self) -> Evidence:
        """A study that nobody kills: what the others must come to."""
        home = self._home()
        submission = Submission(home, self.seeds)
        self.undisturbed_seconds.append(submission.finish())
        self._console.print(f"undisturbed: {self.undisturbed_seconds[-1]:.1f} s")
        return Evidence.read(home, submission.log.read_text())

    def disturbed(self, expected: Evidence, most: int) -> None:
        """A study that is killed until it comes to its end, at most so often."""
        home, submissions = self._home(), list[Submission]()
        while not submissions or submissions[-1].process.returncode:
            submission = Submission(home, self.seeds)
            submissions.append(submission)
            while submission.process.poll() is None and sum(len(s.kills) for s in submissions) < most:
                self._kill(submission, home)
            submission.finish()
        evidence = Evidence.read(home, submissions[-1].log.read_text())
        lost, doubled, left = evidence.lost(expected), evidence.doubled(expected), _left(home)
        self.wrong.append(lost.total() + doubled.total() + len(left))
        self.kills += (kill for submission in submissions for kill in submission.kills)
        self.submissions += len(submissions)
        self.tracebacks += sum("Traceback" in submission.log.read_text() for submission in submissions)
        self.resumed_seconds += evidence.resumed([submission.began for submission in submissions])
        self._console.print(f"{home.name}: {len(submissions)} submissions; {self.wrong[-1]} lost, doubled or left")
        if self.wrong[-1]:
            self._console.print(f"kept in {home}: lost {dict(lost)}, doubled {dict(doubled)}, left {left}")
        else:
            shutil.rmtree(home)

    def _home(self) -> Path:
        return self.scratch / f"study-{len(self.wrong)}-{len(self.undisturbed_seconds)}"

    def _kill(self, submission: Submission, home: Path) -> None:
        kill = Kill.draw(self._draw, min(self.undisturbed_seconds))
        if kill.strike(submission.process, home, EPOCHS):
            submission.kills.append(kill)
            self._console.print(f"  {kill.means}, {kill.moment}, after {kill.after_seconds:.1f} s")
            struck = time.monotonic()
            if kill.of_driver:
                submission.finish()
            if kill.asks:
                self.stopped_seconds.append(time.monotonic() - struck)


def _left(home: Path) -> list[str]:
    """Processes of a study that do not go."""
    deadline = time.monotonic() + LEFT_SECONDS
    while True:
        left = [
            process
            for process in psutil.process_iter(["environ"])
            if (process.info["environ"] or {}).get("RESNET_ABLATIONS_HOME") == str(home)
        ]
        left += trial_processes()
        if not left or time.monotonic() > deadline:
            return list(map(str, left))
        time.sleep(0.2)
