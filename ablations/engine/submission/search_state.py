"""The searches of a study, one in each cell: what they try next, what became of it, and what they choose."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

from ablations.engine.search.optimizer import Decision, Optimizer, Suggestion, TrialHistory
from ablations.engine.search.plan import ChosenConfiguration, ScoredTrial, SearchPlan, choose_configurations
from ablations.engine.study.plan import Cell, Run, SearchTrial
from ablations.engine.study.request import OBJECTIVES
from ablations.engine.tracking.search_trials import UNFINISHED_OUTCOMES, PastTrial
from resnet_core import ConfigError

MAX_REFUSED = 100
"""Configurations that do not exist, one after another, before a search gives up."""


class SearchState:
    """The searches of a study.

    Args:
        plan: the study.
        past: its trials that MLflow knows.
        adopt: makes a run that has its result already, whichever study trained it, a trial of this one; None for others.
    """

    def __init__(self, plan: SearchPlan, past: Iterable[PastTrial], adopt: Callable[[Run], PastTrial | None]) -> None:
        self.plan, self.adopt = plan, adopt
        self.optimisers = {cell: Optimizer(plan.spaces[cell], plan.settings) for cell in plan.trial_specs}
        self.errors: dict[Cell, ConfigError] = {}
        """Why a search cannot go on."""
        self._tag = plan.to_design().tag
        self.ended_in: Counter[Cell] = Counter()
        """Trials that have come to their end."""
        self._longest: Counter[Cell] = Counter()
        """Epochs that a trial has trained, at most."""
        self._asked: Counter[Cell] = Counter()
        self._refused: Counter[Cell] = Counter()
        self._runs: dict[tuple[Cell, int], Run] = {}
        self._metrics: dict[str, dict[int, Mapping[str, float]]] = {}
        """Of runs that are under way, by epoch."""
        self._scored: dict[Cell, dict[int, ScoredTrial]] = {cell: {} for cell in self.optimisers}
        self.outside = self._retell(past)
        """How many past trials are not of the space that is searched now."""

    @property
    def finished(self) -> bool:
        return all(cell in self.errors or optimiser.finished for cell, optimiser in self.optimisers.items())

    @property
    def ended(self) -> int:
        """Trials that have come to their end, of all searches."""
        return self.ended_in.total()

    @property
    def share(self) -> float:
        """Of the budgets that is used up, about."""
        return sum(map(self._share, self.optimisers)) / len(self.optimisers)

    def dropped(self) -> list[Run]:
        """Runs that waited and lost their place: they are to end, as `pruned`."""
        return [self._runs[cell, number] for cell, optimiser in self.optimisers.items() for number in optimiser.evicted()]

    def next(self, is_free: Callable[[Run], bool]) -> Run | None:
        """A run of the search that has begun the fewest trials, so that all come along alike; None: there is none now.

        Args:
            is_free: whether no other study trains a run at this moment. Such a one is left to it.
        """
        for cell in sorted(self.optimisers, key=lambda cell: self._asked[cell]):
            run = self._next_in(cell, is_free)
            if run is not None:
                self._asked[cell] += 1
                return run
        return None

    def parent(self, run: Run) -> Run | None:
        """The run from whose state another one may start."""
        assert run.trial is not None
        return self._runs.get((run.cell, run.trial.branch[0])) if run.trial.branch else None

    def report(self, run: Run, epoch: int, metrics: Mapping[str, float]) -> Decision:
        """Whether a run goes on after this epoch."""
        assert run.trial is not None
        self._metrics.setdefault(run.fingerprint, {})[epoch] = metrics
        self._longest[run.cell] = max(self._longest[run.cell], epoch)
        for reached in self._reached(run, epoch):
            decision = self.optimisers[run.cell].report_epoch(run.trial.number, reached, metrics["validation/error"])
            if decision is not Decision.CONTINUE:
                return decision
        return Decision.CONTINUE

    def end(self, run: Run, outcome: str) -> None:
        """A run has come to its end."""
        self.ended_in[run.cell] += 1
        trial, metrics = run.trial, self._metrics.pop(run.fingerprint, {})
        assert trial is not None
        results: tuple[float, ...] = ()
        if outcome == "completed":
            found = self._scored[run.cell][trial.number] = _scored(trial, metrics[max(metrics)], self.plan.objective)
            results = found.objectives
        start = trial.branch[1] if trial.branch else 0
        seconds = sum(of_epoch["epoch_seconds"] for epoch, of_epoch in metrics.items() if epoch > start)
        self.optimisers[run.cell].end_trial(trial.number, outcome, results, seconds)

    def choices(self) -> dict[Cell, Sequence[ChosenConfiguration]]:
        """What each search chose."""
        return {cell: choose_configurations(scored) for cell, scored in self._scored.items()}

    def _share(self, cell: Cell) -> float:
        settings, optimiser = self.plan.settings, self.optimisers[cell]
        if cell in self.errors or optimiser.finished:
            return 1.0
        if settings.scheduler == "pbt":
            return self._longest[cell] / settings.epochs
        shares = [self.ended_in[cell] / settings.trials] if settings.trials else []
        shares += [optimiser.budget_spent[1] / settings.seconds] if settings.seconds else []
        return min(max(shares), 1.0)

    def _next_in(self, cell: Cell, is_free: Callable[[Run], bool]) -> Run | None:
        optimiser = self.optimisers[cell]
        while cell not in self.errors and (suggestion := optimiser.ask()) is not None:
            run = self._run_of(cell, suggestion)
            if run is None:
                continue
            self._refused[cell] = 0
            self._runs[cell, suggestion.number] = run
            if past := self.adopt(run):
                self._tell(cell, past)
            elif is_free(run):
                return run
            else:
                optimiser.reject_suggestion(suggestion.number)
        return None

    def _run_of(self, cell: Cell, suggestion: Suggestion) -> Run | None:
        trial = SearchTrial(number=suggestion.number, tag=self._tag, values=suggestion.values, branch=suggestion.branch)
        try:
            return self.plan.trial_run(cell, trial)
        except ConfigError as error:  # values that do not go together, or not with this cell
            self.optimisers[cell].reject_suggestion(suggestion.number)
            self._refused[cell] += 1
            if self._refused[cell] >= MAX_REFUSED:
                message = f"--space: {MAX_REFUSED} configurations in a row do not exist, the last because {error}"
                self.errors[cell] = ConfigError(message)
            return None

    def _reached(self, run: Run, epoch: int) -> range:
        """Epochs of a default training that an epoch of this one comes to: other batches may make it longer or shorter."""
        whole = run.spec.optim.total_epochs(self.plan.training_images(run))
        return range((epoch - 1) * self.plan.settings.epochs // whole + 1, epoch * self.plan.settings.epochs // whole + 1)

    def _retell(self, past: Iterable[PastTrial]) -> int:
        of_cell: dict[str, list[PastTrial]] = {str(cell): [] for cell in self.optimisers}
        for each in past:
            of_cell.get(each.cell, []).append(each)
        outside = 0
        for cell, optimiser in self.optimisers.items():
            trials = of_cell[str(cell)]
            self._asked[cell] = len(trials)
            outside += optimiser.load_history([self._told(cell, each) for each in trials])
            for each in trials:
                if each.trial.number in optimiser.known_trials:
                    self._runs[cell, each.trial.number] = self.plan.trial_run(cell, each.trial)
                    self.ended_in[cell] += self._has_ended(each)
                    self._remember(cell, each)
        return outside

    def _has_ended(self, past: PastTrial) -> bool:
        """Whether a past trial is over. Where none is to be ended early, one that was goes on."""
        return past.outcome not in (*UNFINISHED_OUTCOMES, *(("pruned",) if self.plan.settings.scheduler == "none" else ()))

    def _told(self, cell: Cell, past: PastTrial) -> TrialHistory:
        """A past trial as an optimiser is told of it."""
        run, completed = self.plan.trial_run(cell, past.trial), past.record.completed
        return TrialHistory(
            number=past.trial.number,
            values=past.trial.values,
            outcome=past.outcome if self._has_ended(past) else "stopped",
            errors={reached: of["error"] for epoch, of in past.epochs.items() for reached in self._reached(run, epoch)},
            results=_scored(past.trial, past.record.metrics, self.plan.objective).objectives if completed else (),
            seconds=past.seconds,
        )

    def _tell(self, cell: Cell, past: PastTrial) -> None:
        """Of a run that is trained already: what would have been decided on the way does not matter."""
        optimiser, known = self.optimisers[cell], self._told(cell, past)
        for epoch, error in known.errors.items():
            optimiser.report_epoch(known.number, epoch, error)
        optimiser.end_trial(known.number, known.outcome, known.results, known.seconds)
        self.ended_in[cell] += 1
        self._remember(cell, past)

    def _remember(self, cell: Cell, past: PastTrial) -> None:
        if past.record.completed:
            self._scored[cell][past.trial.number] = _scored(past.trial, past.record.metrics, self.plan.objective)


def _scored(trial: SearchTrial, metrics: Mapping[str, float], against: str | None) -> ScoredTrial:
    """What a trial came to, by the metrics of its last epoch."""
    cost = metrics[OBJECTIVES[against]] if against else None
    return ScoredTrial(values=trial.values, error=metrics["validation/error"], loss=metrics["validation/loss"], cost=cost)
