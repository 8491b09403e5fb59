"""The importance of searched fields by PED-ANOVA (Watanabe et al. 2023, arXiv:2304.10255), with bootstrap intervals.

PED-ANOVA compares the distribution of the best completed trials with that of all completed trials, field by field. The result holds
only for the space and the trials of one search: a field with a narrow searched range has a low importance.
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
from ablations.engine.task.metric import Metric

MIN_COMPLETED_TRIALS = 10
"""Fewest completed trials for which importances are given."""
MIN_BEST_TRIALS = 5
"""Fewest completed trials that count as the best; fewer give no density estimate."""
BEST_TRIAL_FRACTION = 0.1
"""Fraction of the completed trials that count as the best."""
BOOTSTRAP_RESAMPLES = 100
"""Number of bootstrap samples of the completed trials."""


class _ResampledStudy(Study):
    """An Optuna study of resampled trials. It keeps them in memory instead of storing each of them a hundred times."""

    def __init__(self, trials: Sequence[FrozenTrial]) -> None:
        storage = InMemoryStorage()
        name = storage.get_study_name_from_id(storage.create_new_study([StudyDirection.MINIMIZE]))
        super().__init__(name, storage)
        self._drawn = [copy.copy(trial) for trial in trials]
        for number, trial in enumerate(self._drawn):
            trial._trial_id = number  # a trial that is drawn twice counts twice

    def get_trials(self, deepcopy: bool = True, states: object = None) -> list[FrozenTrial]:
        return self._drawn


def field_importances(evidence: Evidence, cell: SearchCell) -> tuple[Importance, ...] | str:
    """Return the importance of each searched field, largest first, with 95 % percentile intervals; or why there is none."""
    if len(search_design(evidence).fields) < 2:
        return "Importance compares fields, and this search has only one"
    if search_design(evidence).scheduler == "pbt":
        return "Importance needs one value per trial, but population-based training changes values during training"
    trials = [trial for trial in frozen_trials(evidence, cell) if trial.state is TrialState.COMPLETE]
    if len(trials) < MIN_COMPLETED_TRIALS:
        return f"Importance needs {MIN_COMPLETED_TRIALS} completed trials, and this search has {len(trials)}"
    if len({trial.values[0] for trial in trials}) == 1:
        return f"All completed trials have the same {search_design(evidence).metric.label}, so no field has any importance"
    drawn = np.random.default_rng(0).integers(len(trials), size=(BOOTSTRAP_RESAMPLES, len(trials)))
    metric = search_design(evidence).metric
    found = _importance_shares(trials, metric)
    resampled = [_importance_shares([trials[i] for i in row], metric) for row in drawn]
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


def _importance_shares(trials: Sequence[FrozenTrial], metric: Metric) -> dict[str, float]:
    """Return the importance of each field in these trials; the values add up to 1."""
    best = max(BEST_TRIAL_FRACTION, MIN_BEST_TRIALS / len(trials))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a branch with one trial or a sample of equal values: the interval shows it
        return get_param_importances(
            _ResampledStudy(trials),
            evaluator=PedAnovaImportanceEvaluator(target_quantile=best),
            target=lambda trial: metric.minimized(trial.values[0]),  # it assumes that less is better
        )
