"""The optimizer of a search: it suggests configurations, decides which trials continue, and resumes after a crash.

The state of an optimizer is a function of the trials that it knows: a new optimizer with the same history continues as the old one
would have. Its suggestions depend only on the history, the seed and the trial's number.
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
from ablations.engine.search.space import FIELDS, Space, numeric_ranges
from ablations.engine.search.successive_halving import should_continue
from ablations.engine.search.suggestions import Suggester
from ablations.engine.study.request import SAMPLERS, SCHEDULERS
from ablations.engine.task.metric import PERCENT, Metric
from resnet_core import ConfigError
from resnet_core.fields import reject
from resnet_core.schema import Schema


@dataclass(frozen=True, kw_only=True)
class SearchSettings:
    """Sampler, scheduler and budget of a search.

    Raises:
        ConfigError: two settings cannot be combined. The message names the options of the command line.
    """

    sampler: str
    scheduler: str
    trials: int | None
    """Number of trials to start; with `pbt`, the size of the population. None: no limit."""
    seconds: float | None
    """Training time of ended trials after which no trial is started, in seconds. None: no limit."""
    epochs: int
    """Epochs of a trial that is not stopped early."""
    seed: int
    metric: Metric
    """Metric by which trials are scored."""
    objectives: int = 1
    """Number of objectives. The first one is the metric; the second one, a cost, is minimized."""

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
            raise reject("--scheduler", self.scheduler, "compares one objective only; accepted with two objectives: none")
        if self.objectives > 1 and self.sampler == "gp":
            raise reject("--sampler", self.sampler, "accepted with two objectives: tpe, random")
        if self.scheduler == "pbt":
            self._check_population()

    def _check_population(self) -> None:
        if self.sampler != "random":
            raise reject("--sampler", self.sampler, "accepted with --scheduler pbt: random, which draws the first generation")
        if self.seconds is not None:
            raise reject("--time-budget", self.seconds, "not accepted with --scheduler pbt, which trains all its members")
        if self.trials is None or self.trials < MIN_POPULATION:
            raise reject("--trials", self.trials, f"accepted with --scheduler pbt: {MIN_POPULATION} or more, its population")


class Decision(Enum):
    """The decision about a trial that has reported an epoch."""

    CONTINUE = auto()
    PRUNE = auto()
    """Stop the trial for good, with the outcome `pruned`."""
    PAUSE = auto()
    """Stop the trial for now. Later `ask` returns it again, or `evicted` lists it."""


@dataclass(frozen=True, kw_only=True)
class Suggestion:
    """A trial to start or to resume."""

    number: int
    values: Mapping[str, Any]
    """Values by dotted field name, as `override` takes them."""
    branch: tuple[int, int] | None = None
    """Number and epoch of a trial whose checkpoint equals the result of this trial's own first epochs, if there is one."""


@dataclass(frozen=True, kw_only=True)
class TrialHistory:
    """A trial of an earlier submission."""

    number: int
    values: Mapping[str, Any]
    """Values by dotted field name: exactly the fields that were suggested."""
    outcome: str
    """`completed`, `pruned` or `diverged`. A trial with any other outcome is trained further."""
    values_by_epoch: Mapping[int, float]
    """Value of the metric by epoch, from 1."""
    results: tuple[float, ...] = ()
    """Value of each objective; empty unless the trial is completed."""
    seconds: float = 0.0
    """Training time in seconds."""


class Optimizer:
    """The search inside one cell of the study.

    It takes values of the metric as trials report them, and turns them into scores, of which less is better, for samplers and
    schedulers.
    """

    def __init__(self, space: Space, settings: SearchSettings, schema: Schema = FIELDS) -> None:
        self._settings, self._schema = settings, schema
        self._suggester = Suggester(
            space,
            settings.sampler,
            trials=settings.trials,
            seed=settings.seed,
            objectives=settings.objectives,
            schema=schema,
            worst=_worst_score(settings.metric),
        )
        self._size = settings.trials or 0 if settings.scheduler == "pbt" else 0
        """Size of the population; 0 without population-based training."""
        self._ranges = _perturbable_ranges(space) if self._size else {}
        self._members: dict[int, Member] = {}
        self._seconds: dict[int, float] = {}
        """Training time of ended trials in seconds, by number."""
        self._running: set[int] = set()
        self._unfinished: list[int] = []
        """Trials of earlier submissions that are to be trained further."""
        self._decisions: dict[int, tuple[int, Decision]] = {}
        """Last epoch of each running trial for which a decision was made, and the decision."""
        self._next = 0
        """Lowest number above those of all trials."""
        self._unused: list[int] = []
        """Numbers below `_next` that no trial has, ascending."""
        self._last_new: int | None = None
        """Number of the trial that the last `ask` returned, if its configuration is new."""
        self._exhausted = False

    def load_history(self, history: Sequence[TrialHistory]) -> int:
        """Load the trials of earlier submissions, before the first `ask`; return how many lie outside the space.

        Trials outside the space are ignored, but their numbers stay taken. Unfinished trials are the first that `ask` returns.

        Raises:
            ConfigError: with population-based training, a trial does not belong to this population.
        """
        outside = 0
        self._next = max((past.number + 1 for past in history), default=0)
        # A trial may have been killed between its suggestion and its first record in MLflow.
        self._unused = sorted({*range(self._next)} - {past.number for past in history})
        for past in sorted(history, key=lambda past: past.number):
            if self._add_known(past):
                self._decisions[past.number] = max(past.values_by_epoch, default=1) - 1, Decision.CONTINUE
                if past.outcome in ("completed", "pruned", "diverged"):
                    self.end_trial(past.number, past.outcome, past.results, past.seconds)
                else:
                    self._unfinished.append(past.number)
            else:
                outside += 1
        if outside and self._size:
            accepted = "accepted: --trials and --space as before, or another --search-seed"
            raise reject("--scheduler", "pbt", f"this search has trials that do not belong to such a population; {accepted}")
        return outside

    def ask(self) -> Suggestion | None:
        """Return the next trial, or None if no trial can start now. If `finished` is True, none will start later either."""
        self._last_new = None
        if self._size:
            return self._ask_population()
        if self._unfinished:
            return self._start(self._unfinished.pop(0))
        return None if self._budget_used_up else self._suggest(self._unused[0] if self._unused else self._next)

    @property
    def finished(self) -> bool:
        """True if no trial is running and `ask` will return no more trials."""
        if self._running:
            return False
        if self._size:
            return not ready_members(self._generation(), self._members, self._running)
        return not self._unfinished and self._budget_used_up

    @property
    def known_trials(self) -> Collection[int]:
        """Numbers of the trials that were started, or loaded and inside the space."""
        return self._members.keys()

    @property
    def budget_spent(self) -> tuple[int, float]:
        """Number of trials started, and training time of ended trials in seconds."""
        return len(self._members), sum(self._seconds.values())

    def report_epoch(self, number: int, epoch: int, value: float) -> Decision:
        """Record the value of the metric of a trial after an epoch, and decide whether the trial continues.

        Reporting an epoch again, as after a restart, changes nothing and returns the same decision.
        """
        generation = self._generation() if self._size else None
        self._members[number].scores.setdefault(epoch, self._settings.metric.minimized(value))
        if generation:
            return self._decide_in_population(number, epoch, generation)
        last, decision = self._decisions.get(number, (0, Decision.CONTINUE))
        if epoch > last:
            decision = self._decide(number, epoch)
            self._decisions[number] = epoch, decision
        return decision

    def end_trial(self, number: int, outcome: str, results: Sequence[float] = (), seconds: float = 0.0) -> None:
        """Record that a trial has ended, at least in this submission.

        Args:
            number: the trial's number.
            outcome: `completed`, `pruned`, `diverged` or a failure.
            results: value of each objective of a completed trial.
            seconds: training time of all its epochs, including those of earlier submissions.
        """
        member = self._members[number]
        member.outcome = outcome
        self._seconds[number] = seconds
        self._running.discard(number)
        self._decisions.pop(number, None)
        if not self._is_branch(number):
            scores = [self._settings.metric.minimized(value) for value in results[:1]] + [*results[1:]]
            self._suggester.tell(number, outcome, scores, member.scores)

    def reject_suggestion(self, number: int) -> None:
        """Record that the trial which `ask` returned last cannot be started.

        If its configuration is new, the next `ask` suggests another one for the same number, and no budget is spent. Otherwise the
        trial ends as `failed`.
        """
        if number != self._last_new:
            self.end_trial(number, "failed")
            return
        self._running.discard(number)
        del self._members[number]
        self._suggester.reject(number)
        self._unused.insert(0, number)

    def evicted(self) -> Sequence[int]:
        """Return the paused members of a population that branches have replaced. The caller ends them as `pruned`."""
        return evicted_members(self._generation(), self._members, self._running) if self._size else ()

    @property
    def _budget_used_up(self) -> bool:
        spent, budget = self.budget_spent, (self._settings.trials, self._settings.seconds)
        return self._exhausted or any(limit is not None and used >= limit for used, limit in zip(spent, budget, strict=True))

    def _is_branch(self, number: int) -> bool:
        return 0 < self._size <= number

    def _add_known(self, past: TrialHistory) -> bool:
        """Add a trial of an earlier submission; return False if it lies outside the space."""
        values = {name: self._schema.convert(name, value) for name, value in past.values.items()}
        if (CHANGES in values) != self._is_branch(past.number):
            return False
        if not self._is_branch(past.number) and not self._suggester.add_known(past.number, values):
            return False
        scores = {epoch: self._settings.metric.minimized(value) for epoch, value in past.values_by_epoch.items()}
        self._members[past.number] = Member(values=values, scores=scores)
        self._seconds[past.number] = past.seconds
        return True

    def _suggest(self, number: int) -> Suggestion | None:
        """Start a trial with a new configuration; return None if the space is exhausted."""
        values = self._suggester.suggest(number)
        if values is None:
            self._exhausted = True
            return None
        self._members[number] = Member(values=values)
        if number in self._unused:
            self._unused.remove(number)
        self._next, self._last_new = max(self._next, number + 1), number
        return self._start(number)

    def _start(self, number: int, branch: Branch | None = None) -> Suggestion:
        self._running.add(number)
        start = (branch.parent, branch.epoch) if branch else None
        return Suggestion(number=number, values=self._members[number].values, branch=start)

    def _decide(self, number: int, epoch: int) -> Decision:
        if self._settings.scheduler == "none":
            return Decision.CONTINUE
        scores = {other: member.scores for other, member in self._members.items()}
        hyperband = self._settings.scheduler == "hyperband"
        promising = should_continue(number, epoch, scores, epochs=self._settings.epochs, hyperband=hyperband)
        return Decision.CONTINUE if promising else Decision.PRUNE

    def _generation(self) -> GenerationState:
        settings = self._settings
        return replay_generations(self._members, self._ranges, size=self._size, epochs=settings.epochs, seed=settings.seed)

    def _ask_population(self) -> Suggestion | None:
        generation = self._generation()
        for number in ready_members(generation, self._members, self._running):
            branch = generation.branches.get(number)
            if branch and number not in self._members:
                self._members[number] = Member(values=branch.values)
            if number in self._members:
                return self._start(number, branch)
            if suggestion := self._suggest(number):
                return suggestion
            self._members[number] = Member(values={}, outcome="failed")  # the space has too few configurations for the population
        return None

    def _decide_in_population(self, number: int, epoch: int, generation: GenerationState) -> Decision:
        if number not in generation.members or not math.isfinite(self._members[number].scores[epoch]):
            return Decision.PRUNE
        if generation.epoch is None or epoch < generation.epoch:
            return Decision.CONTINUE
        self._running.discard(number)
        return Decision.PAUSE


def _worst_score(metric: Metric) -> float:
    """Return the worst possible score: that of a share of 0 or 100 %, or -inf for a metric without bounds."""
    worst_share = 100.0 if metric.better == "lower" else 0.0
    return float(metric.minimized(worst_share)) if metric.unit == PERCENT else -math.inf


def _perturbable_ranges(space: Space) -> dict[str, tuple[float, float]]:
    """Return the range of each field that population-based training can perturb; raise ConfigError if there is none."""
    found = {name: ends for name, ends in numeric_ranges(space).items() if name in PERTURBABLE}
    if not found:
        accepted = f"accepted: --space with a range for one of {', '.join(PERTURBABLE)}, which can change during a training"
        raise reject("--scheduler", "pbt", accepted)
    return found
