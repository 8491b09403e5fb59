"""State of a study's searches, one per cell: suggested and ended trials, and the configurations chosen."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

from ablations.engine.search.optimizer import Decision, Optimizer, Suggestion, TrialHistory
from ablations.engine.search.plan import ChosenConfiguration, ScoredTrial, SearchPlan, choose_configurations
from ablations.engine.study.plan import Cell, Run, SearchTrial
from ablations.engine.study.request import OBJECTIVES
from ablations.engine.tracking.search_trials import UNFINISHED_OUTCOMES, PastTrial
from resnet_core import ConfigError

MAX_INVALID_SUGGESTIONS = 100
"""Number of consecutive suggestions of invalid configurations after which a search ends with an error."""


class SearchState:
    """State of a study's searches.

    Args:
        plan: the study.
        past: its trials that MLflow has.
        adopt: adds a run that another search has trained to this search as a trial; returns None if there is no such run.
    """

    def __init__(self, plan: SearchPlan, past: Iterable[PastTrial], adopt: Callable[[Run], PastTrial | None]) -> None:
        self.plan, self.adopt = plan, adopt
        self.optimizers = {cell: Optimizer(plan.spaces[cell], plan.settings, plan.workload.schema) for cell in plan.trial_specs}
        self.errors: dict[Cell, ConfigError] = {}
        """Errors that ended searches early, by cell."""
        self._tag = plan.to_design().tag
        self.ended_trials_in: Counter[Cell] = Counter()
        """Number of ended trials by cell."""
        self._longest: Counter[Cell] = Counter()
        """Largest number of epochs that any trial has trained, by cell."""
        self._started: Counter[Cell] = Counter()
        """Number of started trials by cell."""
        self._invalid: Counter[Cell] = Counter()
        """Number of consecutive invalid suggestions by cell."""
        self._runs: dict[tuple[Cell, int], Run] = {}
        self._metrics: dict[str, dict[int, Mapping[str, float]]] = {}
        """Metrics of running trials, by fingerprint and epoch."""
        self._scored: dict[Cell, dict[int, ScoredTrial]] = {cell: {} for cell in self.optimizers}
        self.trials_outside_space = self._load_history(past)
        """Number of past trials that lie outside the space searched now."""

    @property
    def is_finished(self) -> bool:
        """True if all searches have ended."""
        return all(cell in self.errors or optimizer.finished for cell, optimizer in self.optimizers.items())

    @property
    def ended_trials(self) -> int:
        """Number of ended trials of all searches."""
        return self.ended_trials_in.total()

    @property
    def fraction_done(self) -> float:
        """Approximate fraction of all budgets that is used, from 0 to 1."""
        return sum(map(self._fraction_done, self.optimizers)) / len(self.optimizers)

    def evicted_runs(self) -> list[Run]:
        """Return paused runs that were evicted from a population and must end as `pruned`."""
        return [self._runs[cell, number] for cell, optimizer in self.optimizers.items() for number in optimizer.evicted()]

    def next_run(self, is_free: Callable[[Run], bool]) -> Run | None:
        """Return the next run, from the search with the fewest started trials, so that all advance evenly; None if there is none.

        Args:
            is_free: returns whether no other study is training a run. Runs of other studies are skipped.
        """
        for cell in sorted(self.optimizers, key=lambda cell: self._started[cell]):
            run = self._next_in(cell, is_free)
            if run is not None:
                self._started[cell] += 1
                return run
        return None

    def parent_run(self, run: Run) -> Run | None:
        """Return the run from whose checkpoint another one starts; None if it starts from scratch."""
        assert run.trial is not None
        return self._runs.get((run.cell, run.trial.branch[0])) if run.trial.branch else None

    def report_epoch(self, run: Run, epoch: int, metrics: Mapping[str, float]) -> Decision:
        """Record the metrics of an epoch; return whether the run continues, pauses or is pruned."""
        assert run.trial is not None
        self._metrics.setdefault(run.fingerprint, {})[epoch] = metrics
        self._longest[run.cell] = max(self._longest[run.cell], epoch)
        for reached in self._default_epochs(run, epoch):
            decision = self.optimizers[run.cell].report_epoch(run.trial.number, reached, metrics[self.plan.trial_metric.name])
            if decision is not Decision.CONTINUE:
                return decision
        return Decision.CONTINUE

    def record_end(self, run: Run, outcome: str) -> None:
        """Record the end of a run."""
        self.ended_trials_in[run.cell] += 1
        trial, metrics = run.trial, self._metrics.pop(run.fingerprint, {})
        assert trial is not None
        results: tuple[float, ...] = ()
        if outcome == "completed":
            found = self._scored[run.cell][trial.number] = self._scored_trial(trial, metrics[max(metrics)])
            results = found.objectives
        start = trial.branch[1] if trial.branch else 0
        seconds = sum(of_epoch["epoch_seconds"] for epoch, of_epoch in metrics.items() if epoch > start)
        self.optimizers[run.cell].end_trial(trial.number, outcome, results, seconds)

    def choices(self) -> dict[Cell, Sequence[ChosenConfiguration]]:
        """Return the configurations that each search chooses, by cell."""
        metric = self.plan.trial_metric
        return {cell: choose_configurations(scored, metric) for cell, scored in self._scored.items()}

    def _fraction_done(self, cell: Cell) -> float:
        settings, optimizer = self.plan.settings, self.optimizers[cell]
        if cell in self.errors or optimizer.finished:
            return 1.0
        if settings.scheduler == "pbt":
            return self._longest[cell] / settings.epochs
        fractions = [self.ended_trials_in[cell] / settings.trials] if settings.trials else []
        fractions += [optimizer.budget_spent[1] / settings.seconds] if settings.seconds else []
        return min(max(fractions), 1.0)

    def _next_in(self, cell: Cell, is_free: Callable[[Run], bool]) -> Run | None:
        optimizer = self.optimizers[cell]
        while cell not in self.errors and (suggestion := optimizer.ask()) is not None:
            run = self._make_run(cell, suggestion)
            if run is None:
                continue
            self._invalid[cell] = 0
            self._runs[cell, suggestion.number] = run
            if past := self.adopt(run):
                self._add_finished(cell, past)
            elif is_free(run):
                return run
            else:
                optimizer.reject_suggestion(suggestion.number)
        return None

    def _make_run(self, cell: Cell, suggestion: Suggestion) -> Run | None:
        trial = SearchTrial(number=suggestion.number, tag=self._tag, values=suggestion.values, branch=suggestion.branch)
        try:
            return self.plan.trial_run(cell, trial)
        except ConfigError as error:  # values that contradict each other or the levels of the cell
            self.optimizers[cell].reject_suggestion(suggestion.number)
            self._invalid[cell] += 1
            if self._invalid[cell] >= MAX_INVALID_SUGGESTIONS:
                count = f"{MAX_INVALID_SUGGESTIONS} suggested configurations in a row"
                self.errors[cell] = ConfigError(f"--space: {count} are invalid, the last because {error}")
            return None

    def _default_epochs(self, run: Run, epoch: int) -> range:
        """Return the epochs of a default training to which an epoch of this run corresponds.

        Other batch sizes make a training longer or shorter in epochs.
        """
        whole = self.plan.total_epochs(run) or 1
        return range((epoch - 1) * self.plan.settings.epochs // whole + 1, epoch * self.plan.settings.epochs // whole + 1)

    def _load_history(self, past: Iterable[PastTrial]) -> int:
        """Pass past trials to the optimizers; return the number of those outside the space."""
        of_cell: dict[str, list[PastTrial]] = {str(cell): [] for cell in self.optimizers}
        for each in past:
            of_cell.get(each.cell, []).append(each)
        outside = 0
        for cell, optimizer in self.optimizers.items():
            trials = of_cell[str(cell)]
            self._started[cell] = len(trials)
            outside += optimizer.load_history([self._history_of(cell, each) for each in trials])
            for each in trials:
                if each.trial.number in optimizer.known_trials:
                    self._runs[cell, each.trial.number] = self.plan.trial_run(cell, each.trial)
                    self.ended_trials_in[cell] += self._has_ended(each)
                    self._add_score(cell, each)
        return outside

    def _has_ended(self, past: PastTrial) -> bool:
        """Return whether a past trial has ended. Without a scheduler that prunes, a pruned trial is continued."""
        return past.outcome not in (*UNFINISHED_OUTCOMES, *(("pruned",) if self.plan.settings.scheduler == "none" else ()))

    def _history_of(self, cell: Cell, past: PastTrial) -> TrialHistory:
        """Return a past trial in the form in which optimizers read it."""
        run, completed = self.plan.trial_run(cell, past.trial), past.record.completed
        return TrialHistory(
            number=past.trial.number,
            values=past.trial.values,
            outcome=past.outcome if self._has_ended(past) else "stopped",
            values_by_epoch={
                reached: of["value"] for epoch, of in past.epochs.items() for reached in self._default_epochs(run, epoch)
            },
            results=self._scored_trial(past.trial, past.record.metrics).objectives if completed else (),
            seconds=past.seconds,
        )

    def _add_finished(self, cell: Cell, past: PastTrial) -> None:
        """Pass an adopted trial to the optimizer, whose decisions after its epochs no longer matter."""
        optimizer, known = self.optimizers[cell], self._history_of(cell, past)
        for epoch, value in known.values_by_epoch.items():
            optimizer.report_epoch(known.number, epoch, value)
        optimizer.end_trial(known.number, known.outcome, known.results, known.seconds)
        self.ended_trials_in[cell] += 1
        self._add_score(cell, past)

    def _add_score(self, cell: Cell, past: PastTrial) -> None:
        if past.record.completed:
            self._scored[cell][past.trial.number] = self._scored_trial(past.trial, past.record.metrics)

    def _scored_trial(self, trial: SearchTrial, metrics: Mapping[str, float]) -> ScoredTrial:
        """Return the scores of a trial, from the metrics of its last epoch."""
        metric, objective = self.plan.trial_metric, self.plan.objective
        return ScoredTrial(
            values=trial.values,
            value=metrics[metric.name],
            loss=metrics.get(f"{metric.split}/loss", math.inf),
            cost=metrics[OBJECTIVES[objective]] if objective else None,
        )
