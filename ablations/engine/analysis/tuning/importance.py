"""The importance of searched fields by PED-ANOVA (Watanabe et al. 2023, arXiv:2304.10255), beside what chance gives.

PED-ANOVA compares the distribution of the best completed trials with that of all completed trials, field by field. The result holds
only for the space and the trials of one search: a field with a narrow searched range has a low importance.
"""

import copy
import warnings
from collections.abc import Mapping, Sequence

import numpy as np
from optuna.exceptions import ExperimentalWarning
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.storages import InMemoryStorage
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from ablations.engine.analysis.evidence import Evidence
from ablations.engine.analysis.statistics.estimate import CONFIDENCE_LEVEL
from ablations.engine.analysis.statistics.inference import Array
from ablations.engine.analysis.trial_table import search_design
from ablations.engine.analysis.tuning.findings import Importance
from ablations.engine.analysis.tuning.optuna_trials import frozen_trials
from ablations.engine.study.design import SearchCell

MIN_COMPLETED_TRIALS = 10
"""Fewest completed trials for which importances are given."""
MIN_BEST_TRIALS = 5
"""Fewest completed trials that count as the best; fewer give no density estimate."""
BEST_TRIAL_FRACTION = 0.1
"""Fraction of the completed trials that count as the best."""
BOOTSTRAP_RESAMPLES = 100
"""Number of bootstrap samples of the completed trials."""
PERMUTATIONS = 39
"""Number of permutations of the trials' values. More would add seconds to a report."""
FLOOR_RANK = 2
"""The importance of this rank among the permutations is the floor: an irrelevant field is above it with probability
FLOOR_RANK / (PERMUTATIONS + 1), which is 5 %, whatever the number of permutations."""


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
    """Return the importance of each searched field, largest first, with its range over resamples; or why there is none."""
    if len(search_design(evidence).fields) < 2:
        return "Importance compares fields, and this search has only one"
    if search_design(evidence).scheduler == "pbt":
        return "Importance needs one value per trial, but population-based training changes values during training"
    trials = [trial for trial in frozen_trials(evidence, cell) if trial.state is TrialState.COMPLETE]
    if len(trials) < MIN_COMPLETED_TRIALS:
        return f"Importance needs {MIN_COMPLETED_TRIALS} completed trials, and this search has {len(trials)}"
    metric = search_design(evidence).metric
    values = np.array([metric.minimized(trial.values[0]) for trial in trials])  # PED-ANOVA assumes that less is better
    if np.ptp(values) == 0:
        return f"All completed trials have the same {metric.label}, so no field has any importance"
    random = np.random.default_rng(0)
    study = _ResampledStudy(trials)
    found = _importances(study, values)
    drawn = random.integers(len(trials), size=(BOOTSTRAP_RESAMPLES, len(trials)))
    resampled = [_shares(_importances(_ResampledStudy([trials[i] for i in row]), values[row])) for row in drawn]
    floors = _floors(found, [_importances(study, random.permutation(values)) for _ in range(PERMUTATIONS)])
    return tuple(
        Importance(
            field=field,
            share=share,
            low=float(np.quantile(shares, (1 - CONFIDENCE_LEVEL) / 2)),
            high=float(np.quantile(shares, (1 + CONFIDENCE_LEVEL) / 2)),
            floor=floors[field],
        )
        for field, share in sorted(_shares(found).items(), key=lambda each: -each[1])
        if (shares := [each.get(field, 0.0) for each in resampled])
    )


def _floors(found: Mapping[str, float], permuted: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the share of each field that chance rarely exceeds.

    A permutation makes every field irrelevant. The shares of all would then compete for the total, so the floor combines the
    permuted importance of one field with the observed importances of the others.
    """
    total = sum(found.values())
    floors = {}
    for field, importance in found.items():
        by_chance = sorted((each[field] for each in permuted), reverse=True)[FLOOR_RANK - 1]
        others = total - importance
        floors[field] = by_chance / (by_chance + others) if by_chance + others else 1.0
    return floors


def _shares(found: Mapping[str, float]) -> dict[str, float]:
    """Return importances as fractions of their total; equal ones if all are zero."""
    total = sum(found.values())
    return {field: importance / total if total else 1 / len(found) for field, importance in found.items()}


def _importances(study: _ResampledStudy, values: Array) -> dict[str, float]:
    """Return the importance of each field, for values of the study's trials of which less is better."""
    best = max(BEST_TRIAL_FRACTION, MIN_BEST_TRIALS / len(values))
    of_trial = values.tolist()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a branch with one trial or a sample of equal values: the range shows it
        warnings.simplefilter("ignore", ExperimentalWarning)  # `normalize` is in Optuna since version 3
        return get_param_importances(
            study,
            evaluator=PedAnovaImportanceEvaluator(target_quantile=best),
            target=lambda trial: of_trial[trial._trial_id],
            normalize=False,
        )
