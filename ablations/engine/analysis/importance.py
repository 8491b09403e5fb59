"""Which searched fields moved the error, by PED-ANOVA (Watanabe et al. 2023, arXiv:2304.10255), and how far that may be off.

It compares where the best completed trials lie with where all of them do. That holds for the space and the trials of this search,
and for nothing else: a field that was searched in a narrow range moves little.
"""

import copy
import warnings
from collections.abc import Sequence

import numpy as np
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.storages import InMemoryStorage
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from ablations.engine.analysis.evidence import Evidence
from ablations.engine.analysis.findings import CONFIDENCE_LEVEL, Importance
from ablations.engine.analysis.optuna_trials import frozen_trials
from ablations.engine.analysis.trial_table import search_design
from ablations.engine.study.design import SearchCell

MIN_COMPLETED_TRIALS = 10
"""Completed trials of which anything is said."""
MIN_BEST_TRIALS = 5
"""Completed trials that count as the best, at least: of fewer nothing can be estimated."""
BEST_TRIAL_FRACTION = 0.1
"""Of the completed trials that count as the best."""
BOOTSTRAP_RESAMPLES = 100
"""Of the completed trials, with replacement."""


class _ResampledStudy(Study):
    """Trials as a study, without storing each of them a hundred times."""

    def __init__(self, trials: Sequence[FrozenTrial]) -> None:
        storage = InMemoryStorage()
        name = storage.get_study_name_from_id(storage.create_new_study([StudyDirection.MINIMIZE]))
        super().__init__(name, storage)
        self._drawn = [copy.copy(trial) for trial in trials]
        for number, trial in enumerate(self._drawn):
            trial._trial_id = number  # drawn twice, it counts twice

    def get_trials(self, deepcopy: bool = True, states: object = None) -> list[FrozenTrial]:
        return self._drawn


def field_importances(evidence: Evidence, cell: SearchCell) -> tuple[Importance, ...] | str:
    """Of every searched field, the largest first, with 95 % percentile intervals; or why there are none."""
    if len(search_design(evidence).fields) < 2:
        return "with one field searched, there is nothing to compare it with"
    if search_design(evidence).scheduler == "pbt":
        return "values change during the training of a population"
    trials = [trial for trial in frozen_trials(evidence, cell) if trial.state is TrialState.COMPLETE]
    if len(trials) < MIN_COMPLETED_TRIALS:
        return f"completed trials: {len(trials)}, and fewer than {MIN_COMPLETED_TRIALS} say nothing of fields"
    if len({trial.values[0] for trial in trials}) == 1:
        return "the errors of all completed trials are equal"
    drawn = np.random.default_rng(0).integers(len(trials), size=(BOOTSTRAP_RESAMPLES, len(trials)))
    found = _importance_shares(trials)
    resampled = [_importance_shares([trials[i] for i in row]) for row in drawn]
    return tuple(
        Importance(
            field=field,
            share=share,
            low=float(np.quantile(shares, (1 - CONFIDENCE_LEVEL) / 2)),
            high=float(np.quantile(shares, (1 + CONFIDENCE_LEVEL) / 2)),
        )
        for field, share in sorted(found.items(), key=lambda each: -each[1])
        if (shares := [each.get(field, 0.0) for each in resampled])
    )


def _importance_shares(trials: Sequence[FrozenTrial]) -> dict[str, float]:
    """Importance of each field in these trials; they add up to 1."""
    best = max(BEST_TRIAL_FRACTION, MIN_BEST_TRIALS / len(trials))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a branch with one trial, a draw of equal errors: the interval says it
        return get_param_importances(
            _ResampledStudy(trials),
            evaluator=PedAnovaImportanceEvaluator(target_quantile=best),
            target=lambda trial: trial.values[0],
        )
