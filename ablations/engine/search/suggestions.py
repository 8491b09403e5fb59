"""Suggestions for new trials: an Optuna study for each search, filled with the trials that MLflow has recorded."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from optuna.trial import Trial, TrialState

from ablations.engine.search.samplers import make_sampler
from ablations.engine.search.space import FIELDS, Space, field_values, params_for_values
from resnet_core.schema import Schema

MAX_REPEATED_SUGGESTIONS = 50
"""Number of suggestions in a row that repeat known configurations, after which the space counts as exhausted."""


class Suggester:
    """Source of configurations for new trials, derived from earlier trials and their results.

    Args:
        space: the space to search.
        sampler: `tpe`, `random` or `gp`.
        trials: budget of the search; None if it has none.
        seed: seed of the search. A suggestion depends on it, on the trials known and on the new trial's number only.
        objectives: number of objectives.
        schema: fields of the configurations.
        worst: worst possible score of the first objective, which is minimized; -inf if there is none.
    """

    def __init__(
        self,
        space: Space,
        sampler: str,
        *,
        trials: int | None,
        seed: int,
        objectives: int,
        schema: Schema = FIELDS,
        worst: float = -math.inf,
    ) -> None:
        self._schema = schema
        self._space, self._sampler, self._budget, self._seed, self._objectives = space, sampler, trials, seed, objectives
        self._study = optuna.create_study(directions=["minimize"] * objectives)
        self._worst = worst
        self._open: dict[int, Trial] = {}
        """Trials without a result, by number."""
        self._known: set[str] = set()
        """Keys of all configurations that were suggested or added."""
        self._number, self._draws = -1, 0
        """Number of the trial that `suggest` was last called for, and number of suggestions drawn for it."""
        self._discarded: list[Trial] = []
        """Discarded suggestions for the current number. Optuna sees them as running trials, so that it suggests something else."""

    def add_known(self, number: int, values: Mapping[str, Any]) -> bool:
        """Add a trial of an earlier submission; return False if its configuration lies outside the space.

        Numbers must be added in ascending order.
        """
        params = params_for_values(self._space, values, self._schema)
        if params is None:
            return False
        self._study.enqueue_trial(params)
        self._open[number] = self._ask()
        self._known.add(_key(values))
        return True

    def suggest(self, number: int) -> dict[str, Any] | None:
        """Return a configuration for a new trial, or None if the space is exhausted.

        A second call with the same number returns another configuration.
        """
        if number != self._number:
            for trial in self._discarded:  # a resumed search would not know them, so later suggestions must not depend on them
                self._study.tell(trial, state=TrialState.FAIL)
            self._number, self._draws, self._discarded = number, 0, []
        for _ in range(MAX_REPEATED_SUGGESTIONS):
            seeds = (self._seed, number, self._draws)
            self._study.sampler = make_sampler(self._sampler, seeds, trials=self._budget, objectives=self._objectives)
            self._draws += 1
            trial = self._ask()
            values = field_values(trial.params, self._schema)
            if _key(values) not in self._known:
                self._open[number] = trial
                self._known.add(_key(values))
                return values
            self._discarded.append(trial)
        return None

    def reject(self, number: int) -> None:
        """Discard the last suggestion, which cannot be trained. It is not suggested again."""
        self._discarded.append(self._open.pop(number))

    def tell(self, number: int, outcome: str, results: Sequence[float], scores: Mapping[int, float]) -> None:
        """Record how a trial ended.

        TPE ranks a pruned trial below all completed ones, by its number of epochs and its last score, and a diverged trial last.
        GP uses completed trials only and would return to regions where none completes, so it gets the last score as the result,
        and for a trial without one the worst score so far.

        Args:
            number: the trial's number.
            outcome: `completed`, `pruned` or `diverged`; any other one counts as failed, and samplers ignore it.
            results: one score for each objective of a completed trial; less is better.
            scores: score of the first objective by epoch.
        """
        trial, last = self._open.pop(number), scores[max(scores)] if scores else math.nan
        self._worst = max([self._worst, *filter(math.isfinite, scores.values())])
        if outcome == "completed":
            self._study.tell(trial, list(results))
        elif outcome not in ("pruned", "diverged"):
            self._study.tell(trial, state=TrialState.FAIL)
        elif self._sampler in ("tpe", "random"):
            if outcome == "pruned" and math.isfinite(last):
                trial.report(last, max(scores))
            self._study.tell(trial, state=TrialState.PRUNED)
        else:
            self._study.tell(trial, last if outcome == "pruned" and math.isfinite(last) else self._worst_score)

    @property
    def _worst_score(self) -> float:
        return self._worst if math.isfinite(self._worst) else 0.0

    def _ask(self) -> Trial:
        trial = self._study.ask()
        self._space(trial)
        return trial


def _key(values: Mapping[str, Any]) -> str:
    return json.dumps(values, sort_keys=True)
