"""Configurations for new trials: Optuna's study of one search."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from optuna.trial import Trial, TrialState

from ablations.engine.search.samplers import TRIAL_NUMBER, make_sampler
from ablations.engine.search.space import Space, field_values, params_for_values

MAX_REPEATED_SUGGESTIONS = 50
"""Proposals in a row that were made before: the space has nothing new."""
WORST_ERROR = 100.0
"""In percent."""


class Suggester:
    """Proposes the configuration of a trial from those of other trials and what they gave.

    Args:
        space: what is searched.
        sampler: `tpe`, `random`, `gp`, `cmaes` or `nsga2`.
        trials: budget of the search; None: not known.
        seed: all proposals follow from it, the trials told and the new trial's number.
        objectives: results of a trial.
    """

    def __init__(self, space: Space, sampler: str, *, trials: int | None, seed: int, objectives: int) -> None:
        self._space, self._sampler, self._budget, self._seed, self._objectives = space, sampler, trials, seed, objectives
        self._study = optuna.create_study(directions=["minimize"] * objectives)
        self._open: dict[int, Trial] = {}
        self._known: set[str] = set()
        self._number, self._draws = -1, 0
        self._aside: list[Trial] = []
        """Proposals that the trial of this number was not to have: to Optuna they run, while it draws another one."""

    def add_known(self, number: int, values: Mapping[str, Any]) -> bool:
        """Learns the configuration of a trial; returns False if the space does not hold it. Numbers rise."""
        params = params_for_values(self._space, values)
        if params is None:
            return False
        self._study.enqueue_trial(params)
        self._open[number] = self._suggested(number)
        self._known.add(_key(values))
        return True

    def suggest(self, number: int) -> dict[str, Any] | None:
        """A configuration for a new trial; None if the space has no more. For the same number as before: another one."""
        if number != self._number:
            for trial in self._aside:  # others do not know of them: they may not matter to the next trial
                self._study.tell(trial, state=TrialState.FAIL)
            self._number, self._draws, self._aside = number, 0, []
        for _ in range(MAX_REPEATED_SUGGESTIONS):
            seeds = (self._seed, number, self._draws)
            self._study.sampler = make_sampler(self._sampler, seeds, trials=self._budget, objectives=self._objectives)
            self._draws += 1
            trial = self._suggested(number)
            values = field_values(trial.params)
            if _key(values) not in self._known:
                self._open[number] = trial
                self._known.add(_key(values))
                return values
            self._aside.append(trial)
        return None

    def reject(self, number: int) -> None:
        """Takes back what was just drawn: it is not to be proposed again."""
        self._aside.append(self._open.pop(number))

    def tell(self, number: int, outcome: str, results: Sequence[float], errors: Mapping[int, float]) -> None:
        """Learns how a trial ended.

        To TPE one that was ended early is worse than every completed one, by the epochs it had and its last error, and one that
        diverged is worse than all. Other samplers know completed trials only, and would come back to where none completes: to
        them the last error is a result.
        """
        trial, last = self._open.pop(number), errors[max(errors)] if errors else math.nan
        if outcome == "completed":
            self._study.tell(trial, list(results))
        elif outcome not in ("pruned", "diverged"):
            self._study.tell(trial, state=TrialState.FAIL)
        elif self._sampler in ("tpe", "random"):
            if outcome == "pruned" and math.isfinite(last):
                trial.report(last, max(errors))
            self._study.tell(trial, state=TrialState.PRUNED)
        else:
            error = last if outcome == "pruned" and math.isfinite(last) else WORST_ERROR
            self._study.tell(trial, [error, *[math.inf] * (self._objectives - 1)])

    def _suggested(self, number: int) -> Trial:
        trial = self._study.ask()
        trial.set_user_attr(TRIAL_NUMBER, number)
        self._space(trial)
        return trial


def _key(values: Mapping[str, Any]) -> str:
    return json.dumps(values, sort_keys=True)
