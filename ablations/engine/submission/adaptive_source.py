"""Source of an adaptive study's runs: which seeds of which cells may start, given the results so far."""

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from ablations.engine.analysis.statistics.adaptive import Path, follow_looks
from ablations.engine.analysis.statistics.contrasts import Terms
from ablations.engine.analysis.statistics.looks import declared_shares
from ablations.engine.study.design import Design
from ablations.engine.study.plan import Plan, Run
from ablations.engine.submission.progress import Progress
from ablations.engine.submission.run_events import RunEvents, Supervision
from ablations.engine.tracking.run_queries import RunRecord
from ablations.engine.tracking.tracker import Tracker
from ablations.engine.trial.job import Job
from resnet_core.fields import ConfigError


class SeedState:
    """The results of an adaptive study so far, and what follows from them.

    Args:
        plan: The study, with all runs that it may need.
        design: Its design, with the planned seeds that MLflow has recorded.
        earlier: Numbers of seeds at which the study was looked at before.
    """

    def __init__(self, plan: Plan, design: Design, earlier: tuple[int, ...]) -> None:
        self.plan, self.design = plan, design
        self.elsewhere: Mapping[str, str] = {}
        """Runs that other processes train, by fingerprint, with a description of the process."""
        self._shares = declared_shares(design, earlier)
        self._rows = {name: row for row, cell in enumerate(design.cells) for name in cell.fingerprints}
        self._results: dict[str, tuple[str, float]] = {}
        self._decisions: dict[int, Mapping[Terms, str]] = {}
        self._path: Path | None = None
        self._missing: Sequence[Run] = ()

    def add_records(self, records: Mapping[str, RunRecord]) -> None:
        """Add runs that have a result in MLflow."""
        for fingerprint, record in records.items():
            value = record.metrics.get(self.plan.metric.name, math.nan) if record.completed else math.nan
            self.add_result(fingerprint, record.outcome, value)

    def add_result(self, fingerprint: str, outcome: str, value: float) -> None:
        """Add the result of a run. One without a value has NaN."""
        if self._results.get(fingerprint, (outcome, value))[0] != outcome:
            self._decisions.clear()  # another process has repeated a run that failed
        self._results[fingerprint] = outcome, value
        self._path = None

    @property
    def path(self) -> Path:
        """The path as far as the results tell."""
        if self._path is None:  # the scheduler asks ten times a second
            cells, seeds = self.design.cells, self.design.seeds
            ended = [[self._results.get(name, ("", math.nan)) for name in cell.fingerprints] for cell in cells]
            values = np.array([[value for _, value in of_cell] for of_cell in ended], float).reshape(len(cells), seeds)
            values[~np.isfinite(values)] = np.nan
            outcomes = [[outcome for outcome, _ in of_cell] for of_cell in ended]
            self._path = follow_looks(self.design, values, outcomes, self._shares, self._decisions)
            self._missing = self._find_missing(self._path)
        return self._path

    def has_result(self, run: Run) -> bool:
        """Return whether a run has ended."""
        return run.fingerprint in self._results

    def needed(self) -> list[Run]:
        """Return the runs that the path needs whatever the missing results will be."""
        return [run for run in self.plan.runs if run.seed < self.path.seeds[self._row(run)]]

    def possible(self) -> list[Run]:
        """Return the runs without a result that the path may need."""
        return [run for run in self.plan.runs if run.seed < self.path.most_seeds[self._row(run)] and not self.has_result(run)]

    def missing(self) -> Sequence[Run]:
        """Return the needed runs without a result in the order in which to start them.

        The seeds of an earlier look come first, since the path waits for them. Of those of the same look, the cells of the
        closest comparison come first, whose result is most uncertain.
        """
        return self._missing if self.path else ()

    def _find_missing(self, path: Path) -> Sequence[Run]:
        missing = [run for run in self.needed() if not self.has_result(run)]
        return sorted(missing, key=lambda run: (self._look(run.seed), path.distances[self._row(run)]))

    def startable(self, started: Collection[str] = ()) -> list[Run]:
        """Return the missing runs that this process may start, without those that it has started."""
        return [run for run in self.missing() if run.fingerprint not in self.elsewhere and run.fingerprint not in started]

    def _row(self, run: Run) -> int:
        return self._rows[run.fingerprint]

    def _look(self, seed: int) -> int:
        """Return the position of the look that a seed is trained for."""
        return next(i for i, seeds in enumerate(self.plan.seed_looks) if seed < seeds)


class SeedSource(RunEvents):
    """A `run_queue.RunSource` and `run_queue.RunListener`.

    Args:
        state: State of the study.
        tracker: Tracker of the study.
        progress: Progress in the terminal.
        claim: Claims runs for this process and gives up earlier claims.
        make_job: Returns the job of a run.
        supervision: What may end the study or its runs early.
    """

    def __init__(
        self,
        state: SeedState,
        tracker: Tracker,
        progress: "SeedProgress",
        *,
        claim: Callable[[Iterable[str]], object],
        make_job: Callable[[Run], Job],
        supervision: Supervision | None = None,
    ) -> None:
        super().__init__((), tracker, progress, supervision)
        self.state, self.seeds_progress, self.claim, self.make_job = state, progress, claim, make_job
        self._latest: dict[str, float] = {}
        """Latest value of the study's metric, by fingerprint."""
        self._seen: Path | None = None

    def next(self) -> Job | None:
        if self.state.path is not self._seen:
            self._seen = self.state.path
            self.seeds_progress.expect([run for run in self.state.missing() if run.fingerprint not in self.state.elsewhere])
            self._release_unneeded()
        for run in self.state.startable(self.runs):
            self.runs[run.fingerprint] = run
            self.unfinished.add(run.fingerprint)
            return self.make_job(run)
        return None

    @property
    def finished(self) -> bool:
        """True if no run is in progress and none may start: the path has ended, or waits for runs of other processes."""
        return not self.unfinished and not self.state.startable(self.runs)

    def stops(self, fingerprint: str, report: Mapping[str, Any]) -> bool:
        return False

    def reported(self, fingerprint: str, report: Mapping[str, Any]) -> None:
        if "metrics" in report:
            self._latest[fingerprint] = report["metrics"].get(self.state.plan.metric.name, math.nan)
        super().reported(fingerprint, report)

    def _release_unneeded(self) -> None:
        """Give up the claims on runs that the path no longer needs, so that another study may train them."""
        with suppress(ConfigError):  # a full disk: others do not see the change, and the study continues
            self.claim({run.fingerprint for run in self.state.possible()} | self.unfinished)

    def _end(self, run: Run, outcome: str, message: str, traceback: str = "", *, final: bool = True) -> None:
        super()._end(run, outcome, message, traceback, final=final)
        if final:
            value = self._latest.get(run.fingerprint, math.nan) if outcome == "completed" else math.nan
            self.state.add_result(run.fingerprint, outcome, value)


class SeedProgress(Progress):
    """Progress of an adaptive study. The number of its runs grows with the path."""

    def expect(self, missing: Iterable[Run]) -> None:
        """Count runs that the study needs as well."""
        with self._lock:
            new = [run for run in missing if run.fingerprint not in self.epochs]
            self.epochs |= {run.fingerprint: 0 for run in new}
            self._work |= {run.fingerprint: self._work_of(run) for run in new}
            self.total = len(self._work)
