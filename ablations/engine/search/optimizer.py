"""Which configuration a search tries next, which trial is worth going on with, and how both go on after a kill.

An optimiser is a function of what it was told: a new one that is told the same trials goes on as the old one would have. What it
proposes depends on these, the seed and the trial's number only.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

from ablations.engine.search.population_based import (
    CHANGES,
    MIN_POPULATION,
    PERTURBABLE,
    Branch,
    GenerationState,
    Member,
    evicted_members,
    ready_members,
    replay_generations,
)
from ablations.engine.search.space import Space, numeric_ranges
from ablations.engine.search.successive_halving import should_continue
from ablations.engine.search.suggestions import Suggester
from ablations.engine.study.request import SAMPLERS, SCHEDULERS
from resnet_core import ConfigError
from resnet_core.fields import reject
from resnet_core.overrides import convert


@dataclass(frozen=True, kw_only=True)
class SearchSettings:
    """Who searches, and for how long. Raises ConfigError, naming the command line's options, for what does not go together."""

    sampler: str
    scheduler: str
    trials: int | None
    """Budget: how many trials are begun; of a population, how many members it has."""
    seconds: float | None
    """Another budget: no trial is begun once those that ended have trained so long."""
    epochs: int
    """Of a trial that is not ended early."""
    seed: int
    objectives: int = 1
    """Results of a trial, each to be small; the first one is the error in percent."""

    def __post_init__(self) -> None:
        for option, value, accepted in (("--sampler", self.sampler, SAMPLERS), ("--scheduler", self.scheduler, SCHEDULERS)):
            if value not in accepted:
                raise reject(option, value, f"accepted: {', '.join(accepted)}")
        if self.trials is None and self.seconds is None:
            raise ConfigError("--trials: a search needs a budget; accepted: --trials, --time-budget or both")
        if self.trials is not None and self.trials < 1:
            raise reject("--trials", self.trials, "accepted: 1 or more")
        if self.seconds is not None and not 0 < self.seconds < math.inf:
            raise reject("--time-budget", self.seconds, "accepted: above 0 and finite")
        if self.objectives > 1 and self.scheduler != "none":
            raise reject("--scheduler", self.scheduler, "compares errors only; accepted with two objectives: none")
        if self.objectives > 1 and self.sampler in ("gp", "cmaes"):
            raise reject("--sampler", self.sampler, "accepted with two objectives: nsga2, tpe, random")
        if self.scheduler == "pbt":
            self._check_population()

    def _check_population(self) -> None:
        if self.sampler != "random":
            raise reject("--sampler", self.sampler, "accepted with --scheduler pbt: random, from where a population starts")
        if self.seconds is not None:
            raise reject("--time-budget", self.seconds, "not accepted with --scheduler pbt, which trains all its members")
        if self.trials is None or self.trials < MIN_POPULATION:
            raise reject("--trials", self.trials, f"accepted with --scheduler pbt: {MIN_POPULATION} or more, its population")


class Decision(Enum):
    """What becomes of a trial that has reported an epoch."""

    CONTINUE = auto()
    PRUNE = auto()
    """It ends, as `pruned`."""
    PAUSE = auto()
    """It ends for now: `ask` gives it again, or `dropped` names it."""


@dataclass(frozen=True, kw_only=True)
class Suggestion:
    """A trial to begin or to go on with."""

    number: int
    values: Mapping[str, Any]
    """By dotted field, as `override` takes them."""
    branch: tuple[int, int] | None = None
    """Number and epoch of a trial whose state it may start from: that is what its own first epochs would give."""


@dataclass(frozen=True, kw_only=True)
class TrialHistory:
    """A trial of an earlier submission."""

    number: int
    values: Mapping[str, Any]
    """As they were suggested: neither fewer nor more fields."""
    outcome: str
    """`completed`, `pruned` or `diverged`; with any other it is to be trained further."""
    errors: Mapping[int, float]
    """In percent, by epoch from 1."""
    results: tuple[float, ...] = ()
    seconds: float = 0.0


class Optimizer:
    """The search inside one cell."""

    def __init__(self, space: Space, settings: SearchSettings) -> None:
        self._settings = settings
        self._proposals = Suggester(
            space, settings.sampler, trials=settings.trials, seed=settings.seed, objectives=settings.objectives
        )
        self._size = settings.trials or 0 if settings.scheduler == "pbt" else 0
        """Of the population; 0: there is none."""
        self._ranges = _perturbable(space) if self._size else {}
        self._members: dict[int, Member] = {}
        self._seconds: dict[int, float] = {}
        self._running: set[int] = set()
        self._again: list[int] = []
        self._answers: dict[int, tuple[int, Decision]] = {}
        """The newest epoch of a trial that was decided on, and how."""
        self._next = 0
        self._free: list[int] = []
        """Numbers below that no trial has."""
        self._fresh: int | None = None
        """The trial asked for last, if its configuration was drawn."""
        self._exhausted = False

    def load_history(self, history: Sequence[TrialHistory]) -> int:
        """Learns what earlier submissions found, before the first `ask`; returns how many trials lie outside the space.

        Those are passed over, but keep their numbers. Trials that have no result yet are the first to be asked for again.

        Raises:
            ConfigError: a population is told trials that are not its own.
        """
        outside = 0
        self._next = max((told.number + 1 for told in history), default=0)
        # Some may have been handed out, and killed before anybody heard of them.
        self._free = sorted({*range(self._next)} - {told.number for told in history})
        for told in sorted(history, key=lambda told: told.number):
            if self._enter(told):
                self._answers[told.number] = max(told.errors, default=1) - 1, Decision.CONTINUE
                if told.outcome in ("completed", "pruned", "diverged"):
                    self.end_trial(told.number, told.outcome, told.results, told.seconds)
                else:
                    self._again.append(told.number)
            else:
                outside += 1
        if outside and self._size:
            accepted = "accepted: --trials and --space as before, or another --search-seed"
            raise reject("--scheduler", "pbt", f"this search has trials that are not of such a population; {accepted}")
        return outside

    def ask(self) -> Suggestion | None:
        """The next trial; None: none now, or, if `finished`, never again."""
        self._fresh = None
        if self._size:
            return self._ask_population()
        if self._again:
            return self._resumed(self._again.pop(0))
        return None if self._used_up else self._drawn(self._free[0] if self._free else self._next)

    @property
    def finished(self) -> bool:
        """Whether nothing runs and nothing is left to ask for."""
        left = ready_members(self._standing(), self._members, self._running) if self._size else self._again or not self._used_up
        return not self._running and not left

    @property
    def known_trials(self) -> Collection[int]:
        """Of the trials that it knows: begun, or told and of its space."""
        return self._members.keys()

    @property
    def budget_spent(self) -> tuple[int, float]:
        """Trials begun, and the seconds of training that were told."""
        return len(self._members), sum(self._seconds.values())

    def report_epoch(self, number: int, epoch: int, error: float) -> Decision:
        """Learns a trial's error in percent after an epoch. The same epoch again, as after a restart, changes nothing."""
        now = self._standing() if self._size else None
        self._members[number].errors.setdefault(epoch, error)
        if now:
            return self._decided_together(number, epoch, now)
        last, answer = self._answers.get(number, (0, Decision.CONTINUE))
        if epoch > last:
            answer = self._decided(number, epoch)
            self._answers[number] = epoch, answer
        return answer

    def end_trial(self, number: int, outcome: str, results: Sequence[float] = (), seconds: float = 0.0) -> None:
        """Learns that a trial is over, for this submission at least.

        Args:
            results: of a completed trial, one for each objective.
            seconds: training time of all its epochs, those of earlier submissions included.
        """
        member = self._members[number]
        member.outcome = outcome
        self._seconds[number] = seconds
        self._running.discard(number)
        self._answers.pop(number, None)
        if not self._is_branch(number):
            self._proposals.tell(number, outcome, results, member.errors)

    def reject_suggestion(self, number: int) -> None:
        """Learns that the trial just asked for cannot be begun. If its configuration was drawn, it is given another, at no cost."""
        if number != self._fresh:
            self.end_trial(number, "failed")
            return
        self._running.discard(number)
        del self._members[number]
        self._proposals.reject(number)
        self._free.insert(0, number)

    def evicted(self) -> Sequence[int]:
        """Members of a population that waited and have lost their place to a branch: they are to end, as `pruned`."""
        return evicted_members(self._standing(), self._members, self._running) if self._size else ()

    @property
    def _used_up(self) -> bool:
        trials, seconds = self.budget_spent
        most, longest = self._settings.trials, self._settings.seconds
        return self._exhausted or (most is not None and trials >= most) or (longest is not None and seconds >= longest)

    def _is_branch(self, number: int) -> bool:
        return 0 < self._size <= number

    def _enter(self, told: TrialHistory) -> bool:
        """Learns of a trial of an earlier submission; returns False if it lies outside the space."""
        values = {name: convert(name, value) for name, value in told.values.items()}
        if (CHANGES in values) != self._is_branch(told.number):
            return False
        if not self._is_branch(told.number) and not self._proposals.add_known(told.number, values):
            return False
        self._members[told.number] = Member(values=values, errors=dict(told.errors))
        self._seconds[told.number] = told.seconds
        return True

    def _drawn(self, number: int) -> Suggestion | None:
        """A new trial."""
        values = self._proposals.suggest(number)
        if values is None:
            self._exhausted = True
            return None
        self._members[number] = Member(values=values)
        if number in self._free:
            self._free.remove(number)
        self._next, self._fresh = max(self._next, number + 1), number
        return self._resumed(number)

    def _resumed(self, number: int, branch: Branch | None = None) -> Suggestion:
        self._running.add(number)
        start = (branch.parent, branch.epoch) if branch else None
        return Suggestion(number=number, values=self._members[number].values, branch=start)

    def _decided(self, number: int, epoch: int) -> Decision:
        if self._settings.scheduler == "none":
            return Decision.CONTINUE
        errors = {other: member.errors for other, member in self._members.items()}
        hyperband = self._settings.scheduler == "hyperband"
        on = should_continue(number, epoch, errors, epochs=self._settings.epochs, hyperband=hyperband)
        return Decision.CONTINUE if on else Decision.PRUNE

    def _standing(self) -> GenerationState:
        settings = self._settings
        return replay_generations(self._members, self._ranges, size=self._size, epochs=settings.epochs, seed=settings.seed)

    def _ask_population(self) -> Suggestion | None:
        now = self._standing()
        for number in ready_members(now, self._members, self._running):
            branch = now.branches.get(number)
            if branch and number not in self._members:
                self._members[number] = Member(values=branch.values)
            if number in self._members:
                return self._resumed(number, branch)
            if suggestion := self._drawn(number):
                return suggestion
            self._members[number] = Member(values={}, outcome="failed")  # the space has fewer configurations
        return None

    def _decided_together(self, number: int, epoch: int, now: GenerationState) -> Decision:
        if number not in now.members or not math.isfinite(self._members[number].errors[epoch]):
            return Decision.PRUNE
        if now.epoch is None or epoch < now.epoch:
            return Decision.CONTINUE
        self._running.discard(number)
        return Decision.PAUSE


def _perturbable(space: Space) -> dict[str, tuple[float, float]]:
    found = {name: ends for name, ends in numeric_ranges(space).items() if name in PERTURBABLE}
    if not found:
        raise reject(
            "--scheduler", "pbt", f"needs a range to search of one of {', '.join(PERTURBABLE)}, which can change in a training"
        )
    return found
